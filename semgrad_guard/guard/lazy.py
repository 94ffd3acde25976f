"""Stages that cost seconds are made when they are first used, once, whatever the number of threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

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


def band_blocks(scorer: Lazy[SemGradScorer]) -> tuple[nn.Module, ...]:
    """Return the blocks whose states a model keeps while it writes, so that scoring its answer is cheap.

    None where the scorer cannot be made: that costs no answer, and is reported when the answer is to be scored.
    """
    try:
        return scorer.get().band_blocks
    except Exception:  # noqa: BLE001 - see above
        return ()


class LazyScorer:
    """A `Scorer` whose model is loaded when the first answer is scored."""

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

    def score(self, exchange: Exchange) -> Score:
        """Same as the scorer's own."""
        return self.load().score(exchange)

    def score_batch(self, exchanges: Sequence[Exchange]) -> list[Score | ScoringError]:
        """Same as the scorer's own."""
        return self.load().score_batch(exchanges)
