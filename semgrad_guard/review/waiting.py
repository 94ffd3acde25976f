"""Waiting for something that another process does, by looking ever less often."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_FIRST_S = 0.05
_LONGEST_S = 1.0
_GROWTH = 1.5


def poll(
    look: Callable[[], T | None],
    timeout_s: float,
    sleep: Callable[[float], None],
    elapsed: Callable[[], float] = time.monotonic,
) -> T | None:
    """Return what `look` finds, or `None` after `timeout_s` seconds; it looks at least once.

    Args:
        look: returns `None` while there is nothing.
        timeout_s: how long to go on.
        sleep: waits, in seconds.
        elapsed: a clock that never jumps, in seconds.
    """
    end = elapsed() + timeout_s
    pause = _FIRST_S
    while True:
        found = look()
        left = end - elapsed()
        if found is not None or left <= 0:
            return found
        sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST_S)
