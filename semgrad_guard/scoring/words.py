"""The words of a text: how all signals of texts see one."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts written without spaces: every character counts as a word."""
_FUNCTION_WORDS = frozenset(
    """
    a about after all also an and any are as at be because been before being between both but by can could did do does
    each for from had has have he her here him his how i if in into is it its itself just may me might more most must my
    no nor not of on one only or other our out over own s same she should so some such t than that the their them then
    there these they this those through to too under until up upon us very was we were what when where which while who
    whom whose why will with would yes you your
    """.split()  # noqa: SIM905 - a list would be a line each
)
"""English words that carry no content; other languages' small words are mostly found in the passages anyway."""


@cache
def _pattern() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c).startswith("M"))
    letter = rf"(?:(?![{_UNSPACED}])[^\W_]|[{re.escape(marks)}])"
    return re.compile(rf"\d+(?:[.,]\d+)+|[{_UNSPACED}]|{letter}+")


def words(text: str) -> list[str]:
    """Return the words of a text in order and normalised: NFKC, case-folded, numbers without thousands separators.

    `1,000.5` is one word `1000.5`; the parts on both sides of an apostrophe or hyphen are two.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return [_number(word) if word[0].isdigit() else word for word in _pattern().findall(plain)]


def content_words(text: str) -> set[str]:
    """Return the content words of a text: no function words, no single letters."""
    return content_of(words(text))


def content_of(text_words: Sequence[str]) -> set[str]:
    """Return the content words among the words of a text."""
    return {sys.intern(word) for word in text_words if _has_content(word)}


def _has_content(word: str) -> bool:
    if word in _FUNCTION_WORDS:
        return False
    return len(word) > 1 or word.isdigit() or bool(re.match(f"[{_UNSPACED}]", word))


def _number(word: str) -> str:
    """Return a number without thousands separators: commas and points before exactly three digits, all of one kind."""
    grouped = re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?|\d{1,3}(\.\d{3}){2,}(,\d+)?", word)
    if grouped is None:
        return word
    return word.replace(",", "") if "," in grouped.group(0)[:4] else word.replace(".", "").replace(",", ".")


def claimed_words(answer: str, question: str) -> set[str]:
    """Return the words that make an answer right or wrong: its content words that are not in the question.

    If there are none, they are its other new words, as in "the symbol is P", or else all its words.
    """
    new = content_words(answer) - content_words(question)
    answer_words = set(words(answer))
    return new or answer_words - set(words(question)) or answer_words


def longest_common_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common run of words; `runs[j]` ends at the present word and at `right[j]`."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(right):
        places.setdefault(word, []).append(j)
    best, runs = 0, dict[int, int]()
    for word in left:
        runs = {j: runs.get(j - 1, 0) + 1 for j in places.get(word, ())}
        best = max(best, *runs.values()) if runs else best
    return best
