"""The words of a text: how all signals of texts see one."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from semgrad_guard.scoring.budget import unhurried
from semgrad_guard.texts import one_form

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts written without spaces: every character counts as a word."""
_FUNCTION_WORDS = frozenset(
    """
    a about after all also an and any are aren as at be because been before being between both but by can could couldn
    did didn do does doesn don each for from had hadn has hasn have haven he her here him his how i if in into is isn
    it its itself just ll may me might more most must my no nor not of on one only or other our out over own re s same
    she should shouldn so some such t than that the their them then there these they this those through to too under
    until up upon us ve very was wasn we were weren what when where which while who whom whose why will with would
    wouldn yes you your
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
    plain = one_form(text).casefold()
    return [_number(word) if word[0].isdigit() else word for word in _pattern().findall(plain)]


def content_words(text: str) -> set[str]:
    """Return the content words of a text: no function words, no single letters."""
    return content_of(words(text))


def content_of(text_words: Sequence[str]) -> set[str]:
    """Return the content words among the words of a text."""
    return {sys.intern(word) for word in text_words if _has_content(word)}


def content_places(text: str) -> list[int]:
    """Return where the content words of a text begin; where there are none, all its words."""
    found = [(match.start(), match.group()) for match in _pattern().finditer(text)]
    with_content = [place for place, word in found if _has_content(one_form(word).casefold())]
    return with_content or [place for place, _ in found]


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


ABOUT_ANSWERING = frozenset(
    """
    according answer answers asked based conclude conclusion context document documents following given hence here
    information mentioned passage passages provided question questions reads response says short source sources stated
    states summary text texts therefore thus
    """.split()  # noqa: SIM905 - a list would be a line each
)
"""English words by which an answer speaks of itself and of what it was given; no passage need contain them."""


def claimed_words(answer: str, question: str) -> set[str]:
    """Return the words that make an answer right or wrong: its content words that are not in the question.

    Words about answering do not count. If there are none, they are its other new words, as in "the symbol is P", or
    else all its words.
    """
    new = content_words(answer) - content_words(question) - ABOUT_ANSWERING
    answer_words = set(words(answer))
    return new or answer_words - set(words(question)) or answer_words


def longest_common_run(
    left: Sequence[str], right: Sequence[str], check: Callable[[], None] = unhurried
) -> tuple[int, int]:
    """Return where the longest common run of words begins and ends in `left`; it is empty where they share none.

    The same words again and again take time that grows with the square: `check` is called before each.
    """
    places: dict[str, list[int]] = {}
    for j, word in enumerate(right):
        places.setdefault(word, []).append(j)
    best, end, runs = 0, 0, dict[int, int]()  # `runs[j]` ends at the present word and at `right[j]`
    for i, word in enumerate(left):
        check()
        runs = {j: runs.get(j - 1, 0) + 1 for j in places.get(word, ())}
        longest = max(runs.values(), default=0)
        if longest > best:
            best, end = longest, i + 1
    return end - best, end


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text begin and end; a letter that stands for two is one here."""
    return [match.span() for match in _pattern().finditer(text)]


NEGATIONS = frozenset(
    """
    cannot deny denied denies false falsely hardly incorrect incorrectly neither never no nobody none nor not nothing
    nowhere untrue without wrong wrongly
    """.split()  # noqa: SIM905 - a list would be a line each
)
"""English words that deny."""
BEFORE_NT = frozenset(
    """
    ain aren couldn didn doesn don hadn hasn haven isn mustn needn shouldn wasn weren won wouldn
    """.split()  # noqa: SIM905 - a list would be a line each
)
"""What stands before "n't" where the words of a text were split at apostrophes; "can't" is not told from "can"."""
_SHORT_NOT = re.compile(r"n['\u2019]t\b", re.IGNORECASE)


def is_negated(text: str) -> bool:
    """Return whether an English text denies: it has an odd number of negations."""
    return (sum(word in NEGATIONS for word in words(text)) + len(_SHORT_NOT.findall(text))) % 2 == 1


_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        """
        two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty
        """.split(),  # noqa: SIM905 - a list would be a line each
        start=2,
    )
}


def numbers(text: str) -> set[str]:
    """Return the numbers of a text, English number words from two to twenty as digits."""
    return {_NUMBER_WORDS.get(word, word) for word in words(text) if word in _NUMBER_WORDS or word[0].isdigit()}


_MONEY = "$\u20ac\u00a3\u00a5"
_UNIT = re.compile(
    rf"(\d[\d.,]*+)(?:[ \u00a0]?([^\W\d_]++|[%\u00b0{_MONEY}][^\W\d_]?))?|([{_MONEY}])[ \u00a0]?(\d[\d.,]*+)"
)
"""A number, as far as it goes, with its unit where it has one: so that no digit is looked at twice."""


def units(text: str) -> dict[str, set[str]]:
    """Return the word or sign beside each number of a text, such as `{"5": {"kg"}}`, without function words."""
    found: dict[str, set[str]] = {}
    for after, unit, sign, before in _UNIT.findall(one_form(text)):
        number = (words(after or before) or [""])[0]
        beside = (unit or sign).casefold()
        if number and beside and beside not in _FUNCTION_WORDS:
            found.setdefault(number, set()).add(beside.rstrip("s") or beside)
    return found


_NAME = re.compile(r"(?<=[\w,;:)'\u2019] )[A-Z][\w\u2019'-]*")


def names(text: str) -> set[str]:
    """Return the words of a text that are written as names: with a capital, and not at the start of a sentence."""
    return content_of([word for found in _NAME.findall(text) for word in words(found)])


_NAME_PAIR = re.compile(r"(?=\b([A-Z][\w\u2019'-]{0,60}) ([A-Z][\w\u2019'-]{0,60}))")
"""No name is longer; without a limit, a text of thousands of capitals would take time that grows with its square."""


def name_pairs(text: str) -> list[tuple[str, str]]:
    """Return every two words in a row that are both written as names, such as first name and surname."""
    pairs = [(words(left), words(right)) for left, right in _NAME_PAIR.findall(text)]
    return [(left[-1], right[0]) for left, right in pairs if left and right and left[-1] not in _FUNCTION_WORDS]
