"""How much memory tensors take on a processor, counted by torch itself: the same whatever the allocator holds back."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that were held at once of what was allocated while some work is done."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    memory: list[Any] = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held: accumulate[int] = accumulate(event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns()))
    return max(held)
