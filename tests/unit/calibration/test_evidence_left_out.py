"""Evidence from other data: sets left out in turn, sets that are only reported, answers that must lose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from semgrad_guard.calibration import fit_profile, load_profile, shipped_profiles
from semgrad_guard.calibration.labels import collect
from semgrad_guard.calibration.metrics import auroc_within, share_right_above
from semgrad_guard.errors import ImpossibleSignalError
from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.scoring.texts.text_signals import grounding_signals, retrieval_signals
from semgrad_guard.signals import SIGNALS

if TYPE_CHECKING:
    from semgrad_guard.calibration import LabelledScore


@pytest.fixture(name="of_sets")
def _of_sets(rows: Any) -> list[LabelledScore]:
    """Three sets with different shares of right answers, by two authors."""
    return [
        replace(row, source=name, author=f"model {i % 2}", group=f"{name} {row.group}")
        for number, name in enumerate(("a", "b", "c"))
        for i, row in enumerate(rows(80, seed=number, base_rate=0.3 + 0.2 * number))
    ]


def test_each_set_is_judged_by_a_fit_on_the_others(of_sets: list[LabelledScore]) -> None:
    """With the baselines beside it, and shares right above three confidences."""
    profile = fit_profile(of_sets, name="sets", draws=20)
    assert profile.evidence is not None
    found = profile.evidence.left_out
    assert list(found) == ["a", "b", "c"]
    assert sum(one.n for one in found.values()) == profile.n_labels == 240
    assert all(one.auroc.value is not None and one.auroc.value > 0.6 for one in found.values())
    assert all(list(one.right_above) == ["0.5", "0.7", "0.9"] for one in found.values())
    assert all("words found" in one.baselines for one in found.values())
    assert all(one.auroc_same_author is not None for one in found.values())


def test_two_sets_are_too_few_to_leave_one_out(of_sets: list[LabelledScore]) -> None:
    """The rest would be one set alone."""
    profile = fit_profile([row for row in of_sets if row.source != "c"], name="two", draws=20)
    assert profile.evidence is not None
    assert profile.evidence.left_out == {}


def test_a_reported_set_changes_no_fit(of_sets: list[LabelledScore], rows: Any) -> None:
    """It may be a set whose licence allows no more."""
    further = [replace(row, source="z") for row in rows(60, seed=9)]
    plain = fit_profile(of_sets, name="p", draws=20)
    told = fit_profile(of_sets, name="p", draws=20, reported=further)
    assert told.model == plain.model
    assert told.evidence is not None
    assert told.evidence.left_out["z (not fitted on)"].n == 60


def test_adversarial_rows_teach_and_are_no_evidence(rows: Any) -> None:
    """Their only mark is a signal that is constant in honest rows; the fit learns it, and counts honest rows only."""
    honest = [replace(row, signals={**row.signals, "suspicious_passages": 0.0}) for row in rows(200)]
    made = [
        replace(row, correct=False, adversarial="orders", signals={**row.signals, "suspicious_passages": 1.0})
        for row in honest
        if row.correct
    ]
    profile = fit_profile([*honest, *made], name="taught", draws=20)
    assert profile.evidence is not None
    assert (profile.n_labels, len(profile.pairs.correct)) == (200, 200)
    assert profile.evidence.adversarial["orders"].n == len(made)
    assert profile.evidence.adversarial["orders"].accepted < 0.1
    weights = {column.name: column.weight for column in profile.model.columns}
    assert weights["suspicious_passages"] < 0
    assert any("made to look right" in note for note in profile.notes)


def test_adversarial_rows_weigh_little_together(rows: Any) -> None:
    """A hundred of them count as much as their share of ten honest rows."""
    honest = list(rows(10))
    labels = collect([*honest, *(replace(honest[0], adversarial="orders", group=f"made {i}") for i in range(100))])
    labels = replace(labels, adversarial_share=0.5)
    assert labels.weights[labels.honest].sum() == 10
    assert labels.weights[~labels.honest].sum() == pytest.approx(5)


def test_the_same_label_given_twice_counts_once(rows: Any) -> None:
    """Of one question; answers without a question may well look alike."""
    some = list(rows(10))
    assert len(collect([replace(row, group="q") for row in [*some, *some]])) == 10
    assert len(collect([replace(row, group=None) for row in [*some, *some]])) == 20


@pytest.mark.parametrize(
    ("name", "value"), [("grounding", 1.5), ("grounding", -0.5), ("mean_nll", -1.0), ("n_words", -3.0)]
)
def test_a_value_that_a_signal_cannot_have_is_refused(rows: Any, name: str, value: float) -> None:
    """With the row, what was seen and what there can be."""
    bad = [replace(row, signals={**row.signals, name: value}) for row in rows(3)]
    with pytest.raises(ImpossibleSignalError, match=f"row 1: {name} is"):
        collect(bad)


def test_pairs_of_one_kind_alone_are_compared() -> None:
    """Kind 0: 0.9 right above 0.1 wrong; kind 1: 0.2 right below 0.8 wrong. Over all pairs it would be 3 of 4."""
    found = auroc_within(np.array([0.9, 0.1, 0.2, 0.8]), np.array([1, 0, 1, 0.0]), np.array([0, 0, 1, 1]))
    assert found == 0.5


def test_the_share_right_above_a_confidence() -> None:
    """Of 0.7 and 0.9, one is right; nothing has 0.95."""
    confidence, correct = np.array([0.3, 0.7, 0.9]), np.array([1, 0, 1.0])
    assert share_right_above(0.7)(confidence, correct) == 0.5
    assert np.isnan(share_right_above(0.95)(confidence, correct))


def test_the_shipped_proxy_reads_texts_alone_and_says_what_it_was_fitted_on() -> None:
    """So it fits whatever scores."""
    assert set(shipped_profiles()) == {"proxy", "smollm2-135m-demo"}
    profile = load_profile("proxy")
    assert {SIGNALS[name].family for fit in profile.fits() for name in fit.model.names} == {"text"}
    assert "RAGTruth" in profile.basis
    assert profile.brief is not None
    assert profile.brief.max_words == 12
    assert profile.evidence is not None
    assert len(profile.evidence.left_out) == 6


@pytest.mark.parametrize("name", ["proxy"])
def test_a_shipped_profile_tells_right_from_made_up(name: str) -> None:
    """Of an obvious pair."""
    profile = load_profile(name)
    passages = (Passage("The lighthouse of Tarn was built in 1846 by Anna Berg. It is 41 m high."),)

    def confidence(answer: str) -> float:
        exchange = Exchange(question="Who built the lighthouse of Tarn?", answer=answer, passages=passages)
        signals = grounding_signals(exchange) | retrieval_signals(passages)
        fit = next(fit for fit in profile.fits() if not fit.is_too_long(signals))
        return fit.confidence_of_margin(fit.margin(signals))

    right = confidence("Anna Berg built it.")
    assert right > 0.8
    assert confidence("Olaf Lund, a painter from Sund, built it with his brother.") < right - 0.25
