"""The options that every entry point of an adapter shares, and the guard that they describe."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import OptionError
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.ports import Scorer

_log = logging.getLogger("semgrad_guard")
_default_noted = threading.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What a user may say about the guard when making a part of an adapter.

    Raises:
        OptionError: options that exclude each other.
    """

    llm: object | None = None
    """The framework's own model: where it is local, its weights score its answers."""
    policy: str | Path | Mapping[str, object] | None = None
    """A policy file or its content; the policy that ships with the package when left out."""
    model: object | None = None
    """Another scoring model: anything that `semgrad_guard.models.load_model` takes."""
    scorer: Scorer | None = None
    """A ready scorer."""
    guard: Guard | None = None
    """A ready guard, in place of policy, model and scorer."""
    embedder: Embedder | None = None
    """The retriever's sentence embeddings, which add signals of meaning to the scores."""
    embedder_option: str = "embeddings"
    """What the framework calls that option, for error messages."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant together at once, not at the first answer."""
        naming = {"llm": self.llm, "model": self.model, "scorer": self.scorer}
        named = [name for name, value in naming.items() if value is not None]
        if len(named) > 1:
            raise OptionError("+".join(named), "given together", "one of them: each names the scoring model")
        part_of_guard = (self.policy, self.model, self.scorer, self.embedder)
        if self.guard is not None and any(option is not None for option in part_of_guard):
            allowed = "alone or with llm: policy, model and the like are part of the guard"
            raise OptionError("guard", self.guard, allowed)
        if self.scorer is not None and self.embedder is not None:
            allowed = "one of them: a ready scorer has its own embedder"
            options = "+".join(("scorer", self.embedder_option))
            raise OptionError(options, "given together", allowed)

    def check_policy(self) -> None:
        """Check the policy where the scoring model will be found later.

        Raises:
            PolicyFileError: the policy has mistakes.
            CalibrationError: the profile is missing.
        """
        from semgrad_guard.guard.readiness import Given, ready_policy  # loads the policy's parser

        ready_policy(self.policy, Given(embedder=self.embedder, finds_model=True))

    def build(self, local: object | None = None) -> Guard:
        """Return the guard.

        Args:
            local: the local model inside `llm`, or found in the chain that is guarded; it scores in place of the
                policy's model.

        Raises:
            PolicyFileError: the policy has a mistake.
            CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
        """
        if self.guard is not None:
            return self.guard
        if local is None and self.policy is None and self.model is None and self.scorer is None:
            _note_default()
        source = self.model if local is None else local
        return Guard.from_yaml(self.policy, model=source, scorer=self.scorer, embedder=self.embedder)


def check_option(option: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        OptionError: it is not among the allowed ones.
    """
    if value not in allowed:
        raise OptionError(option, value, ", ".join(map(repr, allowed)))


def _note_default() -> None:
    """Warn once a program that answers are scored from outside, by the demo model."""
    if not _default_noted.is_set():
        _default_noted.set()
        _log.warning(
            "SemGradGuard() uses the policy that ships with semgrad-guard, and its demo model scores the answers of "
            "your model from outside (as a proxy): pass SemGradGuard(llm) for a local model, model= or policy="
        )
