"""Every signal: name, unit, direction, words, family, cost and source. This table is the only place that lists them.

A signal is one raw number about an answer; those of one answer are found in `Score.signals` by name. One that cannot be
computed (grounding without passages, a position before the prompt's first token) is absent, never a made-up number.

To add a signal, add its row here and compute it where its family is computed: gradients and likelihoods in
`scoring.measure`, where words begin in `scoring.starts`, attention in `scoring.attention_signals`, claims in
`scoring.texts.claim_signals`, what passages lack in `scoring.texts.novelty`, other texts and meaning in
`scoring.texts.text_signals`, further forward passes in `scoring.forward_signals`, probes in `calibration.probes`,
samples in `evaluation.compare.sampled_signals`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

PAPER = "SemGrad (arXiv 2605.04638), section 3"
Cost = Literal["free", "text", "probe", "embedding", "forward", "sampling"]
"""`free`: comes with the one backward pass; `text`: counts words, no model; `probe`: comes with that pass too, and a
profile turns it into a number; `embedding`: sentence embeddings, where an embedder is given; `forward`: another forward
pass; `sampling`: further answers, in `evaluate` only."""
Family = Literal["gradient", "likelihood", "attention", "probe", "text", "embedding", "forward", "sampling"]
"""What a signal is computed from."""
COUNTS = frozenset({"tokens", "words", "passages", "claims", "pairs", "numbers"})
"""Units of signals that count something."""
DIRECTIONS: Mapping[str, int] = {"less sure": -1, "either": 0, "more sure": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What a signal means."""

    name: str
    meaning: str
    unit: str
    higher: Literal["less sure", "more sure", "either"]
    """What a higher value says about the answer; `either` where only labels can tell."""
    source: str
    family: Family = "text"
    cost: Cost = "text"
    lowers: str = ""
    """Why a confidence is low because of it, in words; empty where its value is shown instead."""
    raises: str = ""
    """Why a confidence is high because of it, in words."""
    is_score: bool = False
    """True when it can be a score's value: >= 0, higher is less sure."""
    required: bool = True
    """Whether a profile that uses it may demand it; otherwise the average stands in where an answer has none."""
    ranks: bool = True
    """False when it orders answers exactly as another signal does, so it is of use inside a fusion only."""
    tampering: bool = False
    """Whether it is a sign that an answer was made to look right; few honest answers show it."""

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value that there can be, by the unit."""
        if self.unit == "share":
            return 0.0, 1.0
        if self.unit == "cosine":
            return -2.0, 2.0  # a margin is the difference of two
        return (0.0 if self.is_score or self.unit in COUNTS else -math.inf), math.inf

    @property
    def direction(self) -> int:
        """1 where a higher value can only raise confidence, -1 where it can only lower it, 0 where labels decide."""
        return DIRECTIONS[self.higher]


POSITIONS = (-1, -2, -3, -4, -5)
"""Prompt positions whose SemGrad is reported as `semgrad@-1` and so on: the same backward pass gives them all."""


def semgrad_at(position: int) -> str:
    """Return the name of the SemGrad signal at one prompt position."""
    return f"semgrad@{position}"


def base_name(signal: str) -> str:
    """Return a signal's name without its variant, for example `semgrad` of `semgrad@-3`."""
    return signal.split("@", 1)[0]


def _family(family: Family, cost: Cost, *signals: Signal) -> tuple[Signal, ...]:
    """Return signals as one family, which share what they cost."""
    return tuple(replace(signal, family=family, cost=cost) for signal in signals)


