"""A thread's turn with the model, which ends early when nobody wants the work any more."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import ScoringEndedError
from semgrad_guard.models.device import held
from semgrad_guard.scoring.borrow import hooked

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Sequence

    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Turn:
    """How to wait for the model, and when to give up: while waiting, and between two decoder blocks."""

    model: PreTrainedModel
    lock: threading.RLock
    blocks: Sequence[nn.Module] = ()
    should_end: Callable[[], bool] | None = None
    """`None` never gives up."""

    @contextmanager
    def taken(self) -> Generator[None]:
        """Hold the model for the time of the context; it may be entered several times.

        Raises:
            ScoringEndedError: the work is no longer wanted.
        """
        if self.should_end is None:
            with self.lock:
                yield
            return
        with held(self.lock, self.should_end) as owned, hooked([(block, self._look) for block in self.blocks]):
            if not owned:
                raise ScoringEndedError
            self._look()
            yield

    def _look(self, *_: object) -> None:
        if self.should_end is not None and self.should_end():
            raise ScoringEndedError
