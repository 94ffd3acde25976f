"""Which tokens of a prompt are passages, and which are the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.models.tokens import clean_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel

REST, QUESTION, FIRST_PASSAGE = 0, 1, 2
"""What a token of a prompt can be: neither, part of the question, or of the passage `FIRST_PASSAGE` + its number."""
FIRST_TOKEN, OWN, IN_PROMPT = 0, 1, 2
"""Columns of sums over tokens: the first of all, the answer's own, and from `IN_PROMPT` on the prompt's by role."""


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What each token of a prompt belongs to."""

    roles: tuple[int, ...]
    """One a token: `REST`, `QUESTION`, or `FIRST_PASSAGE` plus the number of a passage."""
    n_passages: int
    """How many passages the exchange has, whether the prompt shows them or not."""

    @property
    def has_question(self) -> bool:
        """Whether the question is in the prompt, word for word."""
        return QUESTION in self.roles

    @property
    def shown(self) -> tuple[bool, ...]:
        """For each passage whether it is in the prompt, word for word."""
        there = set(self.roles)
        return tuple(FIRST_PASSAGE + number in there for number in range(self.n_passages))


def prompt_parts(model: LocalModel, exchange: Exchange, prompt_ids: Sequence[int]) -> PromptParts | None:
    """Return which tokens of a prompt are passages and question; `None` where there is neither to look for.

    They are found by their text. A token at a border counts as theirs. Of passages that contain each other the longer
    one comes first, and of equal ones the first has the tokens. The question is where it stands last outside of them.

    Args:
        model: the scoring model.
        exchange: the exchange as the model reads it.
        prompt_ids: the ids of its prompt.
    """
    question = clean_text((exchange.question or "").strip())
    passages = [clean_text(passage.text.strip()) for passage in exchange.passages]
    if not (question or any(passages)):
        return None
    text, offsets = model.prompt_offsets(prompt_ids, exchange.prompt)
    roles = [REST] * len(prompt_ids)
    for number in sorted(range(len(passages)), key=lambda i: len(passages[i]), reverse=True):
        for start in _places(text, passages[number]):
            taken = _tokens(offsets, start, start + len(passages[number]))
            for token in taken:
                roles[token] = roles[token] or FIRST_PASSAGE + number
    for start in reversed(list(_places(text, question))):
        taken = _tokens(offsets, start, start + len(question))
        if taken and not any(roles[token] for token in taken[1:-1] or taken):
            for token in taken:
                roles[token] = roles[token] or QUESTION
            break
    return PromptParts(tuple(roles), len(passages))


def _places(text: str, part: str) -> Iterator[int]:
    """Yield where a part begins in a text, each time."""
    start = text.find(part) if part else -1
    while start >= 0:
        yield start
        start = text.find(part, start + len(part))


def _tokens(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """Return the tokens that have characters from `start` up to but not including `end`."""
    return [token for token, (first, behind) in enumerate(offsets) if first < end and behind > start and behind > first]
