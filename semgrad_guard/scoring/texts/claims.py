"""The claims of an answer, and the passages that they are compared with: what is copied, and what is altered in it.

A claim is a sentence of the answer, without those that only repeat the question. Passages that give orders to a model
support nothing.
"""

from __future__ import annotations

import heapq
import math
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from semgrad_guard.scoring.budget import unhurried
from semgrad_guard.scoring.texts.novelty import PassageForms
from semgrad_guard.scoring.texts.spans import sentence_spans
from semgrad_guard.scoring.texts.words import (
    ABOUT_ANSWERING,
    BEFORE_NT,
    NEGATIONS,
    content_of,
    content_words,
    is_negated,
    longest_common_run,
    names,
    numbers,
    word_spans,
    words,
)
from semgrad_guard.suspicious import gives_orders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Exchange

    _Change = tuple[Sequence[str], Sequence[str]]
    """Words of a claim, and those that stand in their place in a sentence."""

COPIED, COPIED_WORDS = 0.9, 5
"""A claim is a copy where one passage has this share of its words in the same order, and it has at least so many."""
RUN, OWN_WORDS, FOREIGN_PART = 12, 4, 0.5
"""What stands before or after a copied run of so many words is a claim of its own where it has so many content words,
or one after the last word of a passage, and the passages lack this share of them."""
FEW_WORDS = 12
"""An answer with at most so many words of its own is a short one, however much it copies."""
MOSTLY = 0.6
"""An answer is copied for the most part where this share of its words is in copied claims."""
ALTERED = 0.7
"""A claim is an altered copy where one sentence has this share of its words in the same order, and says otherwise."""
N_LIKEST = 3
"""How many sentences a claim is compared with word by word."""
MOST_ALIGNED = 1_000
"""How many words of a claim and of a sentence are compared so: it takes time that grows with their product."""
SMALL_CHANGE = 3
"""A name or number is changed where at most so many words stand in place of at most so many others."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that an answer says."""

    start: int
    """Offset of its first character in the answer."""
    end: int
    """Offset after its last character."""
    text: str


def claims_of(answer: str, question: str = "", language: str = "en") -> list[Claim]:
    """Return the claims of an answer: its sentences, without those that only repeat the question.

    Where nothing else is left, all sentences are claims.

    Args:
        answer: the answer.
        question: the question alone; empty where it is not known.
        language: two-letter code, for finding sentences.
    """
    spans = sentence_spans(answer, language) or [(0, len(answer))]
    claims = [Claim(start, end, answer[start:end]) for start, end in _with_leading_number(answer, spans)]
    asked = content_words(question) | ABOUT_ANSWERING
    new = [claim for claim in claims if not _repeats(claim.text, asked)]
    return new or claims


_LEADING_NUMBER = re.compile(r"(\d{1,9})[.:]\s+(?=\w)")


def _with_leading_number(answer: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the spans, with a number at the start of one as a claim of its own unless it numbers a list."""
    found = [_LEADING_NUMBER.match(answer, start, end) for start, end in spans]
    values = {int(number[1]) for number in found if number}
    for (start, end), number in zip(spans, found, strict=True):
        if number is None or values & {int(number[1]) - 1, int(number[1]) + 1}:
            yield start, end
        else:
            yield start, number.end(1)
            yield number.end(), end


def _repeats(text: str, asked: set[str]) -> bool:
    said = content_words(text)
    return bool(said) and said <= asked and not is_negated(text)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage."""

    passage: int
    text: str
    words: frozenset[str]
    around_text: str
    """The sentence and the next."""
    around: frozenset[str]
    """Words of both."""


WORD_CONTRAST = 0.1
"""A passage with so many more of a question's words, as a share, is e times as relevant."""


def as_shares(values: NDArray[np.float64], contrast: float) -> NDArray[np.float64]:
    """Return shares that add up to 1; a value larger by `contrast` has e times the share (softmax)."""
    powers = np.exp((values - values.max()) / contrast)
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}$")


