"""What is known of each signal by name: its direction and the words that explain it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TABLE: Mapping[str, tuple[int, str, str]] = {
    "semgrad": (-1, "the answer is sensitive to the meaning of the question", "the answer is steady in meaning"),
    "paragrad": (-1, "the answer pulls hard on the model's weights", "the answer fits the model's weights"),
    "hybridgrad": (-1, "the answer's gradients are large", "the answer's gradients are small"),
    "exgrad": (-1, "the answer's likelihood gradient is large", "the answer's likelihood gradient is small"),
    "loss": (-1, "the answer's uncertain tokens are unlikely", "the answer's uncertain tokens are likely"),
    "mean_nll": (-1, "the answer's tokens are unlikely", "the answer's tokens are likely"),
    "sum_nll": (-1, "the whole answer is unlikely", "the whole answer is likely"),
    "max_nll": (-1, "one token of the answer is very unlikely", "no token of the answer is unlikely"),
    "first_nll": (-1, "the first token is unlikely", "the first token is likely"),
    "mean_entropy": (-1, "many other tokens were possible", "few other tokens were possible"),
    "max_entropy": (-1, "one token was close to a guess", "no token was a guess"),
    "first_entropy": (-1, "the first token was close to a guess", "the first token was clear"),
    "min_prob": (1, "one token of the answer is very unlikely", "no token of the answer is unlikely"),
    "first_prob": (1, "the first token is unlikely", "the first token is likely"),
    "mean_top_prob": (1, "no token was clearly the likeliest", "the likeliest tokens were clear"),
    "off_top_share": (-1, "tokens were written that were not the likeliest", "the likeliest tokens were written"),
    "n_answer_tokens": (0, "", ""),
    "grounding": (1, "answer words are not in the passages", "answer words are in the passages"),
    "copied_span": (1, "the answer is not copied from a passage", "the answer is copied from a passage"),
    "passage_support": (1, "few passages hold the answer's words", "several passages hold the answer's words"),
    "question_overlap": (1, "its passage is not about the question", "its passage is about the question"),
    "question_nearby": (
        1,
        "the passages say it far from the question's words",
        "the passages say it near the question's words",
    ),
    "support_similarity": (
        1,
        "no sentence about the question holds the answer",
        "a sentence about the question holds the answer",
    ),
    "passage_similarity": (
        1,
        "no passage about the question holds the answer",
        "a passage about the question holds the answer",
    ),
    "support_margin": (1, "another passage is nearer to the question", "its passage is the nearest to the question"),
    "answer_similarity": (1, "no passage sentence says the like", "a passage sentence says the like"),
    "answer_echo": (0, "", ""),
    "n_passages": (0, "", ""),
    "retrieval_top": (0, "", ""),
    "retrieval_gap": (0, "", ""),
    "retrieval_spread": (0, "", ""),
    "retrieval_agreement": (0, "", ""),
    "context_gain": (1, "the passages hardly made the answer likelier", "the passages made the answer likelier"),
    "p_true": (1, "asked again, the model doubts the answer", "asked again, the model affirms the answer"),
}
"""Signal -> direction, and words for when it lowers and when it raises confidence (none: its value is told).

The direction is 1 where a higher value can only raise confidence, -1 where it can only lower it, and 0, as for signals
that are not listed, where the labels alone say which way.
"""


def base_name(signal: str) -> str:
    """Return a signal's name without its variant, for example `semgrad` of `semgrad@-3`."""
    return signal.split("@", 1)[0]


def is_known(signal: str) -> bool:
    """Return whether a name is a signal's, variants included."""
    return base_name(signal) in _TABLE


def direction_of(signal: str, directions: Mapping[str, int] | None = None) -> int:
    """Return 1, -1 or 0 for a signal, from the caller's table first."""
    given = directions or {}
    for name in (signal, base_name(signal)):
        if name in given:
            return given[name]
    return _TABLE[base_name(signal)][0] if is_known(signal) else 0


def explain(signal: str, weight: float, value: float, average: float) -> str:
    """Return in words why a signal moved a confidence by `weight`."""
    _, lowers, raises = _TABLE.get(base_name(signal), (0, "", ""))
    if text := lowers if weight < 0 else raises:
        return text
    side = "high" if value > average else "low"
    return f"{signal.replace('_', ' ')} is {side} ({value:.3g}, on average {average:.3g})"
