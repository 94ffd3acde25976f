"""Signals by claim: an answer is judged by the weakest thing it says, so that copied text around it changes nothing.

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
from semgrad_guard.scoring.novelty import PassageForms, novelty_signals
from semgrad_guard.scoring.spans import sentence_spans
from semgrad_guard.scoring.words import (
    ABOUT_ANSWERING,
    BEFORE_NT,
    NEGATIONS,
    claimed_words,
    content_of,
    content_words,
    is_negated,
    longest_common_run,
    name_pairs,
    names,
    numbers,
    units,
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
WEAK = 0.5
"""A claim is weak where a smaller share of its new words stands together in the passages."""
NEARBY = 40
"""How many words before and after an answer word count as near it: two or three sentences."""
ALTERED = 0.7
"""A claim is an altered copy where one sentence has this share of its words in the same order, and says otherwise."""
N_LIKEST = 3
"""How many sentences a claim is compared with word by word."""
MOST_ALIGNED = 1_000
"""How many words of a claim and of a sentence are compared so: it takes time that grows with their product."""
SMALL_CHANGE = 3
"""A name or number is changed where at most so many words stand in place of at most so many others."""
SAME = 0.5
"""A passage sentence speaks of a claim where it has this share of the claim's content words."""
ASKED = 0.8
"""Another sentence answers the same question where it has this share of the question's words that the nearest has."""


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
class _Sentence:
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

    def parted(self, claims: Sequence[Claim], question: str = "") -> list[Claim]:
        """Return the claims, with what is said before or after a long copied run as a claim of its own.

        A passage often ends within a sentence; what follows its copy would be joined to it. Altered copies stay whole.
        Where little is written beside copies, every word of it may be the answer; in other answers only what the
        passages lack is parted, as those who write much also quote within sentences.
        """
        known = content_words(question) | ABOUT_ANSWERING

        def is_new(of_words: Sequence[str], _n_least: int) -> bool:
            return bool(content_of(of_words) - known)

        apart = [part for claim in claims for part in self._parts_of(claim, is_new)]
        if self.n_own_words(apart) <= FEW_WORDS:
            return apart
        return [part for claim in claims for part in self._parts_of(claim, self._is_foreign)]

    def _parts_of(self, claim: Claim, is_own: Callable[[Sequence[str], int], bool]) -> Iterator[Claim]:
        start, end = self._run(claim.text)
        if end - start < RUN:
            yield claim
            return
        said, spans, cuts = words(claim.text), word_spans(claim.text), [0, len(claim.text)]
        if len(said) == len(spans):
            is_at_end = any(passage[-RUN:] == said[end - RUN : end] for passage in self.words)
            cuts += [spans[start][0]] if is_own(said[:start], OWN_WORDS) else []
            cuts += [spans[end][0]] if is_own(said[end:], 1 if is_at_end else OWN_WORDS) else []
        if len(cuts) > 2 and _altered(claim.text, self) > 0:
            cuts = cuts[:2]
        for left, right in pairwise(sorted(cuts)):
            yield Claim(claim.start + left, claim.start + right, claim.text[left:right])

    def _is_foreign(self, of_words: Sequence[str], n_least: int) -> bool:
        content = content_of(of_words) - ABOUT_ANSWERING
        return len(content) >= n_least and _share(content, self.all_words, missing=True) >= FOREIGN_PART

    def n_own_words(self, claims: Sequence[Claim]) -> int:
        """Return the number of words of an answer, without copies where most of it is copied and something is not."""
        n_words = {claim: len(words(claim.text)) for claim in claims}
        n_own = sum(n for claim, n in n_words.items() if not self.is_copy(claim.text))
        n_all = sum(n_words.values())
        return n_own if 0 < n_own <= (1 - MOSTLY) * n_all else n_all

    def is_copy(self, text: str) -> bool:
        """Return whether a claim is copied from a passage; few words are not, as everybody uses the same."""
        return _is_copy(text, self.copied(text))

    def nearest(self, asked: set[str], text: str) -> _Sentence:
        """Return the sentence that speaks of what a claim and the question speak of; there must be passages.

        Numbers, names and denials count little, because they are what is then compared.
        """
        said = content_words(text) - NEGATIONS
        subject = said - numbers(text) - names(text)
        return max(
            self.sentences,
            key=lambda s: 2 * _share(subject, s.words) + _share(asked, s.words) + 0.5 * _share(said, s.around),
        )


def _is_copy(text: str, copied: float) -> bool:
    return len(words(text)) >= COPIED_WORDS and copied >= COPIED


def _sentences_of(place: int, text: str, language: str) -> list[_Sentence]:
    texts = [text[start:end] for start, end in sentence_spans(text, language)] or [text]
    found = [frozenset(words(sentence)) for sentence in texts]
    joined = [a | b for a, b in pairwise(found)] + found[-1:]
    both = [f"{a} {b}" for a, b in pairwise(texts)] + texts[-1:]
    return [_Sentence(place, *one) for one in zip(texts, found, both, joined, strict=True)]


