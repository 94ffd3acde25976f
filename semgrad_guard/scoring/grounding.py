"""How much of an answer stands in the passages, counted in words: no model, a millisecond."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from semgrad_guard.scoring.words import content_of, content_words, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange

NEARBY = 40
"""Words before and behind an answer word that count as near it: two or three sentences."""


def grounding_signals(exchange: Exchange, answer: str | None = None) -> dict[str, float]:
    """Return how the answer's words relate to the passages and the question, under the names of `signals`.

    Args:
        exchange: with the passages that the prompt held; without any, only the echo of the question is counted.
        answer: a part of the answer; `None` is the whole.
    """
    text = exchange.answer if answer is None else answer
    asked = content_words(exchange.question or "")
    said = content_words(text)
    found = {"answer_echo": len(said & asked) / len(said)} if said and asked else {}
    if not exchange.passages:
        return found
    passages = [words(passage.text) for passage in exchange.passages]
    vocabularies = [content_of(passage) for passage in passages]
    found["copied_span"] = _copied_span(words(text), passages)
    new = said - asked
    claimed = claimed_words(text, exchange.question or "")
    if claimed:
        held = vocabularies if new else [set(passage) for passage in passages]
        found["grounding"] = len(claimed & set[str]().union(*held)) / len(claimed)
        found["passage_support"] = sum(claimed <= vocabulary for vocabulary in held) / len(held)
    if asked:
        fullest = max(vocabularies, key=lambda vocabulary: (len(new & vocabulary), len(asked & vocabulary)))
        found["question_overlap"] = len(asked & fullest) / len(asked)
        if claimed:
            found["question_nearby"] = _question_nearby(asked, claimed, passages)
    return found


def claimed_words(answer: str, question: str) -> set[str]:
    """Return the words by which an answer can be right or wrong: its content words that the question does not have.

    An answer without any says something by its other new words, as in "the symbol is P", or only repeats.
    """
    new = content_words(answer) - content_words(question)
    said = set(words(answer))
    return new or said - set(words(question)) or said


def _question_nearby(asked: set[str], claimed: set[str], passages: Sequence[Sequence[str]]) -> float:
    """Return how much of the question stands around the answer's words in the best place of a passage.

    A question word counts more the fewer passages have it: ln(1 + passages / passages with it).
    """
    vocabularies = [set(passage) for passage in passages]
    n_with = {word: sum(word in vocabulary for vocabulary in vocabularies) for word in asked}
    weight = {word: math.log1p(len(passages) / max(n, 0.5)) for word, n in n_with.items()}
    total = sum(weight.values())
    best = 0.0
    for passage in passages:
        for place in (i for i, word in enumerate(passage) if word in claimed):
            around = set(passage[max(0, place - NEARBY) : place + NEARBY + 1])
            of_question = sum(weight[word] for word in (asked & around) - claimed) / total
            best = max(best, of_question * len(claimed & around) / len(claimed))
    return best


def _copied_span(answer: Sequence[str], passages: Sequence[Sequence[str]]) -> float:
    """Return the longest run of answer words that a passage holds in order, as a share of the answer's words."""
    if not answer:
        return 0.0
    longest = max(_longest_common_run(answer, passage) for passage in passages)
    return longest / len(answer)


def _longest_common_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest run of words that both hold; `runs[j]` ends at the word and at `right[j]`."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(right):
        places.setdefault(word, []).append(j)
    best, runs = 0, dict[int, int]()
    for word in left:
        runs = {j: runs.get(j - 1, 0) + 1 for j in places.get(word, ())}
        best = max(best, *runs.values()) if runs else best
    return best
