"""Optional packages: a missing one names the pip line that brings it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from semgrad_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


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
