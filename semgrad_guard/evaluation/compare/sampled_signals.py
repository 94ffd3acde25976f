"""Signals of several sampled answers: the baselines that ask the model again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.evaluation.grading import clusters, shared_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SAR_TEMPERATURE = 1e-3
"""t of SentSAR (Duan et al. 2024, section 4.2, the value of their experiments)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer."""

    text: str
    mean_nll: float
    """Mean negative log-likelihood of its tokens, in nats."""


def sampled_signals(
    answer: str, samples: Sequence[Sample], alike: NDArray[np.float64], same: float
) -> dict[str, float]:
    """Return the signals of one question, under the names of `signals.SAMPLED`; none with fewer than two samples.

    Args:
        answer: the answer that is judged.
        samples: answers drawn at random for the same prompt.
        alike: likeness of meaning of the answer (first) and the samples, ``(1 + sample, 1 + sample)``, in [0, 1].
        same: likeness from which two say the same.

    Source:
        Semantic entropy: Kuhn, Gal and Farquhar (ICLR 2023), equations 4 and 8, with length-normalised likelihoods;
        its discrete form: Farquhar et al. (Nature 2024). Lexical similarity: Lin, Trivedi and Sun (2023), with word F1
        in place of ROUGE-L. SAR: Duan et al. (ACL 2024), SentSAR. Disagreement: Manakul et al. (EMNLP 2023).
    """
    if len(samples) < 2:
        return {}
    between, to_answer = alike[1:, 1:], alike[0, 1:]
    likelihood = np.exp([-sample.mean_nll for sample in samples])
    meaning = clusters(between, same)
    words = shared_words([sample.text for sample in samples])
    return {
        "semantic_entropy": _entropy(meaning, likelihood / likelihood.sum()),
        "discrete_semantic_entropy": _entropy(meaning, np.full(len(samples), 1 / len(samples))),
        "lexical_dissimilarity": 1.0 - _mean_off_diagonal(words),
        "sentence_sar": _sentence_sar(likelihood, between),
        "sample_disagreement": 1.0 - float(to_answer.mean()) if answer else math.nan,
    }


def _entropy(cluster: Sequence[int], weight: NDArray[np.float64]) -> float:
    """Return the entropy over clusters in nats, from each text's share of the probability."""
    share = np.zeros(max(cluster) + 1)
    np.add.at(share, cluster, weight)
    share = share[share > 0]
    return max(0.0, float(-(share * np.log(share)).sum()))


def _mean_off_diagonal(matrix: NDArray[np.float64]) -> float:
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def _sentence_sar(likelihood: NDArray[np.float64], alike: NDArray[np.float64]) -> float:
    others = (alike - np.diag(np.diag(alike))) @ likelihood
    return float(-np.log(likelihood + others / SAR_TEMPERATURE).mean())