@dataclass(frozen=True, slots=True)
class _ClaimSigns:
    """What the texts say about one claim; all are shares."""

    grounding: float
    """Of its new words, those in any passage."""
    support: float
    """Of its new words, those in two neighbouring sentences."""
    copied: float
    is_copy: bool
    passage_support: float
    relevant: float
    nearby: float
    overlap: float
    negation: float
    numbers: float
    names: float
    altered: float
    disagree: float

    def check(self, *, asked: bool) -> float:
        """Return how far the passages say the claim about the question: the product of what must all hold."""
        mismatches = (self.negation, self.numbers, self.names, self.altered)
        kept = math.prod(1 - 0.5 * (1 + share) for share in mismatches if share > 0)
        return self.support * kept * (self.nearby if asked else 1.0)


def claim_signals(question: str, answer: str, passages: PassageTexts, language: str = "en") -> dict[str, float]:
    """Return the signals of an answer's claims, by their names in `signals`; the weakest claim counts.

    How well a claim answers the question is read of those that are not copied, because text that is copied beside them
    is no answer; where all are copied, of the best.

    Args:
        question: the question alone; empty where it is not known.
        answer: the answer.
        passages: what it may rest on.
        language: two-letter code, for finding sentences.
    """
    claims = passages.parted(claims_of(answer, question, language), question)
    found = {
        "n_claims": float(len(claims)),
        "n_words": float(len(words(answer))),
        "n_own_words": float(passages.n_own_words(claims)),
    }
    if not passages.texts:
        return found
    asked = content_words(question)
    relevances = passages.relevances(asked)
    signs = [_signs_of(claim.text, question, asked, passages, relevances) for claim in claims]
    said = content_words(answer) - asked - ABOUT_ANSWERING
    found |= {
        "claim_grounding": min(s.grounding for s in signs),
        "claim_support": min(s.support for s in signs),
        "weak_claims": sum(s.support < WEAK for s in signs) / len(signs),
        "missing_words": float(len(said - passages.all_words)),
        "negation_mismatch": max(s.negation for s in signs),
        "number_mismatch": max(s.numbers for s in signs),
        "name_mismatch": max(s.names for s in signs),
        "altered_copy": _altered_copy(claims, signs),
        "passages_disagree": max(s.disagree for s in signs),
    }
    copies, checks = [s.is_copy for s in signs], [s.check(asked=bool(asked)) for s in signs]
    found |= {
        "copied_span": of_answer([s.copied for s in signs], copies),
        "passage_support": of_answer([s.passage_support for s in signs], copies),
        "claim_check": of_answer(checks, copies),
        "copied_around": _copied_around(claims, signs),
        "written_grounding": _written_grounding(claims, signs, question, passages),
    }
    found |= novelty_signals(answer, question, [claim.text for claim in claims], passages.forms, copies)
    if asked:
        found |= {
            "relevant_grounding": of_answer([s.relevant for s in signs], copies),
            "question_nearby": of_answer([s.nearby for s in signs], copies),
            "question_overlap": of_answer([s.overlap for s in signs], copies),
        }
    return found


def _copied_around(claims: Sequence[Claim], signs: Sequence[_ClaimSigns]) -> float:
    """Return how little supports the weakest claim of its own, where an answer is copied for the most part."""
    if _share_of_words(claims, [sign.is_copy for sign in signs]) < MOSTLY:
        return 0.0
    support = min((sign.support for sign in signs if not sign.is_copy), default=1.0)
    return max(0.0, 1 - support / WEAK)


def _written_grounding(
    claims: Sequence[Claim], signs: Sequence[_ClaimSigns], question: str, passages: PassageTexts
) -> float:
    """Return the share of the new words of the claims that are not copied that the passages contain."""
    written = [claim.text for claim, sign in zip(claims, signs, strict=True) if not sign.is_copy]
    if not written:
        return 1.0
    return _share(claimed_words(" ".join(written), question), passages.all_words)


def _altered_copy(claims: Sequence[Claim], signs: Sequence[_ClaimSigns]) -> float:
    """Return how much of a sentence an altered copy has, where an answer is copied for the most part."""
    copied = _share_of_words(claims, [sign.is_copy or sign.altered > 0 for sign in signs])
    return max(sign.altered for sign in signs) if copied >= MOSTLY else 0.0


def _share_of_words(claims: Sequence[Claim], chosen: Sequence[bool]) -> float:
    """Return the share of an answer's words that are in the chosen claims."""
    n_words = [len(words(claim.text)) for claim in claims]
    return sum(n for n, is_chosen in zip(n_words, chosen, strict=True) if is_chosen) / max(1, sum(n_words))


def of_answer(values: Sequence[float], copies: Sequence[bool]) -> float:
    """Return the value of the weakest claim that is not a copy; of the best where all are.

    Args:
        values: one value a claim; higher is better.
        copies: whether each claim is copied from a passage.
    """
    written = [value for value, is_copy in zip(values, copies, strict=True) if not is_copy]
    return min(written) if written else max(values)


