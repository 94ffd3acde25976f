"""Stages that cost seconds are made when they are first used, once, whatever the number of threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from semgrad_guard.guard.question_run import score_batch_within, score_within
from semgrad_guard.routing.deadline import Deadline, call_before

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.ports import Scorer
    from semgrad_guard.scoring import SemGradScorer

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value made at first use; a failed attempt is made again at the next use."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Keep how to make it."""
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def get(self) -> T:
        """Return the value."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def is_made(self) -> bool:
        """True once the value is there, so that `get` returns at once."""
        return bool(self._made)


def band_blocks(scorer: Lazy[SemGradScorer]) -> tuple[nn.Module, ...]:
    """Return the blocks whose states a model keeps while it writes, so that scoring its answer is cheap.

    None where the scorer cannot be made: that costs no answer, and is reported when the answer is to be scored.
    """
    try:
        return scorer.get().band_blocks
    except Exception:  # noqa: BLE001 - see above
        return ()


class LazyScorer:
    """A `Scorer` whose model is loaded when the first answer is scored.

    A time limit includes the loading: when it ends first, the loading goes on for the answers that follow.
    """

    def __init__(self, name: str, make: Callable[[], Scorer]) -> None:
        """Keep the model's name and how to load it."""
        self.name = name
        self._scorer = Lazy(make)

    def load(self) -> Scorer:
        """Return the scorer itself, loaded."""
        return self._scorer.get()

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Same as the scorer's own."""
        return self.load().fingerprint(proxy=proxy)

    def score(self, exchange: Exchange, *, max_time_s: float | None = None) -> Score:
        """Same as the scorer's own.

        Raises:
            TimeoutError: loading and scoring took longer than `max_time_s` seconds.
        """
        scorer, left_s = self._loaded_within(max_time_s)
        return score_within(scorer, exchange, left_s)

    def score_batch(
        self, exchanges: Sequence[Exchange], *, max_time_s: float | None = None
    ) -> list[Score | ScoringError]:
        """Same as the scorer's own.

        Raises:
            TimeoutError: loading took longer than `max_time_s` seconds.
        """
        scorer, left_s = self._loaded_within(max_time_s)
        return score_batch_within(scorer, exchanges, None if left_s is None else left_s / max(1, len(exchanges)))

    def _loaded_within(self, seconds: float | None) -> tuple[Scorer, float | None]:
        if self._scorer.is_made:
            return self.load(), seconds
        deadline = Deadline.after(seconds)
        scorer = call_before(deadline, self.load, f"loading {self.name}")
        return scorer, deadline.remaining_s()
