"""Questions and the answers that were really given to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.flow import Action, FallbackModel, Fingerprint

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, NewAttempt

FIRST = "first"
"""Route of the first answer."""
RETRY = Action.RETRY_RETRIEVAL.value
"""Route of an answer after another retrieval."""
UNKNOWN = Fingerprint(model="unknown", dtype="unknown", template="unknown", settings="unknown")
"""What a recorded confidence depends on, when nothing says so; it fits no profile."""


def fallback_route(name: str) -> str:
    """Return the route of a fallback model's answers."""
    return f"{Action.FALLBACK_MODEL.value}:{name}"


def route_of(step: NewAttempt) -> str:
    """Return the route of the answers that a step leads to."""
    return fallback_route(step.name) if isinstance(step, FallbackModel) else RETRY


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """One answer that was really given, with what is known of it."""

    exchange: Exchange
    """Its `score` is the recorded one; `None` when there is none."""
    route: str = FIRST
    """How it came about: `first`, `retry_retrieval`, or `fallback_model:` and the model's name."""
    correct: bool | None
    """`None` when nobody said so."""
    confidence: float | None = None
    """Recorded confidence, in [0, 1]; it counts where the policy's profile gives none."""
    error: str | None = None
    """Why there is no score, when scoring failed."""
    cost: float | None = None
    """Cost units; `None` takes those of the policy's step."""
    scoring_s: float | None = None
    answer_s: float | None = None
    """Seconds of retrieving and answering."""

    @property
    def is_timed(self) -> bool:
        """True when some time of it is known."""
        return self.scoring_s is not None or self.answer_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedQuestion:
    """A question with its first answer and the later ones, in the order in which they were given."""

    first: RecordedAnswer
    later: tuple[RecordedAnswer, ...] = ()
    group: str | None = None
    """What this question shares with others that are not independent of it; `None` for a group of its own."""