def title_of(source: str | None) -> str:
    """Return what a source says about its content, in words: a title, or the last part of a path or URL."""
    scheme, separator, rest = (source or "").partition("://")
    text = re.split(r"[?#]", rest)[0].rstrip("/") if separator else scheme
    if separator or _EXTENSION.search(text):
        text = _EXTENSION.sub("", re.split(r"[/\\]", text)[-1])
    return re.sub(r"[_\W]+", " ", unquote(text)).strip()


class PassageTexts:
    """The passages of an exchange as claims are compared with them, without those that give orders."""

    def __init__(
        self,
        texts: Sequence[str],
        language: str = "en",
        check: Callable[[], None] = unhurried,
        *,
        sources: Sequence[str | None] = (),
    ) -> None:
        """Split the passages into words and sentences.

        Args:
            texts: the passages' texts. Those that give orders are left out; where all do, one empty passage is left,
                which supports nothing.
            language: two-letter code, for finding sentences.
            check: called between pieces of work, here and where they are compared; what it raises ends it.
            sources: where each came from; its title says what it is about.
        """
        self.check = check
        pairs = zip_longest(texts, map(title_of, sources), fillvalue="")
        kept = [(text, title) for text, title in pairs if not gives_orders(text)]
        self.n_suspicious = len(texts) - len(kept)
        kept = kept or [("", "")] * bool(texts)
        self.language = language
        self.texts = [text for text, _ in kept]
        self.titles = [title for _, title in kept]
        self.words = [words(text) for text in self.texts]
        self._runs = dict[str, tuple[int, int]]()
        self._claims = dict[tuple[str, str], list[Claim]]()
        self.vocabularies = [set(passage) for passage in self.words]
        self.all_words = set[str]().union(*self.vocabularies)
        self.sentences = [
            sentence for place, text in enumerate(self.texts) for sentence in _sentences_of(place, text, language)
        ]

    @classmethod
    def of(cls, exchange: Exchange, language: str = "en", check: Callable[[], None] = unhurried) -> PassageTexts:
        """Return the texts of an exchange's passages."""
        passages = exchange.passages
        texts, sources = [passage.text for passage in passages], [passage.source for passage in passages]
        return cls(texts, language, check, sources=sources)

    @cached_property
    def forms(self) -> PassageForms:
        """Their words in any form."""
        return PassageForms(self.words, self.texts, self.language)

    def relevances(self, asked: set[str]) -> NDArray[np.float64]:
        """Return how far each passage is about the words of a question; together 1.

        A word counts more the fewer passages have it, and half again in a title.
        """
        titles = [set(words(title)) for title in self.titles]
        both = [title | text for title, text in zip(titles, self.vocabularies, strict=True)]
        n, n_with = len(both), {word: sum(word in vocabulary for vocabulary in both) for word in asked}
        weight = {word: math.log1p((n - n_with[word] + 0.5) / (n_with[word] + 0.5)) for word in asked}
        total = sum(weight.values()) or 1.0
        found = [
            sum(weight[word] for word in asked & whole) + 0.5 * sum(weight[word] for word in asked & title)
            for whole, title in zip(both, titles, strict=True)
        ]
        return as_shares(np.array(found) / total, WORD_CONTRAST)

    def copied(self, text: str) -> float:
        """Return the longest run of a text's words that one passage has in the same order, as a share of them."""
        start, end = self._run(text)
        return (end - start) / max(1, len(words(text)))

    def _run(self, text: str) -> tuple[int, int]:
        """Return where the longest copied run of words begins and ends among a text's words; found once."""
        if text not in self._runs:
            said = words(text)
            runs = (longest_common_run(said, passage, self.check) for passage in self.words)
            self._runs[text] = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
        return self._runs[text]

    def claims(self, answer: str, question: str = "") -> list[Claim]:
        """Return the claims of an answer, parted from what it copies; found once for all signals."""
        key = (answer, question)
        if key not in self._claims:
            self._claims[key] = self.parted(claims_of(answer, question, self.language), question)
        return self._claims[key]

    def parted(self, claims: Sequence[Claim], question: str = "") -> list[Claim]:
        """Return the claims, with what is said before or after a long copied run as a claim of its own.

        A passage often ends within a sentence; what follows its copy would be joined to it. Altered copies stay whole.
        Where little is written beside copies, every word of it may be the answer; in other answers only what the
        passages lack is parted, as those who write much also quote within sentences.
        """
        known = content_words(question) | ABOUT_ANSWERING

        def is_new(of_words: Sequence[str], _n_least: int) -> bool:
            return bool(content_of(of_words) - known)

        apart = [part for claim in claims for part in self._parts_of(claim, is_new, known)]
        if self.n_own_words(apart) <= FEW_WORDS:
            return apart
        return [part for claim in claims for part in self._parts_of(claim, self._is_foreign, known)]

    def _parts_of(self, claim: Claim, is_own: Callable[[Sequence[str], int], bool], known: set[str]) -> Iterator[Claim]:
        start, end = self._run(claim.text)
        if end - start < COPIED_WORDS:
            yield claim
            return
        said, spans, cuts = words(claim.text), word_spans(claim.text), [0, len(claim.text)]
        is_aligned = len(said) == len(spans)
        if is_aligned and _is_quoted(claim.text, spans[start:end]):
            yield from _with_quotation(claim, spans[start][0], spans[end - 1][1], known)
            return
        if end - start < RUN:
            yield claim
            return
        if is_aligned:
            is_at_end = any(passage[-RUN:] == said[end - RUN : end] for passage in self.words)
            cuts += [spans[start][0]] if is_own(said[:start], OWN_WORDS) else []
            cuts += [spans[end][0]] if is_own(said[end:], 1 if is_at_end else OWN_WORDS) else []
        if len(cuts) > 2 and altered_share(claim.text, self) > 0:
            cuts = cuts[:2]
        for left, right in pairwise(sorted(cuts)):
            yield Claim(claim.start + left, claim.start + right, claim.text[left:right])

    def _is_foreign(self, of_words: Sequence[str], n_least: int) -> bool:
        content = content_of(of_words) - ABOUT_ANSWERING
        return len(content) >= n_least and share_in(content, self.all_words, missing=True) >= FOREIGN_PART

    def n_own_words(self, claims: Sequence[Claim]) -> int:
        """Return the number of words of an answer, without copies where most of it is copied and something is not."""
        n_words = {claim: len(words(claim.text)) for claim in claims}
        n_own = sum(n for claim, n in n_words.items() if not self.is_copy(claim.text))
        n_all = sum(n_words.values())
        return n_own if 0 < n_own <= (1 - MOSTLY) * n_all else n_all

    def is_copy(self, text: str) -> bool:
        """Return whether a claim is copied from a passage; few words are not, as everybody uses the same."""
        return len(words(text)) >= COPIED_WORDS and self.copied(text) >= COPIED

    def nearest(self, asked: set[str], text: str) -> Sentence:
        """Return the sentence that speaks of what a claim and the question speak of; there must be passages.

        Numbers, names and denials count little, because they are what is then compared.
        """
        said = content_words(text) - NEGATIONS
        subject = said - numbers(text) - names(text)
        return max(
            self.sentences,
            key=lambda s: 2 * share_in(subject, s.words) + share_in(asked, s.words) + 0.5 * share_in(said, s.around),
        )


