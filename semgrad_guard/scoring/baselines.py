"""Measures of one backward pass -> the signals of a run of answer tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from semgrad_guard.scoring.head import WEIGHT_NORMS
from semgrad_guard.scoring.signals import POSITIONS, semgrad_at

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from semgrad_guard.scoring.engine import Measure, PartMeasure
    from semgrad_guard.scoring.head import WeightNorm

_NORM_OF: Mapping[str, WeightNorm] = {"paragrad": "paragrad", "hybridgrad": "paragrad", "exgrad": "exgrad"}


def gradient_signals(measure: Measure, part: PartMeasure, position: int) -> dict[str, float]:
    """Return the gradient scores of a run of tokens, as far as they were measured.

    Args:
        measure: of the whole answer.
        part: of the run.
        position: t*, inside the prompt.
    """
    semgrad = part.semgrad[-position - 1]
    mean_entropy = float(measure.entropy[part.tokens].mean())
    share = math.exp(-mean_entropy)
    found = {semgrad_at(p): part.semgrad[-p - 1] for p in POSITIONS if -p <= len(part.semgrad)}
    found["semgrad"] = semgrad
    paragrad, exgrad = part.by_weight
    if paragrad is not None:
        found |= {"paragrad": paragrad, "hybridgrad": share * paragrad + (1.0 - share) * semgrad}
    if exgrad is not None:
        found["exgrad"] = exgrad
    return found


def norms_behind(signals: Collection[str]) -> tuple[WeightNorm, ...]:
    """Return the gradients by the head's weight that some signals need."""
    needed = {_NORM_OF.get(signal) for signal in signals}
    return tuple(norm for norm in WEIGHT_NORMS if norm in needed)


def likelihood_signals(measure: Measure, part: PartMeasure) -> dict[str, float]:
    """Return the likelihood scores of a run of tokens."""
    nll, entropy = measure.nll[part.tokens], measure.entropy[part.tokens]
    return {
        "loss": float((entropy * nll).mean()),
        "mean_nll": float(nll.mean()),
        "sum_nll": float(nll.sum()),
        "max_nll": float(nll.max()),
        "first_nll": float(nll[0]),
        "mean_entropy": float(entropy.mean()),
        "max_entropy": float(entropy.max()),
        "first_entropy": float(entropy[0]),
        "min_prob": math.exp(-float(nll.max())),
        "first_prob": math.exp(-float(nll[0])),
        "mean_top_prob": float(measure.top[part.tokens].mean()),
        "off_top_share": 1.0 - float(measure.is_top[part.tokens].double().mean()),
        "n_answer_tokens": float(len(nll)),
    }