_SEMGRAD = Signal(
    name="semgrad",
    meaning="mean |gradient of the objective by the hidden states at t*| over the layer band",
    unit="nats² per unit of state",
    higher="less sure",
    source=PAPER,
    lowers="the answer is sensitive to the meaning of the question",
    raises="the answer is steady in meaning",
    is_score=True,
)
_GRADIENTS = _family(
    "gradient",
    "free",
    _SEMGRAD,
    *(replace(_SEMGRAD, name=semgrad_at(p), meaning=f"semgrad with t* at {p} of the prompt") for p in POSITIONS),
    Signal(
        name="paragrad",
        meaning="mean |gradient of the objective by the output head's weight|, the head's own path",
        unit="nats² per unit of weight",
        higher="less sure",
        source=PAPER,
        lowers="the answer pulls hard on the model's weights",
        raises="the answer fits the model's weights",
        is_score=True,
    ),
    Signal(
        name="hybridgrad",
        meaning="e^-w paragrad + (1 - e^-w) semgrad, where w is the mean entropy",
        unit="nats²",
        higher="less sure",
        source=PAPER,
        lowers="the answer's gradients are large",
        raises="the answer's gradients are small",
        is_score=True,
    ),
    Signal(
        name="exgrad",
        meaning="paragrad with every token's weight 1 in place of its entropy",
        unit="nats per unit of weight",
        higher="less sure",
        source="ExGrad, the unweighted baseline of " + PAPER,
        lowers="the answer's likelihood gradient is large",
        raises="the answer's likelihood gradient is small",
        is_score=True,
    ),
)

_LIKELIHOODS = _family(
    "likelihood",
    "free",
    Signal(
        name="loss",
        meaning="the objective itself: mean of entropy times negative log-likelihood",
        unit="nats²",
        higher="less sure",
        source=PAPER,
        lowers="the answer's uncertain tokens are unlikely",
        raises="the answer's uncertain tokens are likely",
        is_score=True,
    ),
    Signal(
        name="mean_nll",
        meaning="mean negative log-likelihood of the answer's tokens",
        unit="nats",
        higher="less sure",
        source="log-perplexity",
        lowers="the answer's tokens are unlikely",
        raises="the answer's tokens are likely",
        is_score=True,
    ),
    Signal(
        name="sum_nll",
        meaning="negative log-likelihood of the whole answer",
        unit="nats",
        higher="less sure",
        source="sequence likelihood",
        lowers="the whole answer is unlikely",
        raises="the whole answer is likely",
        is_score=True,
    ),
    Signal(
        name="max_nll",
        meaning="negative log-likelihood of the least likely token",
        unit="nats",
        higher="less sure",
        source="maximum token surprise",
        lowers="one token of the answer is very unlikely",
        raises="no token of the answer is unlikely",
        is_score=True,
    ),
    Signal(
        name="first_nll",
        meaning="negative log-likelihood of the first token",
        unit="nats",
        higher="less sure",
        source="first-token surprise",
        lowers="the first token is unlikely",
        raises="the first token is likely",
        is_score=True,
    ),
    Signal(
        name="mean_entropy",
        meaning="mean entropy of the predicting distributions",
        unit="nats",
        higher="less sure",
        source="token entropy",
        lowers="many other tokens were possible",
        raises="few other tokens were possible",
        is_score=True,
    ),
    Signal(
        name="max_entropy",
        meaning="largest entropy of the predicting distributions",
        unit="nats",
        higher="less sure",
        source="token entropy",
        lowers="one token was close to a guess",
        raises="no token was a guess",
        is_score=True,
    ),
    Signal(
        name="first_entropy",
        meaning="entropy of the distribution that predicts the first token",
        unit="nats",
        higher="less sure",
        source="token entropy",
        lowers="the first token was close to a guess",
        raises="the first token was clear",
        is_score=True,
    ),
    Signal(
        name="min_prob",
        meaning="probability of the least likely token: e^-max_nll",
        unit="share",
        higher="more sure",
        source="as max_nll",
        lowers="one token of the answer is very unlikely",
        raises="no token of the answer is unlikely",
        ranks=False,
    ),
    Signal(
        name="first_prob",
        meaning="probability of the first token: e^-first_nll",
        unit="share",
        higher="more sure",
        source="as first_nll",
        lowers="the first token is unlikely",
        raises="the first token is likely",
        ranks=False,
    ),
    Signal(
        name="mean_top_prob",
        meaning="mean probability of the likeliest token",
        unit="share",
        higher="more sure",
        source="maximum softmax",
        lowers="no token was clearly the likeliest",
        raises="the likeliest tokens were clear",
    ),
    Signal(
        name="off_top_share",
        meaning="share of the answer's tokens that were not the likeliest: 0 for greedy answers",
        unit="share",
        higher="less sure",
        source="rank of the written token",
        lowers="tokens were written that were not the likeliest",
        raises="the likeliest tokens were written",
    ),
    Signal(
        name="n_answer_tokens",
        meaning="number of answer tokens, with the end-of-turn token where there is one",
        unit="tokens",
        higher="either",
        source="length",
    ),
)

