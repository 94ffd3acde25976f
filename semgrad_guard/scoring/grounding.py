"""How much of an answer stands in the passages, counted in words: no model, a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.scoring.words import content_words, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange


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
    passages = [passage.text for passage in exchange.passages]
    vocabularies = [content_words(passage) for passage in passages]
    found["copied_span"] = _copied_span(words(text), [words(passage) for passage in passages])
    new = said - asked
    claimed = new or _bare_words(text, exchange.question or "")
    if claimed:
        held = vocabularies if new else [set(words(passage)) for passage in passages]
        found["grounding"] = len(claimed & set[str]().union(*held)) / len(claimed)
        found["passage_support"] = sum(claimed <= vocabulary for vocabulary in held) / len(held)
    if asked:
        fullest = max(vocabularies, key=lambda vocabulary: (len(new & vocabulary), len(asked & vocabulary)))
        found["question_overlap"] = len(asked & fullest) / len(asked)
    return found


def _bare_words(text: str, question: str) -> set[str]:
    """Return what an answer without new content words says: its new words of any kind, as in "the symbol is P"."""
    said = set(words(text))
    return said - set(words(question)) or said


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
