"""Putting the pieces of a stream together."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import AddableDict


def add_chunk(whole: Any, chunk: Any) -> Any:
    """Return what a stream has given so far; of chunks that cannot be added the last one counts, as everywhere here."""
    if whole is None:
        return chunk
    if isinstance(whole, dict) and isinstance(chunk, dict):
        return AddableDict(whole) + AddableDict(chunk)
    try:
        return whole + chunk
    except TypeError:
        return chunk