_STARTS = _family(
    "likelihood",
    "free",
    Signal(
        name="word_start_nll",
        meaning="mean negative log-likelihood of the tokens with which content words begin",
        unit="nats",
        higher="less sure",
        source="own; the first token of a wrong stretch carries the signal",
        lowers="the answer's words are unlikely where they begin",
        raises="the answer's words are likely where they begin",
    ),
    Signal(
        name="max_word_start_nll",
        meaning="largest negative log-likelihood of a token with which a content word begins",
        unit="nats",
        higher="less sure",
        source="as word_start_nll",
        lowers="one word of the answer is very unlikely where it begins",
        raises="no word of the answer is unlikely where it begins",
    ),
    Signal(
        name="word_start_entropy",
        meaning="mean entropy of the distributions that predict the tokens with which content words begin",
        unit="nats",
        higher="less sure",
        source="as word_start_nll",
        lowers="many other words were possible",
        raises="few other words were possible",
    ),
    Signal(
        name="max_word_start_entropy",
        meaning="largest entropy of a distribution that predicts the token with which a content word begins",
        unit="nats",
        higher="less sure",
        source="as word_start_nll",
        lowers="one word was close to a guess",
        raises="no word was a guess",
    ),
    Signal(
        name="max_claim_start_nll",
        meaning="largest negative log-likelihood of a claim's first token",
        unit="nats",
        higher="less sure",
        source="as word_start_nll",
        lowers="one sentence begins with an unlikely token",
        raises="every sentence begins with a likely token",
    ),
    Signal(
        name="max_claim_start_entropy",
        meaning="largest entropy of a distribution that predicts a claim's first token",
        unit="nats",
        higher="less sure",
        source="as word_start_nll",
        lowers="one sentence could have begun in many ways",
        raises="no sentence could have begun in many ways",
    ),
)

_LOOKBACK = "after Lookback Lens (arXiv 2407.07071), without its classifier"
_ATTENTION = tuple(
    replace(signal, required=False)  # models that compute attention in their own way have none
    for signal in _family(
        "attention",
        "free",
        Signal(
            name="rauq",
            meaning="mean -log confidence, where a token's confidence is 0.2 of its probability and 0.8 of the "
            "attention on the token before times that one's confidence; the block where it is largest",
            unit="nats",
            higher="less sure",
            source="RAUQ (arXiv 2505.20045), on the blocks of `scoring.attention.watched_blocks`",
            lowers="doubt is passed on from word to word",
            raises="each word follows surely from the one before",
        ),
        Signal(
            name="context_attention",
            meaning="share of the answer's attention on the passages, of what does not rest on the first token; mean "
            "over blocks, heads and tokens",
            unit="share",
            higher="either",
            source=_LOOKBACK,
        ),
        Signal(
            name="context_attention_min",
            meaning="as `context_attention`, of the token that looks at the passages least",
            unit="share",
            higher="either",
            source=_LOOKBACK,
        ),
        Signal(
            name="context_attention_first",
            meaning="as `context_attention`, of the first tokens of the answer and of its claims, the lowest",
            unit="share",
            higher="either",
            source=_LOOKBACK,
        ),
        Signal(
            name="context_attention_heads",
            meaning="mean attention on the passages by the tenth of all heads that look there most",
            unit="share",
            higher="either",
            source="own",
        ),
        Signal(
            name="passage_focus",
            meaning="share of the most attended passage in the attention on all passages",
            unit="share",
            higher="either",
            source="own",
        ),
        Signal(
            name="question_attention",
            meaning="as `context_attention`, on the question",
            unit="share",
            higher="either",
            source=_LOOKBACK,
        ),
        Signal(
            name="own_attention",
            meaning="as `context_attention`, on the answer's own tokens so far",
            unit="share",
            higher="either",
            source=_LOOKBACK,
        ),
    )
)

