"""Work that a task asked for and nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

_GIVEN_UP: ContextVar[threading.Event | None] = ContextVar("semgrad_given_up", default=None)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work in a thread, so that the event loop is never blocked.

    Cancelling the task ends the scoring that is under way at the next decoder block, and with it the whole question:
    no step of the policy follows, and nothing is recorded.
    """
    given_up = threading.Event()
    context = copy_context()
    context.run(_GIVEN_UP.set, given_up)
    try:
        return await asyncio.get_running_loop().run_in_executor(None, partial(context.run, work, *args, **kwargs))
    finally:
        given_up.set()


def given_up() -> threading.Event | None:
    """Return what is set once nobody waits for the work of this thread any more; `None` where somebody always does."""
    return _GIVEN_UP.get()
