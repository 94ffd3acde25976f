"""The options that every entry point of an adapter shares, and the guard that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import OptionError
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What a user may say about the guard when making a part of an adapter.

    Raises:
        OptionError: options that exclude each other.
    """

    llm: object | None = None
    """The framework's own model: where it is local, its weights score its answers."""
    policy: PolicySource | None = None
    """A policy file or its content, by which the guard routes."""
    accept: AcceptOption | None = None
    """In place of a policy: answers with a lower confidence, or without one, are held back. With neither, the guard
    measures and changes no answer."""
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
        if self.accept is not None:
            self._check_accept()
        part_of_guard = (self.policy, self.model, self.scorer, self.embedder)
        if self.guard is not None and any(option is not None for option in part_of_guard):
            allowed = "alone or with llm: policy, model and the like are part of the guard"
            raise OptionError("guard", self.guard, allowed)
        if self.scorer is not None and self.embedder is not None:
            allowed = "one of them: a ready scorer has its own embedder"
            options = "+".join(("scorer", self.embedder_option))
            raise OptionError(options, "given together", allowed)

    def _check_accept(self) -> None:
        for option, value in {"policy": self.policy, "guard": self.guard}.items():
            if value is not None:
                allowed = f"one of them: a {option} says itself what it accepts"
                raise OptionError("+".join(("accept", option)), "given together", allowed)
        from semgrad_guard.policy import policy_of  # loads the parser of policies

        policy_of(None, self.accept)

    def check_policy(self) -> None:
        """Check the policy where the scoring model will be found later.

        Raises:
            PolicyFileError: the policy has mistakes.
            CalibrationError: the profile is missing.
        """
        from semgrad_guard.guard.readiness import Given, ready_policy  # loads the policy's parser

        if self.policy is not None:
            ready_policy(self.policy, Given(embedder=self.embedder, finds_model=True))

    def build(self, local: object | None = None) -> Guard:
        """Return the guard.

        Args:
            local: the local model inside `llm`, or found in the chain that is guarded; it scores in place of the
                policy's model.

        Raises:
            OptionError: `accept` is no confidence.
            PolicyFileError: the policy has a mistake.
            CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
        """
        if self.guard is not None:
            return self.guard
        source = self.model if local is None else local
        return Guard.from_yaml(
            self.policy, accept=self.accept, model=source, scorer=self.scorer, embedder=self.embedder
        )


def check_option(option: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        OptionError: it is not among the allowed ones.
    """
    if value not in allowed:
        raise OptionError(option, value, ", ".join(map(repr, allowed)))
