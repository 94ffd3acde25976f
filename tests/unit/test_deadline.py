"""Time limits for calls into code that is not ours."""

from __future__ import annotations

import contextvars
import threading

import pytest

from semgrad_guard.deadline import Deadline, call_before


def test_remaining_time_never_goes_below_zero() -> None:
    """A negative time-out means something else to most libraries."""
    now = [0.0]
    deadline = Deadline.after(5, lambda: now[0])
    now[0] = 3.0
    assert deadline.remaining_s() == 2.0
    now[0] = 9.0
    assert deadline.remaining_s() == 0.0


@pytest.mark.parametrize(("own", "expected"), [(1.0, 1.0), (9.0, 5.0), (None, 5.0)])
def test_the_earlier_end_wins(own: float | None, expected: float) -> None:
    """A step's own limit can only shorten the policy's budget."""
    assert Deadline.after(5, lambda: 0.0).within(own).remaining_s() == expected


def test_an_error_inside_the_call_is_the_caller_s() -> None:
    """The thread in between must not show."""

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        call_before(Deadline.after(5), fail, "work")


def test_a_call_that_is_too_slow_is_left_behind() -> None:
    """The caller goes on; the message names the work."""
    release = threading.Event()
    with pytest.raises(TimeoutError, match="slow work"):
        call_before(Deadline.after(0.01), lambda: release.wait(10), "slow work")
    release.set()


def test_context_variables_reach_the_call() -> None:
    """Tracing nests by context variables."""
    variable = contextvars.ContextVar("v", default=0)
    variable.set(7)
    assert call_before(Deadline.after(5), variable.get, "work") == 7
