"""One lock for each live object: whoever wraps the same model waits at the same lock."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_LOOK_S = 0.02
"""How often someone who waits for a lock looks whether the work is still wanted."""

_locks: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(thing: object) -> threading.RLock:
    """Return the one re-entrant lock of a model or tokenizer; it lives as long as that object."""
    with _guard:
        return _locks.setdefault(thing, threading.RLock())


@contextmanager
def held(lock: threading.RLock, should_end: Callable[[], bool]) -> Generator[bool]:
    """Hold a lock; give False, without it, when `should_end` says so while another holds it."""
    owned = lock.acquire(blocking=False)
    while not owned and not should_end():
        owned = lock.acquire(timeout=_LOOK_S)
    try:
        yield owned
    finally:
        if owned:
            lock.release()
