"""The parts of an answer that are scored: its sentences, or spans that the caller gives."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentencex import get_sentence_boundaries  # pyright: ignore[reportAttributeAccessIssue] # compiled, untyped

from semgrad_guard.errors import ScoringSettingError
from semgrad_guard.models.tokens import UNFINISHED, clean_text
from semgrad_guard.scoring.budget import unhurried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel
    from semgrad_guard.scoring.layout import Tokens


MOST_TOGETHER = 10_000
"""Characters in which sentences are sought together: where quotation marks have no end, the segmenter takes a time that
grows with the square."""


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Return the offsets (start, end) of the sentences of a text, without outer white space; `end` is not included.

    A list number belongs to the sentence after it. A piece without letters or digits (a list mark, a lone quotation
    mark) belongs to the sentence before it, if there is one.

    Args:
        text: a text in any language.
        language: two-letter code; it decides which abbreviations do not end a sentence.
    """
    found = list[tuple[int, int]]()
    # the segmenter is written in Rust, which has no lone surrogates
    clean = "".join(UNFINISHED if "\ud800" <= c <= "\udfff" else c for c in text)
    open_from: int | None = None
    for start, end in _boundaries(language, clean):
        start, end = _stripped(clean, start, end)  # noqa: PLW2901 - the same, without white space
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


def _boundaries(language: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield where the segmenter sees sentences; texts longer than `MOST_TOGETHER` are given to it in pieces."""
    start = 0
    while start < len(text):
        end = _piece_end(text, start)
        for boundary in get_sentence_boundaries(language, text[start:end]):
            yield start + boundary["start_index"], start + boundary["end_index"]
        start = end


def _piece_end(text: str, start: int) -> int:
    """Return where a piece of a long text ends: with a line or else a word in its second half, if there is one."""
    end = start + MOST_TOGETHER
    if end >= len(text):
        return len(text)
    half = start + MOST_TOGETHER // 2
    found = text.rfind("\n", half, end)
    found = text.rfind(" ", half, end) if found < 0 else found
    return end if found < 0 else found + 1


def token_span(decode: Callable[[Sequence[int]], str], ids: Sequence[int], start: int, end: int) -> slice:
    """Return the tokens of an answer that contain the characters from `start` up to but not including `end`.

    Args:
        decode: leading ids of the answer -> their text.
        ids: the answer's token ids.
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
    """Return the offsets without outer white space; for white space alone, an empty span."""
    piece = text[start:end]
    begin = end - len(piece.lstrip())
    return begin, max(begin, start + len(piece.rstrip()))


@dataclass(frozen=True, slots=True)
class PlacedSpan:
    """A span of an answer, in characters and in tokens."""

    start: int
    end: int
    text: str
    tokens: slice


def place_spans(
    model: LocalModel,
    exchange: Exchange,
    tokens: Tokens,
    spans: Sequence[tuple[int, int]] | None = None,
    *,
    language: str = "en",
    check: Callable[[], None] = unhurried,
) -> tuple[PlacedSpan, ...]:
    """Return spans of an answer with their tokens.

    Args:
        model: the model whose tokenizer made the tokens.
        exchange: the exchange; offsets count in its answer, or in the text of its ids if the answer has no text.
        tokens: tokens of the exchange.
        spans: start and end (not included) of each span; `None` takes the answer's sentences, or no spans where the
            answer's text does not match its ids.
        language: two-letter code, for finding sentences.
        check: called before each span; what it raises ends the work.

    Raises:
        ScoringSettingError: a span is empty or not inside the answer, or the answer's text does not match its ids.
    """
    written = model.decode(tokens.answer)
    text = clean_text(exchange.answer) or written
    shift = written.find(text)
    if shift < 0 and spans is None:
        return ()
    requested = sentence_spans(text, language) if spans is None else spans
    for start, end in requested:
        if not 0 <= start < end <= len(text):
            allowed = f"(first character, behind the last) inside an answer of {len(text)} characters"
            raise ScoringSettingError("spans", (start, end), allowed)
    if shift < 0:
        raise ScoringSettingError("answer", text, "a text that the answer's token ids spell, or no token ids")
    placed = list[PlacedSpan]()
    for start, end in requested:
        check()
        run = token_span(model.decode, tokens.answer, shift + start, shift + end)
        # the end of the turn is part of how the last sentence ends
        run = slice(run.start, len(tokens.answer)) if end == len(text.rstrip()) else run
        placed.append(PlacedSpan(start, end, text[start:end], run))
    return tuple(placed)