_PROBES = _family(
    "probe",
    "probe",
    Signal(
        name="state_probe",
        meaning="weighted sum of the mean hidden state, at 60 % of the model's depth, that the answer's tokens are "
        "predicted from; the weights are the profile's",
        unit="log-odds",
        higher="more sure",
        source="Kadavath et al. 2022 (arXiv 2207.05221), Azaria and Mitchell 2023 (arXiv 2304.13734); reduced in "
        "dimension first, as arXiv 2505.23299",
        lowers="the model's state is like that of wrong answers",
        raises="the model's state is like that of right answers",
    ),
    Signal(
        name="attention_probe",
        meaning="weighted sum of each head's attention on the first token, the passages, the question and the answer; "
        "the weights are the profile's",
        unit="log-odds",
        higher="more sure",
        source="Lookback Lens (arXiv 2407.07071)",
        lowers="attention is spread as in wrong answers",
        raises="attention is spread as in right answers",
        required=False,
    ),
)

_TEXT = _family(
    "text",
    "text",
    Signal(
        name="grounding",
        meaning="share of the answer's content words and numbers, without those of the question, that the passages "
        "contain; of any other words where it has none",
        unit="share",
        higher="more sure",
        source="own; words as Unicode segments them",
        lowers="answer words are not in the passages",
        raises="answer words are in the passages",
    ),
    Signal(
        name="written_grounding",
        meaning="as `grounding`, of the claims that are not copied from a passage; 1 where all are",
        unit="share",
        higher="more sure",
        source="own",
        lowers="words that are not copied are not in the passages",
        raises="words that are not copied are in the passages",
    ),
    Signal(
        name="copied_span",
        meaning="longest run of a claim's words that one passage contains in the same order, as a share of them; the "
        "least copied claim, of those that are not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the answer is not copied from a passage",
        raises="the answer is copied from a passage",
    ),
    Signal(
        name="passage_support",
        meaning="share of the passages that contain all new content words of a claim; the weakest claim that is not "
        "copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="few passages hold the answer's words",
        raises="several passages hold the answer's words",
    ),
    Signal(
        name="question_overlap",
        meaning="share of the question's content words that the passage fullest of a claim's words contains; the "
        "weakest claim that is not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="its passage is not about the question",
        raises="its passage is about the question",
    ),
    Signal(
        name="foreign_claim",
        meaning="share of a claim's words that the passages have in no form, of a claim that is not copied and has no "
        "word of the question, where at least 70 % are missing; 0 where there is none",
        unit="share",
        higher="less sure",
        source="own",
        lowers="it says something that is about neither the question nor the passages",
        raises="all it says is about the question or the passages",
        required=False,
        tampering=True,
    ),
    Signal(
        name="unsupported_words",
        meaning="share of the answer's new content words that the passages have in no form (Snowball stems)",
        unit="share",
        higher="less sure",
        source="own",
        lowers="it uses words that no passage has in any form",
        raises="its words are those of the passages, in one form or another",
    ),
    Signal(
        name="unsupported_pairs",
        meaning="share of neighbouring content words of the answer that stand within 8 content words in no passage",
        unit="share",
        higher="less sure",
        source="own",
        lowers="it joins words that no passage joins",
        raises="words stand together as in the passages",
    ),
    Signal(
        name="n_unsupported_pairs",
        meaning="how many neighbouring content words of the answer stand within 8 content words in no passage",
        unit="pairs",
        higher="less sure",
        source="own",
        lowers="it joins many words that no passage joins",
        raises="it joins few words that no passage joins",
    ),
    Signal(
        name="unsupported_numbers",
        meaning="how many different numbers of the answer no passage has",
        unit="numbers",
        higher="less sure",
        source="own",
        lowers="it states numbers that no passage has",
        raises="its numbers are in the passages",
    ),
    Signal(
        name="unsupported_claims",
        meaning="how many claims have over 30 % of their new content words in no form in the passages",
        unit="claims",
        higher="less sure",
        source="own",
        lowers="sentences of the answer have no support in the passages",
        raises="no sentence of the answer lacks support in the passages",
    ),
    Signal(
        name="relevant_grounding",
        meaning="share of a claim's new words in each passage, where a passage counts by how much of the question it "
        "and its title hold, rare words more (softmax, 0.1); the weakest claim that is not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the passages about the question do not hold the answer",
        raises="the passages about the question hold the answer",
    ),
    Signal(
        name="relevant_grounding_mean",
        meaning="as `relevant_grounding`, the mean of the claims that are not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the passages about the question do not hold the answer",
        raises="the passages about the question hold the answer",
    ),
    Signal(
        name="question_nearby",
        meaning="share of the question's content words, rare ones counting more, within 40 words of a claim's words in "
        "one passage, times the share of the claim's words there; the weakest claim that is not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the passages say it far from the question's words",
        raises="the passages say it near the question's words",
    ),
    Signal(
        name="question_nearby_mean",
        meaning="as `question_nearby`, the mean of the claims that are not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the passages say it far from the question's words",
        raises="the passages say it near the question's words",
    ),
    Signal(
        name="claim_grounding",
        meaning="as `grounding`, of the answer's weakest claim: the sentence of which the passages contain least",
        unit="share",
        higher="more sure",
        source="own",
        lowers="a sentence of the answer is not in the passages",
        raises="every sentence of the answer is in the passages",
    ),
    Signal(
        name="claim_support",
        meaning="largest share of a claim's new words that stand in two neighbouring sentences of a passage; the "
        "weakest claim",
        unit="share",
        higher="more sure",
        source="own",
        lowers="no place in the passages holds a sentence of the answer",
        raises="every sentence of the answer has its place in the passages",
    ),
    Signal(
        name="weak_claims",
        meaning="share of the answer's claims of which less than half stands together in the passages",
        unit="share",
        higher="less sure",
        source="own",
        lowers="many sentences of the answer have no place in the passages",
        raises="few sentences of the answer lack a place in the passages",
    ),
    Signal(
        name="missing_words",
        meaning="number of the answer's new content words that no passage contains",
        unit="words",
        higher="less sure",
        source="own",
        lowers="words of the answer are missing from the passages",
        raises="no words of the answer are missing from the passages",
    ),
    Signal(
        name="negation_mismatch",
        meaning="share of a claim's words in the passage sentence nearest to it, where one of the two denies and the "
        "other does not; the worst claim",
        unit="share",
        higher="less sure",
        source="own; English negations",
        lowers="the answer denies what a passage says, or the reverse",
        raises="the answer denies nothing that the passages say",
    ),
    Signal(
        name="number_mismatch",
        meaning="share of a claim's numbers that the passage sentence nearest to it lacks or has with another unit; "
        "the worst claim",
        unit="share",
        higher="less sure",
        source="own",
        lowers="a number of the answer is not where the passages speak of it",
        raises="the numbers of the answer are where the passages speak of them",
    ),
    Signal(
        name="name_mismatch",
        meaning="share of a claim's names that the passage sentence nearest to it lacks; the worst claim",
        unit="share",
        higher="less sure",
        source="own; capitals inside a sentence",
        lowers="a name of the answer is not where the passages speak of it",
        raises="the names of the answer are where the passages speak of them",
    ),
    Signal(
        name="altered_copy",
        meaning="share of a claim's words that the likest passage sentence has in the same order, where one of the two "
        "denies or the claim has another name or number in the same place; the worst claim of an answer that is mostly "
        "copied, else 0",
        unit="share",
        higher="less sure",
        source="own",
        lowers="a sentence is copied with a change",
        raises="no sentence is copied with a change",
        tampering=True,
    ),
    Signal(
        name="claim_check",
        meaning="share of a claim's words that stand together, times the share of the question near them, times how "
        "far nothing is altered or mismatched; the weakest claim that is not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="the passages do not say this about the question",
        raises="the passages say this about the question",
    ),
    Signal(
        name="copied_around",
        meaning="how little of the weakest claim that is not copied stands together in the passages, in an answer that "
        "is mostly copied, else 0",
        unit="share",
        higher="less sure",
        source="own",
        lowers="text is copied around something that the passages do not say",
        raises="nothing doubtful is said beside copied text",
        tampering=True,
    ),
    Signal(
        name="passages_disagree",
        meaning="share of the question's words in a sentence of another passage that gives other numbers or names, or "
        "denies; the worst claim",
        unit="share",
        higher="less sure",
        source="own",
        lowers="another passage says something else",
        raises="no other passage says something else",
    ),
    Signal(
        name="suspicious_passages",
        meaning="number of passages that give orders to a model; they support nothing",
        unit="passages",
        higher="less sure",
        source="own; English orders",
        lowers="a passage gives orders to the model",
        raises="no passage gives orders to the model",
        tampering=True,
    ),
    Signal(
        name="n_claims",
        meaning="number of claims: the answer's sentences without those that only repeat the question",
        unit="claims",
        higher="either",
        source="length",
    ),
    Signal(
        name="n_words",
        meaning="number of the answer's words",
        unit="words",
        higher="either",
        source="length",
    ),
    Signal(
        name="n_own_words",
        meaning="number of the answer's words, without copied claims where most of it is copied and something is not",
        unit="words",
        higher="either",
        source="length",
    ),
    Signal(
        name="answer_echo",
        meaning="share of the answer's content words that the question contains",
        unit="share",
        higher="either",
        source="own",
    ),
    Signal(
        name="n_passages",
        meaning="number of passages",
        unit="passages",
        higher="either",
        source="retrieval",
    ),
    Signal(
        name="retrieval_top",
        meaning="best retriever score, in the retriever's unit",
        unit="retriever's",
        higher="either",
        source="retrieval",
        required=False,
    ),
    Signal(
        name="retrieval_gap",
        meaning="best minus second best retriever score",
        unit="retriever's",
        higher="either",
        source="retrieval",
        required=False,
    ),
    Signal(
        name="retrieval_spread",
        meaning="standard deviation of the retriever scores",
        unit="retriever's",
        higher="either",
        source="retrieval",
        required=False,
    ),
    Signal(
        name="retrieval_agreement",
        meaning="mean word overlap (Jaccard) between two passages",
        unit="share",
        higher="either",
        source="own",
        required=False,
    ),
)

