"""What is known of each signal by name: its direction and the words that explain it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTIONS: Mapping[str, int] = {
    "semgrad": -1,
    "paragrad": -1,
    "hybridgrad": -1,
    "exgrad": -1,
    "mean_nll": -1,
    "sum_nll": -1,
    "max_nll": -1,
    "first_nll": -1,
    "mean_entropy": -1,
    "max_entropy": -1,
    "first_entropy": -1,
    "grounding": 1,
    "context_gain": 1,
    "p_true": 1,
}
"""Signal -> 1 where a higher value can only raise confidence, -1 where it can only lower it.

Signals that are not listed may push either way, as the labels say.
"""

_TEXTS: Mapping[str, tuple[str, str]] = {
    "semgrad": (
        "the answer is sensitive to the meaning of the question",
        "the answer is steady in the question's meaning",
    ),
    "paragrad": ("the answer pulls hard on the model's weights", "the answer fits the model's weights"),
    "hybridgrad": ("the answer's gradients are large", "the answer's gradients are small"),
    "exgrad": ("the answer's likelihood gradient is large", "the answer's likelihood gradient is small"),
    "mean_nll": ("the answer's tokens are unlikely", "the answer's tokens are likely"),
    "sum_nll": ("the whole answer is unlikely", "the whole answer is likely"),
    "max_nll": ("one token of the answer is very unlikely", "no token of the answer is unlikely"),
    "first_nll": ("the first token is unlikely", "the first token is likely"),
    "mean_entropy": ("many other tokens were possible", "few other tokens were possible"),
    "max_entropy": ("one token was close to a guess", "no token was a guess"),
    "first_entropy": ("the first token was close to a guess", "the first token was clear"),
    "grounding": ("answer words are not in the passages", "answer words are in the passages"),
    "context_gain": ("the passages hardly made the answer likelier", "the passages made the answer likelier"),
    "p_true": ("asked again, the model doubts the answer", "asked again, the model affirms the answer"),
}
"""Signal -> words when it lowers and when it raises confidence."""


def base_name(signal: str) -> str:
    """Return a signal's name without its variant, for example `semgrad` of `semgrad@-3`."""
    return signal.split("@", 1)[0]


def direction_of(signal: str, directions: Mapping[str, int] | None = None) -> int:
    """Return 1, -1 or 0 for a signal, from the caller's table first."""
    for table in (directions or {}, DIRECTIONS):
        for name in (signal, base_name(signal)):
            if name in table:
                return table[name]
    return 0


def explain(signal: str, weight: float, value: float, average: float) -> str:
    """Return in words why a signal moved a confidence by `weight`."""
    texts = _TEXTS.get(base_name(signal))
    if texts is not None:
        return texts[0] if weight < 0 else texts[1]
    side = "high" if value > average else "low"
    return f"{signal.replace('_', ' ')} is {side} ({value:.3g}, on average {average:.3g})"
