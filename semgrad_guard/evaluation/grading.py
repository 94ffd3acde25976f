"""Is an answer right, given accepted answers? Text comparisons in the manner of SQuAD; no model is asked."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: lower case, without marks and articles."""
    return [word for word in _all_words(text) if word not in _ARTICLES]


def contains_answer(answer: str, references: Sequence[str]) -> bool:
    """Return whether the answer contains an accepted answer as whole words, in order.

    An accepted answer of articles only, such as the vitamin "A", is looked for among all words.

    Source: the usual grading of open-domain question answering with generative models (Kandpal et al. 2023, section 2).
    """
    said, everything = words(answer), _all_words(answer)
    return any(
        _contains(said, wanted) if (wanted := words(reference)) else _contains(everything, _all_words(reference))
        for reference in references
    )


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Return whether the answer is an accepted answer, word by word (SQuAD, Rajpurkar et al. 2016, section 6.1)."""
    said = words(answer)
    return any(bool(said) and said == words(reference) for reference in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of shared words with an accepted answer, in [0, 1] (SQuAD, section 6.1)."""
    said = words(answer)
    return max((_f1(said, words(reference)) for reference in references), default=0.0)


F1_RIGHT = 0.5
"""Shared-word F1 from which an answer counts as right when F1 is the grader."""

GRADERS: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "contains": contains_answer,
    "exact": exact_match,
    "f1": lambda answer, references: token_f1(answer, references) >= F1_RIGHT,
}
"""Graders by the name that commands use."""


def _all_words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _contains(said: Sequence[str], wanted: Sequence[str]) -> bool:
    n = len(wanted)
    return bool(n) and any(said[i : i + n] == wanted for i in range(len(said) - n + 1))


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
