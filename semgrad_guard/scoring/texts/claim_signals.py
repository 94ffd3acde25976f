"""The signals of claims: an answer is judged by the weakest thing that it says, so that copied text changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from semgrad_guard.scoring.texts.claims import MOSTLY, altered_share, share_in, shares_in
from semgrad_guard.scoring.texts.novelty import novelty_signals
from semgrad_guard.scoring.texts.words import (
    ABOUT_ANSWERING,
    NEGATIONS,
    claimed_words,
    content_words,
    is_negated,
    name_pairs,
    names,
    numbers,
    units,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from semgrad_guard.scoring.texts.claims import Claim, PassageTexts, Sentence

WEAK = 0.5
"""A claim is weak where a smaller share of its new words stands together in the passages."""
NEARBY = 40
"""How many words before and after an answer word count as near it: two or three sentences."""
SAME = 0.5
"""A passage sentence speaks of a claim where it has this share of the claim's content words."""
ASKED = 0.8
"""Another sentence answers the same question where it has this share of the question's words that the nearest has."""


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


def claim_signals(question: str, answer: str, passages: PassageTexts) -> dict[str, float]:
    """Return the signals of an answer's claims, by their names in `signals`; the weakest claim counts.

    How well a claim answers the question is read of those that are not copied, because text that is copied beside them
    is no answer; where all are copied, of the best.

    Args:
        question: the question alone; empty where it is not known.
        answer: the answer.
        passages: what it may rest on, and the language, for finding sentences.
    """
    claims = passages.claims(answer, question)
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
            "relevant_grounding_mean": mean_of_answer([s.relevant for s in signs], copies),
            "question_nearby": of_answer([s.nearby for s in signs], copies),
            "question_nearby_mean": mean_of_answer([s.nearby for s in signs], copies),
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
    return share_in(claimed_words(" ".join(written), question), passages.all_words)


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
    written = _written(values, copies)
    return min(written) if written else max(values)


def mean_of_answer(values: Sequence[float], copies: Sequence[bool]) -> float:
    """Return the mean value of the claims that are not copies; of the best where all are.

    An answer that was cut short, or that goes on after it has answered, ends with a claim that nothing supports.
    """
    written = _written(values, copies)
    return fmean(written) if written else max(values)


def _written(values: Sequence[float], copies: Sequence[bool]) -> list[float]:
    """Return the values of the claims that are not copies."""
    return [value for value, is_copy in zip(values, copies, strict=True) if not is_copy]


def _signs_of(
    text: str, question: str, asked: set[str], passages: PassageTexts, relevances: NDArray[np.float64]
) -> _ClaimSigns:
    passages.check()
    claimed = claimed_words(text, question)
    nearest = passages.nearest(asked, text)
    copied = passages.copied(text)
    fullest = max(passages.vocabularies, key=lambda vocabulary: (len(claimed & vocabulary), len(asked & vocabulary)))
    return _ClaimSigns(
        grounding=share_in(claimed, passages.all_words),
        support=max(share_in(claimed, s.around) for s in passages.sentences),
        copied=copied,
        is_copy=passages.is_copy(text),
        passage_support=sum(claimed <= vocabulary for vocabulary in passages.vocabularies) / len(passages.texts),
        relevant=float(relevances @ shares_in(claimed, passages.vocabularies)),
        nearby=_nearby(asked, claimed, passages) if asked else 0.0,
        overlap=share_in(asked, fullest),
        negation=_negation_mismatch(text, nearest),
        numbers=_number_mismatch(text, question, nearest),
        names=_name_mismatch(text, asked, nearest),
        altered=altered_share(text, passages),
        disagree=_disagreement(text, asked, nearest, passages),
    )


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


def _negation_mismatch(text: str, nearest: Sentence) -> float:
    """Return the share of a claim's words in a sentence that denies where the claim does not, or the reverse."""
    shared = share_in(content_words(text) - NEGATIONS, nearest.words)
    return shared if shared >= SAME and is_negated(text) != is_negated(nearest.text) else 0.0


def _number_mismatch(text: str, question: str, nearest: Sentence) -> float:
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


def _name_mismatch(text: str, asked: set[str], nearest: Sentence) -> float:
    """Return the share of a claim's names that the nearest sentence lacks, or has beside another name."""
    stated = names(text) - asked
    if not stated:
        return 0.0
    there = list(pairwise(words(nearest.around_text)))
    torn = {word for pair in name_pairs(text) if not asked >= set(pair) and pair not in there for word in pair}
    return len(stated & ((stated - nearest.around) | torn)) / len(stated)


def _disagreement(text: str, asked: set[str], nearest: Sentence, passages: PassageTexts) -> float:
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