_MEANING = _family(
    "embedding",
    "embedding",
    Signal(
        name="support_similarity",
        meaning="cosine of the question and a passage's sentence, times the share of a claim's new words in it; the "
        "best sentence for the weakest claim that is not copied",
        unit="cosine",
        higher="more sure",
        source="own; sentence embeddings as of Reimers and Gurevych 2019 (arXiv 1908.10084)",
        lowers="no sentence about the question holds the answer",
        raises="a sentence about the question holds the answer",
    ),
    Signal(
        name="passage_similarity",
        meaning="cosine of the question and a passage, times the share of a claim's new words in it; the best passage "
        "for the weakest claim that is not copied",
        unit="cosine",
        higher="more sure",
        source="own",
        lowers="no passage about the question holds the answer",
        raises="a passage about the question holds the answer",
    ),
    Signal(
        name="semantic_grounding",
        meaning="share of a claim's new words in each passage, where a passage counts by its cosine, title included, "
        "with the question (softmax, 0.05); the weakest claim that is not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="what is nearest to the question in meaning does not hold the answer",
        raises="what is nearest to the question in meaning holds the answer",
    ),
    Signal(
        name="semantic_grounding_mean",
        meaning="as `semantic_grounding`, the mean of the claims that are not copied",
        unit="share",
        higher="more sure",
        source="own",
        lowers="what is nearest to the question in meaning does not hold the answer",
        raises="what is nearest to the question in meaning holds the answer",
    ),
    Signal(
        name="support_margin",
        meaning="cosine of the question and the passage fullest of a claim's new words, minus that of the next best "
        "passage; the weakest claim that is not copied",
        unit="cosine",
        higher="more sure",
        source="own",
        lowers="another passage is nearer to the question",
        raises="its passage is the nearest to the question",
    ),
    Signal(
        name="claim_similarity",
        meaning="cosine of a claim and the nearest passage sentence; the weakest claim",
        unit="cosine",
        higher="more sure",
        source="own; sentence embeddings as of Reimers and Gurevych 2019 (arXiv 1908.10084)",
        lowers="a sentence of the answer is unlike all that the passages say",
        raises="every sentence of the answer is like one of the passages",
    ),
    Signal(
        name="answer_similarity",
        meaning="cosine of question and claim together and the nearest passage sentence; the weakest claim",
        unit="cosine",
        higher="more sure",
        source="own",
        lowers="no passage sentence says the like",
        raises="a passage sentence says the like",
    ),
)

