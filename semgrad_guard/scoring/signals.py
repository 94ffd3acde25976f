"""Every raw signal: its name, unit, direction, cost and source. This table is the only place that lists them.

Signals of one answer stand in `Score.signals` by name. One that cannot be computed (grounding without passages, a
position before the prompt's first token) is absent, never a made-up number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PAPER = "SemGrad (arXiv 2605.04638), section 3"
Cost = Literal["free", "text", "embedding", "forward"]
"""`free`: comes with the one backward pass; `text`: counts words, no model; `embedding`: sentence embeddings, where an
embedder is given; `forward`: another forward pass."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What a signal means."""

    name: str
    meaning: str
    unit: str
    higher: Literal["less sure", "more sure", "either"]
    """What a higher value says about the answer; `either` where only labels can tell."""
    cost: Cost
    source: str
    is_score: bool = False
    """True when it can be a score's value: >= 0, higher is less sure."""


POSITIONS = (-1, -2, -3, -4, -5)
"""Prompt positions whose SemGrad is reported as `semgrad@-1` and so on: the same backward pass gives them all."""


def semgrad_at(position: int) -> str:
    """Return the name of the SemGrad signal at one prompt position."""
    return f"semgrad@{position}"


_GRADIENTS = (
    Signal(
        "semgrad",
        "mean |gradient of the objective by the hidden states at t*| over the layer band",
        "nats² per unit of state",
        "less sure",
        "free",
        PAPER,
        is_score=True,
    ),
    *(
        Signal(
            semgrad_at(position),
            f"semgrad with t* at {position} of the prompt",
            "nats² per unit of state",
            "less sure",
            "free",
            PAPER,
            is_score=True,
        )
        for position in POSITIONS
    ),
    Signal(
        "paragrad",
        "mean |gradient of the objective by the output head's weight|, the head's own path",
        "nats² per unit of weight",
        "less sure",
        "free",
        PAPER,
        is_score=True,
    ),
    Signal(
        "hybridgrad",
        "e^-w paragrad + (1 - e^-w) semgrad, where w is the mean entropy",
        "nats²",
        "less sure",
        "free",
        PAPER,
        is_score=True,
    ),
    Signal(
        "exgrad",
        "paragrad with every token's weight 1 in place of its entropy",
        "nats per unit of weight",
        "less sure",
        "free",
        "ExGrad, the unweighted baseline of " + PAPER,
        is_score=True,
    ),
    Signal(
        "loss",
        "the objective itself: mean of entropy times negative log-likelihood",
        "nats²",
        "less sure",
        "free",
        PAPER,
        is_score=True,
    ),
)

_LIKELIHOODS = (
    Signal(
        "mean_nll",
        "mean negative log-likelihood of the answer's tokens",
        "nats",
        "less sure",
        "free",
        "log-perplexity",
        is_score=True,
    ),
    Signal(
        "sum_nll",
        "negative log-likelihood of the whole answer",
        "nats",
        "less sure",
        "free",
        "sequence likelihood",
        is_score=True,
    ),
    Signal(
        "max_nll",
        "negative log-likelihood of the least likely token",
        "nats",
        "less sure",
        "free",
        "maximum token surprise",
        is_score=True,
    ),
    Signal(
        "first_nll",
        "negative log-likelihood of the first token",
        "nats",
        "less sure",
        "free",
        "first-token surprise",
        is_score=True,
    ),
    Signal(
        "mean_entropy",
        "mean entropy of the predicting distributions",
        "nats",
        "less sure",
        "free",
        "token entropy",
        is_score=True,
    ),
    Signal(
        "max_entropy",
        "largest entropy of the predicting distributions",
        "nats",
        "less sure",
        "free",
        "token entropy",
        is_score=True,
    ),
    Signal(
        "first_entropy",
        "entropy of the distribution that predicts the first token",
        "nats",
        "less sure",
        "free",
        "token entropy",
        is_score=True,
    ),
    Signal("min_prob", "probability of the least likely token: e^-max_nll", "share", "more sure", "free", "as max_nll"),
    Signal("first_prob", "probability of the first token: e^-first_nll", "share", "more sure", "free", "as first_nll"),
    Signal("mean_top_prob", "mean probability of the likeliest token", "share", "more sure", "free", "maximum softmax"),
    Signal(
        "off_top_share",
        "share of the answer's tokens that were not the likeliest: 0 for greedy answers",
        "share",
        "less sure",
        "free",
        "rank of the written token",
    ),
    Signal(
        "n_answer_tokens",
        "number of answer tokens, with the end-of-turn token where there is one",
        "tokens",
        "either",
        "free",
        "length",
    ),
)

