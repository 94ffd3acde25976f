"""Where sentences begin and end in a text, and which answer tokens belong to a stretch of it."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from sentencex import get_sentence_boundaries  # pyright: ignore[reportAttributeAccessIssue] # compiled, untyped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a tokenizer shows for a character of which only some bytes have been decoded."""


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Return the offsets (first character, behind the last) of the sentences of a text, without outer white space.

    A list number goes with the sentence behind it; what holds no letter or digit (a list mark, a lone quotation mark)
    with the one before, if there is one.

    Args:
        text: in any language.
        language: two-letter code; it decides which abbreviations end no sentence.
    """
    found = list[tuple[int, int]]()
    # the segmenter is written in Rust, which has no lone surrogates
    clean = "".join(UNFINISHED if "\ud800" <= c <= "\udfff" else c for c in text)
    open_from: int | None = None
    for boundary in get_sentence_boundaries(language, clean):
        start, end = _stripped(clean, boundary["start_index"], boundary["end_index"])
        if start == end:
            continue
        begin = start if open_from is None else open_from
        if any(c.isalpha() for c in clean[start:end]):
            found.append((begin, end))
            open_from = None
        elif found and not any(c.isdigit() for c in clean[begin:end]):
            found[-1] = (found[-1][0], end)
        else:
            open_from = begin
    return found if open_from is None else [*found, (open_from, len(clean.rstrip()))]


def token_span(decode: Callable[[Sequence[int]], str], ids: Sequence[int], start: int, end: int) -> slice:
    """Return which tokens of an answer hold the characters from `start` to before `end`.

    Args:
        decode: leading ids of the answer -> their text.
        ids: the answer's.
        start: offset in the answer's whole text.
        end: offset, more than `start`.
    """

    def length(n: int) -> int:
        return len(decode(ids[:n]).rstrip(UNFINISHED))

    counts = range(1, len(ids) + 1)
    first = bisect_right(counts, start, key=length)
    last = bisect_right(counts, end - 1, key=length)
    return slice(min(first, len(ids) - 1), min(last, len(ids) - 1) + 1)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the offsets without outer white space; of white space alone, an empty stretch."""
    piece = text[start:end]
    begin = end - len(piece.lstrip())
    return begin, max(begin, start + len(piece.rstrip()))
