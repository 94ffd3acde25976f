"""Sampling baselines, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from semgrad_guard.evaluation.compare.sampled_signals import Sample, sampled_signals
from semgrad_guard.evaluation.grading import clusters, shared_words
from semgrad_guard.signals import SAMPLED

PARIS, LYON = Sample("in Paris", math.log(2)), Sample("Lyon", math.log(4))


def of(*samples: Sample, answer: str = "Paris") -> dict[str, float]:
    """Return the signals by shared words."""
    alike = shared_words([answer, *(sample.text for sample in samples)])
    return sampled_signals(answer, samples, alike, 0.5)


def test_samples_that_agree_have_no_entropy() -> None:
    """One meaning is certain, however it is worded."""
    found = of(PARIS, Sample("Paris", 1.0), PARIS)
    assert found["semantic_entropy"] == 0.0
    assert found["discrete_semantic_entropy"] == 0.0


def test_entropy_counts_meanings_by_likelihood_and_by_number() -> None:
    """Likelihoods 1/2, 1/2 and 1/4: the first meaning has 4/5 of them, but 2/3 of the number."""
    found = of(PARIS, PARIS, LYON)
    assert found["semantic_entropy"] == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert found["discrete_semantic_entropy"] == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))


def test_lexical_dissimilarity_is_over_pairs_of_samples() -> None:
    """Pairs: alike, and two with no word in common."""
    assert of(PARIS, PARIS, LYON)["lexical_dissimilarity"] == pytest.approx(2 / 3)


def test_disagreement_compares_the_given_answer() -> None:
    """`Paris` against `in Paris`: F1 is 2/3; against `Lyon` 0."""
    assert of(PARIS, LYON)["sample_disagreement"] == pytest.approx(1 - (2 / 3) / 2)


def test_sar_is_lower_when_samples_support_each_other() -> None:
    """-log(p + p'/t): with likelihood 1/2 each and likeness 1, p/t outweighs p a thousand times."""
    assert of(PARIS, PARIS)["sentence_sar"] == pytest.approx(-math.log(0.5 + 0.5 / 1e-3))
    assert of(PARIS, LYON)["sentence_sar"] == pytest.approx((-math.log(0.5) - math.log(0.25)) / 2)


def test_every_signal_is_named_once() -> None:
    """The table of methods and the computation are one list."""
    assert set(of(PARIS, LYON)) == set(SAMPLED)


def test_one_sample_says_nothing_about_agreement() -> None:
    """An entropy of one sample would always be zero: sure, for no reason."""
    assert of(PARIS) == {}


def test_a_text_joins_the_first_cluster_whose_first_text_is_alike() -> None:
    """Likeness is not transitive: the third is like the second but not like the first."""
    alike = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.9], [0.1, 0.9, 1.0]])
    assert clusters(alike, 0.8) == [0, 0, 1]


def test_wordless_texts_are_like_themselves_only() -> None:
    """Drawn answers may be empty or all marks."""
    assert shared_words(["", "", "...", "Paris"]).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
