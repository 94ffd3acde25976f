"""The profile: a JSON file with all that is needed to turn a score into a confidence, and the evidence for it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AwareDatetime, Field, ValidationError, model_validator

from semgrad_guard.calibration.curves import Curve, Share
from semgrad_guard.calibration.fitting_scores import band_in, embedder_in, position_in
from semgrad_guard.calibration.fused import FusedModel
from semgrad_guard.calibration.metrics import Interval
from semgrad_guard.calibration.probes import Probe
from semgrad_guard.errors import ProfileFileError
from semgrad_guard.flow import Fingerprint, utc_now
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from semgrad_guard.flow import Score

VERSION: Literal[1] = 1


class Evidence(Frozen):
    """How good the confidence is, measured on answers that its fit did not see."""

    auroc: Interval
    auprc: Interval
    prr: Interval
    aurc: Interval
    ece: Interval
    brier: Interval
    log_loss: Interval
    signals: dict[str, Interval] = Field(default_factory=dict)
    """AUROC of each single signal, oriented by its direction."""
    adversarial: dict[str, AdversarialEvidence] = Field(default_factory=dict)
    """Answers that were made to look right, by kind; empty where the fit had none."""
    adversarial_threshold: float | None = None
    """The confidence that lets `RIGHT_ACCEPTED` of the right answers through."""
    left_out: dict[str, SourceEvidence] = Field(default_factory=dict)
    """Each data set left out in turn; empty where the labels name fewer than three."""

    @model_validator(mode="after")
    def _says_at_what(self) -> Evidence:
        if self.adversarial and self.adversarial_threshold is None:
            msg = "adversarial needs adversarial_threshold, the confidence that its shares are of"
            raise ValueError(msg)
        return self


class AdversarialEvidence(Frozen):
    """What answers of one kind that were made to look right get, from a fit that did not see their questions."""

    n: int = Field(ge=1)
    mean: float
    """Mean confidence."""
    accepted: float
    """Share that is accepted at `Evidence.adversarial_threshold`."""


class SourceEvidence(Frozen):
    """How good the confidence is on one data set, from a fit on the other sets."""

    n: int = Field(ge=1)
    right: float
    """Share of right answers."""
    auroc: Interval
    auroc_same_question: float | None = None
    """AUROC over pairs of answers to the same question; `None` where there are none."""
    auroc_same_author: float | None = None
    """AUROC over pairs of answers of the same model; `None` where the authors are not known."""
    ece: Interval
    right_above: dict[str, Interval]
    """Share of right answers among those with at least this confidence."""
    baselines: dict[str, Interval]
    """AUROC of what costs nothing: a shorter answer, a larger share of its words found in the passages."""


class Reference(Frozen):
    """Distributions that recent scores are compared with: sorted values at evenly spaced shares."""

    n: int = Field(ge=2)
    """Number of answers that the distributions were taken from."""
    margin: tuple[float, ...] = Field(min_length=2)
    signals: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class LabelPairs(Frozen):
    """Confidence and correctness of answers whose confidence came from a fit that did not see them."""

    confidence: tuple[Share, ...]
    correct: tuple[bool, ...]
    group: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    tags: tuple[tuple[str, ...], ...] = ()
    """Tags of each answer; empty when no answer has any."""
    held_out: bool = False
    """True when all of them were kept out of the profile's fit; False when they are out-of-fold."""

    @model_validator(mode="after")
    def _same_length(self) -> LabelPairs:
        lengths = {len(self.confidence), len(self.correct), len(self.group)}
        if len(lengths) > 1 or (self.tags and len(self.tags) not in lengths):
            msg = "confidence, correct, group and tags must have one entry per answer"
            raise ValueError(msg)
        return self

    def arrays(
        self, tags: frozenset[str] = frozenset()
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return confidence, correctness and group of the answers that have all of these tags; see `of_kind`."""
        listed = self.tags or ((),) * len(self.confidence)
        keep = np.array([tags <= set(own) for own in listed], dtype=bool)
        return (
            np.asarray(self.confidence, dtype=np.float64)[keep],
            np.asarray(self.correct, dtype=np.float64)[keep],
            np.asarray(self.group, dtype=np.int64)[keep],
        )

    def of_kind(self, any_of: frozenset[str], none_of: frozenset[str]) -> LabelPairs:
        """Return the answers with at least one tag of `any_of` (any answer if it is empty) and none of `none_of`."""
        listed = self.tags or ((),) * len(self.confidence)
        kept = [i for i, own in enumerate(listed) if (not any_of or any_of & set(own)) and not none_of & set(own)]
        return LabelPairs(
            confidence=tuple(self.confidence[i] for i in kept),
            correct=tuple(self.correct[i] for i in kept),
            group=tuple(self.group[i] for i in kept),
            tags=tuple(listed[i] for i in kept),
            held_out=self.held_out,
        )


class Profile(Frozen):
    """A fitted calibration for the scores of one model, template and setting."""

    version: Literal[1] = VERSION
    name: str = Field(min_length=1)
    created_at: AwareDatetime = Field(default_factory=utc_now)
    expires_at: AwareDatetime | None = None
    """From this moment on, the profile no longer calibrates."""
    fingerprint: Fingerprint
    method: str
    """`fused`, or the name of the one signal that is used."""
    model: FusedModel
    probes: tuple[Probe, ...] = ()
    """The probes whose signals the model uses."""
    curve: Curve
    edge: float = Field(ge=0, lt=0.5)
    """Confidence keeps this distance from 0 and 1: 1 / (labels + 2)."""
    label_free: bool = False
    """True when there were no labels: the value is a percentile, not a probability."""
    n_labels: int = Field(default=0, ge=0)
    n_dropped: int = Field(default=0, ge=0)
    """Rows left out because a signal was missing, NaN or infinite."""
    n_seen: int = Field(default=0, ge=0)
    """Rows read; more than `n_labels` + `n_dropped` where a sample was taken."""
    base_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of right answers among the labels."""
    evidence: Evidence | None = None
    reference: Reference
    pairs: LabelPairs = LabelPairs(confidence=(), correct=(), group=())
    notes: tuple[str, ...] = ()
    """Choices made while fitting, in words."""
    basis: str = ""
    """What it was fitted on, in words; shown with every confidence where the answers are of other models."""
    simpler: Profile | None = None
    """The fit on fewer signals, for scores that lack what this one needs, such as signals of meaning."""
    brief: Profile | None = None
    """The fit for short answers: what says much of a hundred words says little of three."""
    max_words: int | None = Field(default=None, ge=1)
    """Words of its own (`n_own_words`) that an answer may have at most; only of a fit for short answers."""

    @property
    def position(self) -> int | None:
        """Token position t* of the scores, counted from the prompt's end; `None` when the settings do not say it."""
        return position_in(self.fingerprint.settings)

    @property
    def band(self) -> tuple[int, int] | None:
        """First and last decoder block of SemGrad's layer band; `None` when the settings do not say it."""
        return band_in(self.fingerprint.settings)

    @property
    def embedder(self) -> str | None:
        """Name of the embedder used for signals that compare meanings; `None` when there is none."""
        return embedder_in(self.fingerprint.settings)

    def fits(self) -> Iterator[Profile]:
        """Yield the fits in the order in which they are tried: for short answers, this one, and the simpler ones."""
        fit: Profile | None = self
        while fit is not None:
            if fit.brief is not None:
                yield fit.brief
            yield fit
            fit = fit.simpler

    def is_too_long(self, signals: Mapping[str, float]) -> bool:
        """Return whether an answer with these signals has more words of its own than this fit is for."""
        return self.max_words is not None and signals.get("n_own_words", math.inf) > self.max_words

    def signals_of(self, score: Score) -> dict[str, float]:
        """Return all signals of a score, including its value and what this fit's probes read in it."""
        found = {score.method: score.value, **score.signals}
        return found | {probe.name: probe.value(score.vectors) for probe in self.probes}

    def margin(self, signals: Mapping[str, float]) -> float:
        """Return the log-odds of one answer before calibration; every required signal must be present."""
        return self.model.margin(signals)

    def confidence_of_margin(self, margin: float) -> float:
        """Return the calibrated probability of a margin."""
        value = float(self.curve.probabilities(np.array([margin]))[0])
        return min(max(value, self.edge), 1 - self.edge)

    def is_expired(self, now: datetime) -> bool:
        """Return whether the expiry date has passed."""
        return self.expires_at is not None and now >= self.expires_at

    def save(self, path: Path | str) -> Path:
        """Write the profile as JSON, atomically: a reader sees the old file or the whole new one."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target


def shipped_profiles() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package."""
    folder = resources.files("semgrad_guard.calibration") / "profiles"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_profile(name_or_path: str | Path, *, base: Path | None = None) -> Profile:
    """Load and check a profile.

    Args:
        name_or_path: a shipped profile's name, or the path of a JSON file.
        base: folder that a relative path starts from; by default the working directory.

    Raises:
        ProfileFileError: the profile is missing, unreadable, not JSON, or not of this version.
    """
    text = str(name_or_path)
    is_name = not text.endswith(".json") and not any(sep in text for sep in ("/", "\\"))
    if is_name and text in shipped_profiles():
        shipped = resources.files("semgrad_guard.calibration") / "profiles" / f"{text}.json"
        return parse_profile(shipped.read_text(encoding="utf-8"), text)
    path = Path(text)
    try:
        path = (base or Path()) / path.expanduser()
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        guess = get_close_matches(text, shipped_profiles(), n=1) if is_name else []
        meant = f": did you mean `{guess[0]}`?" if guess else ""
        names = ", ".join(shipped_profiles()) or "none"
        what = "shipped profile" if is_name else "file"
        raise ProfileFileError(path, f"no such {what}{meant} (shipped profiles: {names})") from error
    except (OSError, ValueError, RuntimeError) as error:  # among them no UTF-8, no file's name, nobody's home
        raise ProfileFileError(path, f"cannot be read: {error}") from error
    return parse_profile(content, path)


def parse_profile(content: str, where: str | Path) -> Profile:
    """Return the profile in a JSON text.

    Raises:
        ProfileFileError: the text is not JSON, or not a profile of this version.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets in brackets
        raise ProfileFileError(where, f"not JSON: {error}") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise ProfileFileError(where, f"profile version {short(version)}, but this release reads version {VERSION}")
    try:
        return Profile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ProfileFileError(where, f"`{place}`: {first['msg']}") from error
