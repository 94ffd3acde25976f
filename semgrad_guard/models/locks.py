"""One lock for each live object: whoever wraps the same model waits at the same lock."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(thing: object) -> threading.RLock:
    """Return the one re-entrant lock of a model or tokenizer; it lives as long as that object."""
    with _guard:
        return _locks.setdefault(thing, threading.RLock())