def _signs_of(
    text: str, question: str, asked: set[str], passages: PassageTexts, relevances: NDArray[np.float64]
) -> _ClaimSigns:
    passages.check()
    claimed = claimed_words(text, question)
    nearest = passages.nearest(asked, text)
    copied = passages.copied(text)
    fullest = max(passages.vocabularies, key=lambda vocabulary: (len(claimed & vocabulary), len(asked & vocabulary)))
    return _ClaimSigns(
        grounding=_share(claimed, passages.all_words),
        support=max(_share(claimed, s.around) for s in passages.sentences),
        copied=copied,
        is_copy=_is_copy(text, copied),
        passage_support=sum(claimed <= vocabulary for vocabulary in passages.vocabularies) / len(passages.texts),
        relevant=float(relevances @ shares_in(claimed, passages.vocabularies)),
        nearby=_nearby(asked, claimed, passages) if asked else 0.0,
        overlap=_share(asked, fullest),
        negation=_negation_mismatch(text, nearest),
        numbers=_number_mismatch(text, question, nearest),
        names=_name_mismatch(text, asked, nearest),
        altered=_altered(text, passages),
        disagree=_disagreement(text, asked, nearest, passages),
    )


def shares_in(
    claimed: set[str], texts: Sequence[set[str] | frozenset[str]], check: Callable[[], None] = unhurried
) -> NDArray[np.float64]:
    """Return the share of a claim's words found in each text, after a check."""
    check()
    return np.array([_share(claimed, text) for text in texts])


def _share(part: set[str], whole: set[str] | frozenset[str], *, missing: bool = False) -> float:
    """Return the share of words that a text has, or lacks; of no words none are missing."""
    if not part:
        return 0.0
    return (len(part - whole) if missing else len(part & whole)) / len(part)


def _nearby(asked: set[str], claimed: set[str], passages: PassageTexts) -> float:
    """Return how much of the question is near the claim's words, at the best place in the passages.

    A question word counts more the fewer passages contain it: ln(1 + passages / passages with it).
    """
    n_with = {word: sum(word in vocabulary for vocabulary in passages.vocabularies) for word in asked}
    weight = {word: math.log1p(len(passages.texts) / max(n, 0.5)) for word, n in n_with.items()}
    total = sum(weight.values())
    best = 0.0
    for passage in passages.words:
        for place in (i for i, word in enumerate(passage) if word in claimed):
            passages.check()
            around = set(passage[max(0, place - NEARBY) : place + NEARBY + 1])
            of_question = sum(weight[word] for word in (asked & around) - claimed) / total
            best = max(best, of_question * len(claimed & around) / len(claimed))
    return best


def _negation_mismatch(text: str, nearest: _Sentence) -> float:
    """Return the share of a claim's words in a sentence that denies where the claim does not, or the reverse."""
    shared = _share(content_words(text) - NEGATIONS, nearest.words)
    return shared if shared >= SAME and is_negated(text) != is_negated(nearest.text) else 0.0


def _number_mismatch(text: str, question: str, nearest: _Sentence) -> float:
    """Return the share of a claim's numbers that the nearest sentence lacks, or has with another unit."""
    stated = numbers(text) - numbers(question)
    if not stated:
        return 0.0
    there = numbers(nearest.around_text)
    of_claim, of_sentence = units(text), units(nearest.around_text)
    other_unit = {
        number
        for number in stated & there
        if number in of_claim and number in of_sentence and not of_claim[number] & of_sentence[number]
    }
    return len((stated - there) | other_unit) / len(stated)


def _name_mismatch(text: str, asked: set[str], nearest: _Sentence) -> float:
    """Return the share of a claim's names that the nearest sentence lacks, or has beside another name."""
    stated = names(text) - asked
    if not stated:
        return 0.0
    there = list(pairwise(words(nearest.around_text)))
    torn = {word for pair in name_pairs(text) if not asked >= set(pair) and pair not in there for word in pair}
    return len(stated & ((stated - nearest.around) | torn)) / len(stated)


def _altered(text: str, passages: PassageTexts) -> float:
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


def _changes(said: Sequence[str], sentence: _Sentence) -> tuple[float, list[_Change], _Sentence]:
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


def _says_otherwise(changes: Sequence[_Change], text: str, sentence: _Sentence) -> bool:
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


def _disagreement(text: str, asked: set[str], nearest: _Sentence, passages: PassageTexts) -> float:
    """Return the share of the question in another passage's sentence that gives other numbers or names, or denies."""
    about = asked & nearest.words
    if not about:
        return 0.0
    stated = (numbers(text) | names(text)) - asked
    best = 0.0
    for other in passages.sentences:
        shared = len(asked & other.words)
        if other.passage == nearest.passage or shared < ASKED * len(about):
            continue
        values = (numbers(other.text) if numbers(text) else names(other.text)) - asked
        differs = bool(stated and values) and not stated & (values | other.words)
        if differs or (len(about) > 1 and is_negated(other.text) != is_negated(nearest.text)):
            best = max(best, shared / len(asked))
    return best
