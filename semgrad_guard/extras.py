"""What is loaded only when it is needed: optional packages, and values that cost seconds to make."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from semgrad_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


T = TypeVar("T")


def require(module: str, *, extra: str) -> ModuleType:
    """Return an optional module, imported.

    Args:
        module: dotted name of the module.
        extra: extra of this distribution that installs it.

    Raises:
        MissingExtraError: the module's top-level package is not installed. An error inside an installed
            package is not hidden behind it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(missing + "."):
            raise MissingExtraError(missing, extra) from error
        raise


class Lazy(Generic[T]):
    """A value created at first use; if that fails, the next use tries again. It is safe to share between threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Store the function that creates the value."""
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def get(self) -> T:
        """Return the value."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def is_made(self) -> bool:
        """True once the value exists, so that `get` returns at once."""
        return bool(self._made)
