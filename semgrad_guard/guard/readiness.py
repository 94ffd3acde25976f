"""What a policy needs before it can act: checked when a guard is built and by `policy check`, before any answer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from semgrad_guard.errors import CalibrationError, MissingExtraError, ModelError, ProfileMismatchError
from semgrad_guard.model_names import LANGUAGE_MODELS, check_embedder, check_language_model, is_hub_id
from semgrad_guard.policy.load import all_of, read_policy
from semgrad_guard.policy.model import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from semgrad_guard.calibration import Profile
    from semgrad_guard.errors import PolicyFileError, SemGradGuardError
    from semgrad_guard.model_names import PackagedModel
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy import Policy
    from semgrad_guard.policy.yaml_source import Place
    from semgrad_guard.ports import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the code gives in place of what a policy names."""

    model: object | None = None
    """A scoring model: a name, or anything else that `load_model` takes."""
    scorer: Scorer | None = None
    """A ready scorer, which needs no model."""
    embedder: Embedder | None = None
    finds_model: bool = False
    """Whether a scoring model may be found later that takes the place of the policy's."""


NOTHING_GIVEN = Given()

Problem = tuple["Place", "SemGradGuardError"]
"""The place in the policy file, and what is wrong there."""


def ready_policy(
    source: Policy | Mapping[str, object] | Path | str | None, given: Given = NOTHING_GIVEN, *, listed: bool = False
) -> Policy:
    """Return a policy that can act.

    Nothing is loaded or downloaded for that: a Hugging Face id is not looked up, and a profile is compared with a model
    only where the model's digest is known.

    Args:
        source: policy file, its content, a policy, or `None` for the shipped one.
        given: what the code gives in place of what the policy names.
        listed: raise whatever is wrong as `PolicyFileError`, with file, line and key.

    Raises:
        PolicyFileError: the policy has mistakes, or several things are missing; the error lists all.
        ModelError: the scoring or embedding model is not installed, missing or misspelt.
        CalibrationError: the profile is missing, or was fitted for another model.
        MissingExtraError: the package that loads the scoring model, or makes the embeddings that the policy names, is
            not installed.
    """
    reading = read_policy(source)
    problems = [] if reading.policy is None else list(problems_of(reading.policy, given))
    known = [place for place, _ in reading.mistakes]
    new = [(place, error) for place, error in problems if not any(place[: len(k)] == k for k in known)]
    if len(new) == 1 and not reading.mistakes and not listed:
        ((place, error),) = new
        error.add_note(str(reading.mistake(place, "is named here")))
        raise error
    mistakes: list[PolicyFileError] = [error for _, error in reading.mistakes]
    mistakes += [reading.mistake(place, str(error)) for place, error in new]
    if mistakes:
        raise all_of(mistakes) from (new[0][1] if new else None)
    return reading.sound()


def check_ready(policy: Policy, given: Given = NOTHING_GIVEN) -> None:
    """Check a policy that was read before; see `ready_policy`."""
    ready_policy(policy, given)


def problems_of(policy: Policy, given: Given = NOTHING_GIVEN) -> Iterator[Problem]:
    """Yield what keeps a policy from acting."""
    needs_model = given.scorer is None and not given.finds_model and policy.scorer.url is None
    if needs_model and find_spec(_SCORES) is None:
        yield ("scorer",), MissingExtraError(_SCORES, "local")
    elif needs_model:
        yield from _model_problems(policy, given.model)
    if given.scorer is None:
        yield from _embedder_problems(policy, given.embedder)
    profile: Profile | None = None
    try:
        profile = _profile(policy)
    except CalibrationError as error:
        yield ("scorer", "profile"), error
    if profile is not None and needs_model:
        yield from _mismatches(policy, profile, given.model)


def _model_problems(policy: Policy, model: object | None) -> Iterator[Problem]:
    name = policy.scorer.model if model is None else model
    if not isinstance(name, str | PathLike):
        return
    try:
        check_language_model(str(name))
    except ModelError as error:
        yield ("scorer", "model"), error


def _embedder_problems(policy: Policy, embedder: Embedder | None) -> Iterator[Problem]:
    name = policy.scorer.embedding
    if name is None or embedder is not None:
        return
    place = ("scorer", "embedding")
    try:
        check_embedder(name)
    except ModelError as error:
        yield place, error
        return
    if find_spec(_EMBEDS) is None:
        yield place, MissingExtraError(_EMBEDS, "evaluation")


_EMBEDS, _SCORES = "sentence_transformers", "torch"


def _profile(policy: Policy) -> Profile | None:
    if policy.profile is None:
        return None
    from semgrad_guard.calibration import load_profile  # loads numpy

    return load_profile(policy.profile)


def _mismatches(policy: Policy, profile: Profile, model: object | None) -> Iterator[Problem]:
    """Yield that a profile is another model's; where nobody named it, whichever shipped one fits is used."""
    name, why = _mismatch(policy, profile, model)
    if not why:
        return
    error = ProfileMismatchError(profile.name, name, why)
    if "scorer" in policy.model_fields_set and policy.source != SHIPPED:
        yield ("scorer", "profile"), error


def _mismatch(policy: Policy, profile: Profile, model: object | None) -> tuple[str, str]:
    """Return the model's name, and why a profile is certainly not this model's; empty where it may be."""
    fitted, settings = profile.fingerprint, policy.scorer
    source = settings.model if model is None else model
    if not isinstance(source, str | PathLike):
        from semgrad_guard.models import load_model  # loads torch, as the live model already did

        local = load_model(source)
        return local.name, _differs(fitted.model, local.weights_digest) or _differs(fitted.dtype, local.dtype)
    name = str(source)
    packaged, owner = LANGUAGE_MODELS.get(name.lower()), _owner(fitted.model)
    dtype = settings.dtype if settings.dtype not in {None, "auto"} else "float32" if packaged else ""
    if why := _differs(fitted.dtype, dtype or ""):
        return name, why
    if packaged is not None:
        digest = packaged.digest if dtype == "float32" else None
        return name, _differs(fitted.model, digest or "")
    if owner is None or not is_hub_id(name) or Path(name).expanduser().exists():
        return name, ""
    if name in owner.hub_ids:
        return name, (
            f"it was fitted for the packaged {owner.name}, whose weights are rounded to fewer bits: those of the "
            "Hub are other numbers and want a profile of their own"
        )
    return name, f"it was fitted for {owner.name}"


def _differs(fitted: str, found: str) -> str:
    if not fitted or not found or fitted == found:
        return ""
    owner = _owner(fitted)
    return f"it was fitted for {owner.name if owner else _short(fitted)}, not for {_short(found)}"


def _short(text: str) -> str:
    return f"weights {text[:12]}…" if len(text) == 64 else text


def _owner(digest: str) -> PackagedModel | None:
    """Return the packaged model that a profile's digest belongs to."""
    return next((model for model in LANGUAGE_MODELS.values() if model.digest == digest), None)
