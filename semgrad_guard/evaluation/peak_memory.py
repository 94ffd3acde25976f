"""How much memory a piece of work takes at its peak, beyond what was in use before."""

from __future__ import annotations

import ctypes
import gc
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(slots=True)
class PeakMemory:
    """Filled in when the work is done."""

    extra_mb: float | None = None
    """Peak resident memory beyond that at the start, in MiB; `None` where the system does not tell (not Linux)."""


@contextmanager
def peak_memory() -> Generator[PeakMemory]:
    """Measure the work inside the context. It gives freed memory back first, so that none of it hides the peak."""
    measured = PeakMemory()
    before = resident_mb()
    knows = _reset_peak()
    yield measured
    after = _megabytes("VmHWM")
    if knows and before is not None and after is not None:
        measured.extra_mb = max(0.0, after - before)


def resident_mb() -> float | None:
    """Return the resident memory in MiB once freed memory was given back; `None` where the system does not tell."""
    gc.collect()
    _give_back()
    return _megabytes("VmRSS")


def _reset_peak() -> bool:
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _give_back() -> None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not the GNU C library
        return
    trim(0)


def _megabytes(key: str) -> float | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) / 1024 if found else None