_OPENED, _CLOSED = re.compile(r"[\"“„«]\s*$"), re.compile(r"[\s.,;:!?…]*[\"”“»]")


def _is_quoted(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """Return whether all between two quotation marks of a text is a run of words."""
    return bool(_OPENED.search(text, 0, spans[0][0]) and _CLOSED.match(text, spans[-1][1]))


def _with_quotation(claim: Claim, start: int, end: int, known: set[str]) -> Iterator[Claim]:
    """Yield what a claim quotes, and what it says before and after that in words that are not known."""
    for left, right in ((0, start), (start, end), (end, len(claim.text))):
        part = Claim(claim.start + left, claim.start + right, claim.text[left:right])
        if left == start or content_words(part.text) - known:
            yield part


def _sentences_of(place: int, text: str, language: str) -> list[Sentence]:
    texts = [text[start:end] for start, end in sentence_spans(text, language)] or [text]
    found = [frozenset(words(sentence)) for sentence in texts]
    joined = [a | b for a, b in pairwise(found)] + found[-1:]
    both = [f"{a} {b}" for a, b in pairwise(texts)] + texts[-1:]
    return [Sentence(place, *one) for one in zip(texts, found, both, joined, strict=True)]


def shares_in(
    claimed: set[str], texts: Sequence[set[str] | frozenset[str]], check: Callable[[], None] = unhurried
) -> NDArray[np.float64]:
    """Return the share of a claim's words found in each text, after a check."""
    check()
    return np.array([share_in(claimed, text) for text in texts])


def share_in(part: set[str], whole: set[str] | frozenset[str], *, missing: bool = False) -> float:
    """Return the share of words that a text has, or lacks; of no words none are missing."""
    if not part:
        return 0.0
    return (len(part - whole) if missing else len(part & whole)) / len(part)


def altered_share(text: str, passages: PassageTexts) -> float:
    """Return the share of a claim's words that a sentence has in the same order, where the claim says otherwise.

    It says otherwise with one denial more or fewer, or with another name or number in the same place. A sentence that
    is copied whole, or shortened, or said in other words, is not altered.
    """
    said = words(text)[:MOST_ALIGNED]
    if len(said) < COPIED_WORDS:
        return 0.0
    content = content_of(said) - ABOUT_ANSWERING
    likest = heapq.nlargest(N_LIKEST, passages.sentences, key=lambda s: len(content & s.words))
    share, changes, sentence = max((_changes(said, s) for s in likest), key=lambda found: found[0])
    return share if share >= ALTERED and _says_otherwise(changes, text, sentence) else 0.0


def _changes(said: Sequence[str], sentence: Sentence) -> tuple[float, list[_Change], Sentence]:
    """Return the share of a claim's words that a sentence has in the same order, and what differs between them."""
    there = words(sentence.text)[:MOST_ALIGNED]
    parts = SequenceMatcher(None, said, there, autojunk=False).get_opcodes()
    same = sum(end - start for kind, start, end, _, _ in parts if kind == "equal")
    changes: list[_Change] = [
        (said[start:end], there[left:right])
        for kind, start, end, left, right in parts
        if kind != "equal"
        and not (kind == "insert" and start in {0, len(said)})  # shortened
        and not (start == 0 and end - start <= SMALL_CHANGE)  # numbered or led in otherwise
    ]
    return same / len(said), changes, sentence


def _says_otherwise(changes: Sequence[_Change], text: str, sentence: Sentence) -> bool:
    """Return whether one of the changes is a denial, or puts another name or number in the place of one."""
    values = names(f"x {text}") | names(f"x {sentence.text}")

    def is_value(word: str) -> bool:
        return word in values or word[0].isdigit()

    return any(
        _is_denial(new) != _is_denial(old)
        or (
            max(len(new), len(old)) <= SMALL_CHANGE
            and any(is_value(word) and word not in sentence.words for word in new)
            and any(is_value(word) for word in old)
        )
        for new, old in changes
    )


def _is_denial(of_words: Sequence[str]) -> bool:
    return sum(word in NEGATIONS or word in BEFORE_NT for word in of_words) % 2 == 1
