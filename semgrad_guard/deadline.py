"""Time limits for calls to code outside this package."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock after which work is no longer wanted."""

    at_s: float | None
    """Seconds on `clock`; `None` never ends."""
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the deadline `seconds` from now; `None` never ends."""
        return cls(None if seconds is None else clock() + seconds, clock)

    def remaining_s(self) -> float | None:
        """Return the seconds left, at least 0; `None` when it never ends."""
        return None if self.at_s is None else max(0.0, self.at_s - self.clock())

    def within(self, seconds: float | None) -> Deadline:
        """Return the earlier of this deadline and one `seconds` from now."""
        remaining = self.remaining_s()
        if seconds is None or (remaining is not None and remaining <= seconds):
            return self
        return Deadline.after(seconds, self.clock)


def call_before(deadline: Deadline, call: Callable[[], T], what: str) -> T:
    """Make a call and return its result, unless the deadline comes first.

    Python cannot stop a running thread: a call that is too slow continues in a daemon thread and its result is dropped.

    Args:
        deadline: when to stop waiting.
        call: the work; it runs with a copy of the caller's context variables, so tracing nests as usual.
        what: description of the work, for the error.

    Raises:
        TimeoutError: the deadline came first.
    """
    timeout_s = deadline.remaining_s()
    if timeout_s is None:
        return call()
    results: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    context = copy_context()

    def work() -> None:
        try:
            results.put((context.run(call), None))
        except BaseException as error:  # noqa: BLE001 - any error is passed to the caller
            results.put((None, error))

    threading.Thread(target=work, name=f"semgrad-guard {what}", daemon=True).start()
    try:
        result, error = results.get(timeout=timeout_s)
    except Empty:
        msg = f"{what} took longer than {timeout_s:.3g} s"
        raise TimeoutError(msg) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # `None` only beside an error, unless T is optional