_TEXT = (
    Signal(
        "grounding",
        "share of the answer's content words and numbers, without those of the question, that the passages contain; "
        "of any other words where it has none",
        "share",
        "more sure",
        "text",
        "own; words as Unicode segments them",
    ),
    Signal(
        "copied_span",
        "longest run of answer words that one passage contains in the same order, as a share of the answer's words",
        "share",
        "more sure",
        "text",
        "own",
    ),
    Signal(
        "passage_support",
        "share of the passages that contain all of the answer's new content words",
        "share",
        "more sure",
        "text",
        "own",
    ),
    Signal(
        "question_overlap",
        "share of the question's content words that the passage fullest of the answer's words contains",
        "share",
        "more sure",
        "text",
        "own",
    ),
    Signal(
        "question_nearby",
        "share of the question's content words, rare ones counting more, within 40 words of the answer's words in one "
        "passage, times the share of the answer's words there",
        "share",
        "more sure",
        "text",
        "own",
    ),
    Signal(
        "answer_echo",
        "share of the answer's content words that the question contains",
        "share",
        "either",
        "text",
        "own",
    ),
    Signal("n_passages", "number of passages", "passages", "either", "text", "retrieval"),
    Signal(
        "retrieval_top", "best retriever score, in the retriever's unit", "retriever's", "either", "text", "retrieval"
    ),
    Signal("retrieval_gap", "best minus second best retriever score", "retriever's", "either", "text", "retrieval"),
    Signal(
        "retrieval_spread", "standard deviation of the retriever scores", "retriever's", "either", "text", "retrieval"
    ),
    Signal(
        "retrieval_agreement",
        "mean word overlap (Jaccard) between two passages",
        "share",
        "either",
        "text",
        "own",
    ),
)

_CLOSENESS = (
    Signal(
        "support_similarity",
        "cosine of the question and a passage's sentence, times the share of the answer's new words in it; the best",
        "cosine",
        "more sure",
        "embedding",
        "own; sentence embeddings as of Reimers and Gurevych 2019 (arXiv 1908.10084)",
    ),
    Signal(
        "passage_similarity",
        "cosine of the question and a passage, times the share of the answer's new words in it; the best",
        "cosine",
        "more sure",
        "embedding",
        "own",
    ),
    Signal(
        "support_margin",
        "cosine of the question and the passage fullest of the answer's new words, minus that of the next best passage",
        "cosine",
        "more sure",
        "embedding",
        "own",
    ),
    Signal(
        "answer_similarity",
        "cosine of question and answer sentence together and the best passage sentence; the worst answer sentence",
        "cosine",
        "more sure",
        "embedding",
        "own",
    ),
)

_COSTLY = (
    Signal(
        "context_gain",
        "mean log-likelihood of the answer with the passages minus without them",
        "nats",
        "more sure",
        "forward",
        "pointwise mutual information of answer and passages",
    ),
    Signal(
        "p_true",
        "probability of yes against no when the model is asked whether its answer is correct",
        "share",
        "more sure",
        "forward",
        "P(True): Kadavath et al. 2022 (arXiv 2207.05221)",
    ),
)

SIGNALS: dict[str, Signal] = {
    signal.name: signal for signal in (*_GRADIENTS, *_LIKELIHOODS, *_TEXT, *_CLOSENESS, *_COSTLY)
}
"""Every signal by name."""
FREE = tuple(name for name, signal in SIGNALS.items() if signal.cost in {"free", "text"})
"""Signals that come without another pass of any model: what is computed unless something else is asked for."""
CLOSENESS = tuple(name for name, signal in SIGNALS.items() if signal.cost == "embedding")
"""Signals that are computed too where an embedder is given."""
METHODS = tuple(name for name, signal in SIGNALS.items() if signal.is_score)
"""Signals that can be a score's value."""
