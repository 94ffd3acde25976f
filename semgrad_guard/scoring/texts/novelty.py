"""What an answer says that its passages do not: words in any form, words side by side, numbers.

Long answers say the same in other forms ("was acquired", "acquiring"), so words are compared by their stems (Snowball);
and an answer may be made of the passages' words and yet join them wrongly, so neighbours are looked for as neighbours.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

import snowballstemmer

from semgrad_guard.scoring.texts.words import ABOUT_ANSWERING, content_of, content_words, numbers, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHORTEST = 4
"""Shorter words are told from others too badly to have neighbours; every letter counts in scripts other than Latin."""
NEAR = 8
"""Content words so many places apart stand together."""
UNSUPPORTED = 0.3
"""A claim with a larger share of new words that no passage has in any form is not supported."""
FOREIGN, FOREIGN_WORDS = 0.7, 4
"""A claim of so many words or more is foreign where the passages lack this share of them and the question all."""
_LEAST_WORDS = 2
"""A claim with fewer new words cannot be judged by a share of them."""
_LANGUAGES = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""Two-letter codes of the languages whose words have stems here; words of others are compared as they are."""


@cache
def _stemmer(language: str) -> Any:
    name = _LANGUAGES.get(language, "")
    return snowballstemmer.stemmer(name) if name in snowballstemmer.algorithms() else None


@lru_cache(maxsize=2**16)
def stem_of(word: str, language: str = "en") -> str:
    """Return the stem of a word, as `acquir` of `acquired`."""
    stemmer = _stemmer(language)
    return str(stemmer.stemWord(word)) if stemmer else word


class PassageForms:
    """The words of passages in any form, and where they stand."""

    def __init__(self, passages: Sequence[Sequence[str]], texts: Sequence[str], language: str) -> None:
        """Read the passages.

        Args:
            passages: the words of each.
            texts: its text, for its numbers.
            language: two-letter code.
        """
        self._language = language
        self.stems = self.stems_of(set[str]().union(*passages))
        self.numbers = set[str]().union(*map(numbers, texts))
        self._places = [self._places_of(passage) for passage in passages]

    def stems_of(self, of_words: Iterable[str]) -> set[str]:
        """Return the stems of words."""
        return {stem_of(word, self._language) for word in of_words}

    def in_order(self, text_words: Sequence[str]) -> list[str]:
        """Return the stems of the words of a text that can be told from others: numbers, and those of some length."""
        kept = content_of(text_words)
        return [
            stem_of(word, self._language)
            for word in text_words
            if word in kept and (len(word) >= SHORTEST or not word[0].isascii() or word[0].isdigit())
        ]

    def stand_together(self, left: str, right: str) -> bool:
        """Return whether a passage has two stems near each other, in any order."""
        return left == right or any(
            not places[right].isdisjoint(range(place - NEAR + 1, place + NEAR))
            for places in self._places
            if left in places and right in places
            for place in places[left]
        )

    def _places_of(self, passage: Sequence[str]) -> dict[str, set[int]]:
        places = dict[str, set[int]]()
        for place, stem in enumerate(self.in_order(passage)):
            places.setdefault(stem, set()).add(place)
        return places


def novelty_signals(
    answer: str, question: str, claims: Sequence[str], passages: PassageForms, copies: Sequence[bool] = ()
) -> dict[str, float]:
    """Return what an answer says that its passages do not, by the names in `signals`.

    Args:
        answer: the answer.
        question: the question alone; its words are nothing new.
        claims: the answer's claims.
        passages: what it may rest on.
        copies: whether each claim is copied from a passage; none is where this is left out.
    """
    asked = content_words(question)
    known = asked | ABOUT_ANSWERING
    pairs = list(pairwise(passages.in_order(words(answer))))
    apart = sum(not passages.stand_together(left, right) for left, right in pairs)
    written = [claim for claim, is_copy in zip_longest(claims, copies) if not is_copy]
    return {
        "foreign_claim": max((_foreign(claim, asked, passages) for claim in written), default=0.0),
        "unsupported_words": _missing(content_words(answer) - known, passages),
        "unsupported_pairs": apart / max(1, len(pairs)),
        "n_unsupported_pairs": float(apart),
        "unsupported_numbers": float(len(numbers(answer) - passages.numbers)),
        "unsupported_claims": float(sum(_is_unsupported(claim, known, passages) for claim in claims)),
    }


def _is_unsupported(claim: str, known: set[str], passages: PassageForms) -> bool:
    new = content_words(claim) - known
    return len(new) >= _LEAST_WORDS and _missing(new, passages) > UNSUPPORTED


def _foreign(claim: str, asked: set[str], passages: PassageForms) -> float:
    """Return the share of a claim's words that no passage has, where it is about neither question nor passages."""
    said = content_words(claim) - ABOUT_ANSWERING
    if said & asked or len(passages.stems_of(said)) < FOREIGN_WORDS:
        return 0.0
    missing = _missing(said, passages)
    return missing if missing >= FOREIGN else 0.0


def _missing(new: set[str], passages: PassageForms) -> float:
    stems = passages.stems_of(new)
    return len(stems - passages.stems) / max(1, len(stems))
