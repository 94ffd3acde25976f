"""Reads what other programs send within bounds: JSON that can be passed on, and bodies of a bounded size."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx

MOST_BYTES = 64 * 1024 * 1024
"""Longest body, and longest stream, that is read from another server."""
MOST_LINE_BYTES = 8 * 1024 * 1024
"""Longest line of a stream."""
MOST_BRACKETS = 200
"""Most brackets within brackets; whoever goes through a value by a recursive function can go as deep."""
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character beyond the first 65,536, or one of two that make a whole."""


class TooLargeError(ValueError):
    """Another server sent more than is read."""


def read_json(content: bytes | str, *, strict: bool = False) -> Any:
    """Return the value of a JSON text; all that is in it can be written as JSON again.

    Args:
        content: the text.
        strict: refuse numbers that are not finite, and halves of characters. Otherwise they become null and a question
            mark, because the rest of an answer is worth having.

    Raises:
        ValueError: it is no JSON, or has numbers of thousands of digits, or too many brackets within brackets.
    """

    def finite(text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        if strict:
            msg = f"{text[:20]} is no number that JSON can hold"
            raise ValueError(msg)
        return None

    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_float=finite, parse_constant=finite)
        if _HALF.search(data):
            whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "strict" if strict else "replace")
            value = json.loads(whole)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if _depth(data) > MOST_BRACKETS:
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"it has more than {MOST_BRACKETS} brackets within brackets"


def _depth(data: bytes) -> int:
    """Return how many brackets are within brackets in a text that is JSON."""
    if data.count(b"[") + data.count(b"{") <= MOST_BRACKETS:
        return 0
    deepest = depth = 0
    for run in _BRACKETS.findall(_TEXT.sub(b"", data)):
        depth += len(run) if run[0] in b"[{" else -len(run)
        deepest = max(deepest, depth)
    return deepest


async def body_of(response: httpx.Response) -> bytes:
    """Return the body of a streamed response.

    Raises:
        TooLargeError: it is longer than `MOST_BYTES`, however well it was compressed.
    """
    pieces, size = list[bytes](), 0
    async for piece in response.aiter_bytes():
        size = _checked(size + len(piece), MOST_BYTES)
        pieces.append(piece)
    return b"".join(pieces)


def whole_body(response: httpx.Response) -> bytes:
    """Same as `body_of` without an event loop."""
    pieces, size = list[bytes](), 0
    for piece in response.iter_bytes():
        size = _checked(size + len(piece), MOST_BYTES)
        pieces.append(piece)
    return b"".join(pieces)


async def lines_of(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Yield the lines of a streamed response, which end in a line feed and in nothing else.

    Raises:
        TooLargeError: a line, or all of them together, is too long.
    """
    begun, length, size = list[bytes](), 0, 0
    async for piece in response.aiter_bytes():
        size = _checked(size + len(piece), MOST_BYTES)
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield b"".join([*begun, line])
            begun, length = [], 0
        length = _checked(length + len(rest), MOST_LINE_BYTES)
        begun.append(rest)
    if length:
        yield b"".join(begun)


def _checked(size: int, most: int) -> int:
    if size > most:
        msg = f"it is longer than {most // 2**20} MB"
        raise TooLargeError(msg)
    return size