_FORWARD = _family(
    "forward",
    "forward",
    Signal(
        name="context_gain",
        meaning="mean log-likelihood of the answer with the passages minus without them",
        unit="nats",
        higher="more sure",
        source="pointwise mutual information of answer and passages",
        lowers="the passages hardly made the answer likelier",
        raises="the passages made the answer likelier",
    ),
    Signal(
        name="context_gain_min",
        meaning="lowest mean of `context_gain` over 12 tokens of the answer in a row",
        unit="nats",
        higher="more sure",
        source="own; as context_gain",
        lowers="the passages did not make a part of the answer likelier",
        raises="the passages made every part of the answer likelier",
    ),
    Signal(
        name="context_gain_share",
        meaning="share of the answer's negative log-likelihood that the passages take away",
        unit="ratio",
        higher="more sure",
        source="own; as context_gain",
        lowers="the answer is as unexpected with the passages as without",
        raises="the passages explain the answer",
    ),
    Signal(
        name="context_loss",
        meaning="sum over the answer's tokens of how much less likely the passages made them",
        unit="nats",
        higher="less sure",
        source="own; as context_gain",
        lowers="words of the answer speak against the passages",
        raises="no word of the answer speaks against the passages",
    ),
    Signal(
        name="hurt_tokens",
        meaning="number of the answer's tokens that the passages made less likely by more than 0.5 nats",
        unit="tokens",
        higher="less sure",
        source="own; as context_gain",
        lowers="the passages made many words of the answer less likely",
        raises="the passages made few words of the answer less likely",
    ),
    Signal(
        name="unhelped_tokens",
        meaning="share of the answer's tokens that are unlikely (over 2 nats) and that the passages did not make "
        "likelier by 0.5 nats",
        unit="share",
        higher="less sure",
        source="own; as context_gain",
        lowers="unlikely words of the answer come from no passage",
        raises="the unlikely words of the answer come from the passages",
    ),
    Signal(
        name="p_true",
        meaning="probability of yes against no when the model is asked whether its answer is correct",
        unit="share",
        higher="more sure",
        source="P(True): Kadavath et al. 2022 (arXiv 2207.05221)",
        lowers="asked again, the model doubts the answer",
        raises="asked again, the model affirms the answer",
    ),
)

SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        *_GRADIENTS,
        *_LIKELIHOODS,
        *_STARTS,
        *_ATTENTION,
        *_PROBES,
        *_TEXT,
        *_MEANING,
        *_FORWARD,
    )
}
"""Every signal that a scorer computes, by name."""
SAMPLED: dict[str, Signal] = {
    signal.name: signal
    for signal in _family(
        "sampling",
        "sampling",
        Signal(
            name="semantic_entropy",
            meaning="entropy over meanings of the sampled answers, by their likelihoods",
            unit="nats",
            higher="less sure",
            source="Kuhn, Gal and Farquhar 2023 (ICLR), with similarity in place of entailment",
        ),
        Signal(
            name="discrete_semantic_entropy",
            meaning="entropy over meanings of the sampled answers, by counting",
            unit="nats",
            higher="less sure",
            source="Farquhar et al. 2024 (Nature 630)",
        ),
        Signal(
            name="lexical_dissimilarity",
            meaning="1 - mean word overlap of the sampled answers",
            unit="share",
            higher="less sure",
            source="word overlap (F1) of two answers",
        ),
        Signal(
            name="sentence_sar",
            meaning="shifted likelihood of the sampled answers (SAR)",
            unit="nats",
            higher="less sure",
            source="Duan et al. 2024 (ACL), SentSAR",
        ),
        Signal(
            name="sample_disagreement",
            meaning="1 - mean likeness of the given answer and the sampled ones",
            unit="share",
            higher="less sure",
            source="own",
        ),
    )
}
"""Signals of several sampled answers, by name: baselines that `evaluate` computes, not the scorer."""
EVERY: dict[str, Signal] = {**SIGNALS, **SAMPLED}
"""Every signal of both tables, by name."""
FREE = tuple(name for name, signal in SIGNALS.items() if signal.cost in {"free", "text"})
"""Signals that come without another pass of any model: what is computed unless something else is asked for."""
MEANING = tuple(name for name, signal in SIGNALS.items() if signal.cost == "embedding")
"""Signals that are computed too where an embedder is given."""
COSTLY = tuple(name for name, signal in SIGNALS.items() if signal.cost == "forward")
"""Signals that take another forward pass each."""
PASSAGE_HELP = frozenset(COSTLY) - {"p_true"}
"""Those of them that say what the passages did for the answer; one forward pass without the passages gives them all."""
TAMPERING = frozenset(name for name, signal in SIGNALS.items() if signal.tampering)
"""Signs that an answer was made to look right."""
PROBES = tuple(name for name, signal in SIGNALS.items() if signal.family == "probe")
"""Signals that a profile computes from `Score.vectors`, where it was fitted on enough of them."""
STATE_PROBE, ATTENTION_PROBE = PROBES
ATTENTION = (*(name for name, signal in SIGNALS.items() if signal.family == "attention"), ATTENTION_PROBE)
"""Signals for which attention weights are read."""
METHODS = tuple(name for name, signal in SIGNALS.items() if signal.is_score)
"""Signals that can be a score's value."""


