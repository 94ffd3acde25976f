"""How much memory and time scoring may take, and the sizes of the pieces of work that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CACHE_ENTRIES = 2**21
"""Entries of the weight's gradient held at a time on a processor (8 MB in float32): more would not fit its caches."""
_STORED_ENTRIES = 2**26
"""Most logits kept between the two passes over the vocabulary (256 MB in float32); more are computed twice."""
_ROUND = 64
"""Blocks of the vocabulary are multiples of this, for the sake of the matrix kernels."""
_NUMBER = 4
"""Bytes of a float32 number."""
_ROWS_OF_LOGITS = 4
"""Matrices as large as the logits that are alive at a time."""
_RECORDED_BYTES = 2**28
"""Most memory for the recording of a whole band on a processor; a longer answer is recorded by blocks."""
ACCELERATOR_MB = 512.0
"""Usual budget on an accelerator, where every piece of work costs a launch and memory is fast."""
_RECORDED_ON_ACCELERATOR = 2**32
"""Most memory for the recording of a whole band on an accelerator."""
_RECORDINGS_IN_BATCH = 4
"""How many times as much a batch may record."""
_MB = 2**20


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Memory that scoring may take, beside the model and what was kept of the writing, in order to save time."""

    extra_bytes: int | None = None
    """`None` takes the sizes that are fastest on a processor: small blocks, because they stay in its caches."""
    recorded_bytes: int = _RECORDED_BYTES
    """Most memory for the recording of a whole band; where it takes more, one exchange is recorded by blocks."""

    @property
    def stored_logits(self) -> int:
        """Most logits that are kept at a time."""
        if self.extra_bytes is None:
            return _STORED_ENTRIES
        return self.extra_bytes // (2 * _NUMBER * _ROWS_OF_LOGITS)

    @property
    def batch_bytes(self) -> int:
        """Most memory for the recording of a batch of several exchanges."""
        return _RECORDINGS_IN_BATCH * self.recorded_bytes

    def vocabulary_block(self, n_vocabulary: int, hidden: int, n_tokens: int, *, n_norms: int, converts: bool) -> int:
        """Return how many words of the vocabulary the head works on at a time.

        Args:
            n_vocabulary: all words.
            hidden: size of the head's input.
            n_tokens: tokens that are worked on together.
            n_norms: gradients by the head's weight that are computed.
            converts: whether the weight is converted to float32 on the way.
        """
        if self.extra_bytes is None:
            fitting = _CACHE_ENTRIES // (2 * hidden)
        else:
            numbers = (n_norms + converts) * hidden + _ROWS_OF_LOGITS * n_tokens
            fitting = self.extra_bytes // (2 * _NUMBER * numbers)
        return min(n_vocabulary, max(_ROUND, fitting // _ROUND * _ROUND))

    def blocks_together(self, bytes_each: int) -> int:
        """Return how many decoder blocks are recorded together behind an answer's writing.

        Args:
            bytes_each: what recording one of them takes.
        """
        return 1 if self.extra_bytes is None else max(1, self.extra_bytes // (2 * max(1, bytes_each)))


LEAN = MemoryBudget()
"""Least memory: what a processor uses, and what is tried where more did not fit."""


def budget_for(device: torch.device, max_extra_mb: float | None) -> MemoryBudget:
    """Return the budget for a device.

    Args:
        device: where the model is.
        max_extra_mb: MiB that the caller allows; `None` is the device's usual budget.
    """
    if max_extra_mb is None:
        return LEAN if device.type == "cpu" else MemoryBudget(int(ACCELERATOR_MB * _MB), _RECORDED_ON_ACCELERATOR)
    return MemoryBudget(int(max_extra_mb * _MB), int(max_extra_mb * _MB))


def unhurried() -> None:
    """Check nothing, in the place of a function that ends work whose time is up: there is time."""
