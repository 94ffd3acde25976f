"""Stretches of an answer's text -> the tokens that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import ScoringSettingError
from semgrad_guard.models.tokens import clean_text
from semgrad_guard.scoring.sentences import sentence_spans, token_span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel
    from semgrad_guard.scoring.layout import Tokens


@dataclass(frozen=True, slots=True)
class PlacedSpan:
    """A stretch of an answer, in characters and in tokens."""

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
) -> tuple[PlacedSpan, ...]:
    """Return the tokens of stretches of an answer.

    Args:
        model: whose tokenizer made the tokens.
        exchange: whose answer the offsets count in; where it has no text, the text of its ids.
        tokens: of the exchange.
        spans: first character and behind the last of each stretch; `None` takes the answer's sentences, or nothing
            where the answer's text is not what its ids say.
        language: for finding sentences.

    Raises:
        ScoringSettingError: a span is empty or not inside the answer, or the answer's text is not what its ids say.
    """
    written = model.decode(tokens.answer)
    text = clean_text(exchange.answer) or written
    shift = written.find(text)
    if shift < 0 and spans is None:
        return ()
    wanted = sentence_spans(text, language) if spans is None else spans
    for start, end in wanted:
        if not 0 <= start < end <= len(text):
            allowed = f"(first character, behind the last) inside an answer of {len(text)} characters"
            raise ScoringSettingError("spans", (start, end), allowed)
    if shift < 0:
        raise ScoringSettingError("answer", text, "a text that the answer's token ids spell, or no token ids")
    placed = list[PlacedSpan]()
    for start, end in wanted:
        run = token_span(model.decode, tokens.answer, shift + start, shift + end)
        # the end of the turn is part of how the last sentence ends
        run = slice(run.start, len(tokens.answer)) if end == len(text.rstrip()) else run
        placed.append(PlacedSpan(start, end, text[start:end], run))
    return tuple(placed)