ROUNDING = 1e-2
"""By how much half-precision numbers may leave the limits of a signal."""


def signal_of(name: str) -> Signal | None:
    """Return the signal with a name, variants and sampled ones included; `None` for a name of the caller's own."""
    return EVERY.get(name) or SIGNALS.get(base_name(name))


def is_known(name: str) -> bool:
    """Return whether a scorer computes a signal of this name, variants included."""
    return base_name(name) in SIGNALS


def is_possible(name: str, value: float) -> bool:
    """Return whether a signal can have a value, rounding aside; what is not known or not finite can be anything."""
    signal = signal_of(name)
    if signal is None or not math.isfinite(value):
        return True
    low, high = signal.limits
    return low - ROUNDING <= value <= high + ROUNDING


def may_be_required(name: str) -> bool:
    """Return whether a profile may demand a signal; yes for names of the caller's own."""
    signal = signal_of(name)
    return signal is None or signal.required


def direction_of(name: str, directions: Mapping[str, int] | None = None) -> int:
    """Return 1, -1 or 0 for a signal, from the caller's table first; 0 for a name that neither table has."""
    given = directions or {}
    for key in (name, base_name(name)):
        if key in given:
            return given[key]
    signal = signal_of(name)
    return signal.direction if signal else 0


def explain(name: str, weight: float, value: float, average: float) -> str:
    """Return in words why a signal moved a confidence by `weight`."""
    signal = signal_of(name)
    if signal and (text := signal.lowers if weight < 0 else signal.raises):
        return text
    side = "high" if value > average else "low"
    return f"{name.replace('_', ' ')} is {side} ({value:.3g}, on average {average:.3g})"
