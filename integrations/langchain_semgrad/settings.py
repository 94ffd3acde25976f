"""The options that every entry point of the adapter shares, and the guard that they describe."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_semgrad.exchanges import OwnModel
from langchain_semgrad.retrievers import ChainEmbedder
from semgrad_guard.errors import ModelError, NotGuardableError, OptionError
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from langchain_core.embeddings import Embeddings

    from semgrad_guard.ports import Scorer

Output = Literal["same", "result"]
StreamMode = Literal["buffer", "annotate"]
OnWithheld = Literal["message", "raise"]

_log = logging.getLogger("semgrad_guard")
_said_default = threading.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the guarded value is given back."""

    output: Output = "same"
    stream: StreamMode | None = None
    on_withheld: OnWithheld = "message"
    answer_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown words at once, not at the first answer."""
        check_option("output", self.output, get_args(Output))
        check_option("stream", self.stream, (None, *get_args(StreamMode)))
        check_option("on_withheld", self.on_withheld, get_args(OnWithheld))


def check_option(option: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        OptionError: it is not among the allowed ones.
    """
    if value not in allowed:
        raise OptionError(option, value, ", ".join(map(repr, allowed)))


def build_guard(
    llm: object | None = None,
    *,
    policy: str | Path | Mapping[str, object] | None = None,
    model: object | None = None,
    scorer: Scorer | None = None,
    guard: Guard | None = None,
    embeddings: Embeddings | None = None,
) -> tuple[Guard, OwnModel | None]:
    """Return the guard that the options describe and, for a chain's own local model, what recognises its answers.

    Args:
        llm: the chain's model, when it is local: its own weights score its answers.
        policy: a policy file or its content; `None` takes the one that ships with the package.
        model: another scoring model: anything `semgrad_guard.models.load_model` takes.
        scorer: a ready scorer.
        guard: a ready guard; the other options are then its own.
        embeddings: the retriever's, for the signals of meaning.

    Raises:
        OptionError: options that exclude each other.
        NotGuardableError: `llm` holds no local model.
        PolicyFileError: the policy has a mistake.
    """
    given = [name for name, value in {"llm": llm, "model": model, "scorer": scorer}.items() if value is not None]
    if len(given) > 1:
        raise OptionError("+".join(given), "given together", "one of them: each names the scoring model")
    if guard is not None:
        if any(option is not None for option in (policy, model, scorer, embeddings)):
            raise OptionError("guard", guard, "alone or with llm: policy, model and the like are part of the guard")
        return guard, OwnModel(llm) if llm is not None else None
    if scorer is not None and embeddings is not None:
        raise OptionError("scorer+embeddings", "given together", "one of them: a ready scorer has its own embedder")
    if not given and policy is None:
        _say_default()
    embedder = ChainEmbedder(embeddings) if embeddings is not None else None
    if llm is not None:
        return Guard.from_yaml(policy, model=_local(llm), embedder=embedder), OwnModel(llm)
    return Guard.from_yaml(policy, model=model, scorer=scorer, embedder=embedder), None


def _local(llm: object) -> object:
    """Return the local model inside a LangChain model."""
    from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch, as the chain's own model already did

    try:
        return load_model(llm)
    except ModelError as error:
        msg = (
            f"{type(llm).__name__} holds no local model whose weights could score its answers ({error}); "
            "leave it out, as in SemGradGuard(), and the policy's own scoring model judges its answers"
        )
        raise NotGuardableError(msg) from error


def _say_default() -> None:
    if not _said_default.is_set():
        _said_default.set()
        _log.warning(
            "SemGradGuard() uses the policy that ships with semgrad-guard, and its demo model scores the answers of "
            "your chain's model from outside (as a proxy): pass SemGradGuard(llm) for a local model, model= or policy="
        )


def may_change(guard: Guard) -> bool:
    """Tell whether the policy can give anything but the model's own words; an unknown kind of policy is taken to."""
    decider: Any = guard.parts.decider
    return bool(getattr(decider, "can_change_answers", True))
