"""Labelled scores -> profile: what is used, what is dropped, what is refused, and honest figures."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from semgrad_guard.calibration import LabelledScore, ProfileCalibrator, fit_profile
from semgrad_guard.calibration.fit import Folds, Plan, fit, out_of_fold
from semgrad_guard.calibration.fused import fit_fused
from semgrad_guard.calibration.labels import collect, grouped_folds
from semgrad_guard.errors import (
    CalibrationError,
    MixedScoresError,
    OneClassError,
    SignalUnavailableError,
    TooFewLabelsError,
)
from semgrad_guard.flow import Exchange, Fingerprint, Score


def quick(rows, **options: object):
    """Return a profile with few bootstrap draws."""
    return fit_profile(rows, **{"name": "p", "calibrator": "platt", "draws": 20, **options})  # type: ignore[arg-type]


def test_a_fused_profile_beats_its_best_signal(rows) -> None:
    """Three signals that each know something know more together, out-of-sample."""
    evidence = quick(rows(400)).evidence
    assert evidence.auroc.value > max(found.value for found in evidence.signals.values()) + 0.03


def test_the_figures_hold_on_new_answers(rows) -> None:
    """What is reported out-of-sample is what 5,000 fresh answers show."""
    profile = quick(rows(400))
    fresh = collect(rows(5_000, seed=99))
    confidence = np.array(
        [profile.confidence_of_margin(m) for m in profile.model.margins(fresh.select(profile.model.names).signals)]
    )
    gap = np.abs(confidence.mean() - fresh.correct.mean())
    brier = ((confidence - fresh.correct) ** 2).mean()
    assert gap < 0.05
    assert brier == pytest.approx(profile.evidence.brier.value, abs=0.02)


def test_noise_is_worth_nothing_and_says_so(rows) -> None:
    """Labels drawn at random: nested cross-validation must not find skill where there is none."""
    rng = np.random.default_rng(0)
    shuffled = [replace(row, correct=bool(rng.random() < 0.5)) for row in rows(400)]
    assert quick(shuffled).evidence.auroc.value == pytest.approx(0.5, abs=0.07)


def test_a_single_signal_profile_reads_only_that_signal(rows) -> None:
    """`method` names it."""
    profile = quick(rows(100), method="mean_nll")
    assert (profile.method, profile.model.names) == ("mean_nll", ("mean_nll",))


def test_below_fifty_labels_the_best_single_score_is_used(rows) -> None:
    """Few labels cannot weigh several signals; the profile says that it did not try."""
    profile = quick(rows(40))
    assert len(profile.model.names) == 1
    assert profile.method == profile.model.names[0]
    assert "40 labels are fewer than 50" in profile.notes[0]


def test_coefficients_keep_their_directions(rows) -> None:
    """Even where the labels say the opposite, uncertainty never raises confidence, and grounding never lowers it."""
    upside_down = [replace(row, correct=not row.correct) for row in rows(300)]
    weights = {column.name: column.weight for column in quick(upside_down).model.columns}
    assert not {"semgrad", "mean_nll", "grounding"} & set(weights)


def test_the_callers_directions_come_first(rows) -> None:
    """A signal of one's own can be given a direction, and a known one another."""
    profile = quick(rows(300), directions={"grounding": -1, "length": 1})
    weights = {column.name: column.weight for column in profile.model.columns}
    assert "grounding" not in weights
    assert weights.get("length", 0) >= 0


def test_equal_input_and_seed_give_an_equal_profile(rows) -> None:
    """But for the time stamp."""
    one, two = quick(rows(80), calibrator="auto"), quick(rows(80), calibrator="auto")
    assert one == two.model_copy(update={"created_at": one.created_at})


def test_rows_with_nan_are_dropped_and_counted(rows) -> None:
    """A NaN in a signal that nearly all rows have drops its row, never the run."""
    labelled = list(rows(200))
    labelled[3] = replace(labelled[3], signals={**labelled[3].signals, "semgrad": math.nan})
    labelled[4] = replace(labelled[4], signals={**labelled[4].signals, "mean_nll": math.inf})
    profile = quick(labelled)
    assert (profile.n_labels, profile.n_dropped) == (198, 2)
    assert "2 rows left out" in profile.notes[0]


def test_a_signal_that_many_rows_lack_is_optional(rows, score) -> None:
    """Answers without passages have no grounding: in both fitting and use the average stands in."""
    labelled = [
        replace(row, signals={k: v for k, v in row.signals.items() if k != "grounding" or i % 5})
        for i, row in enumerate(rows(300))
    ]
    profile = quick(labelled)
    assert profile.n_labels == 300
    assert {c.name: c.required for c in profile.model.columns}["grounding"] is False
    without = score()
    without = replace(without, signals={k: v for k, v in without.signals.items() if k != "grounding"})
    assert ProfileCalibrator(profile).confidence(Exchange(), without).value is not None


def test_a_signal_that_most_rows_lack_is_not_used(rows) -> None:
    """And the notes name it."""
    labelled = [
        replace(row, signals={k: v for k, v in row.signals.items() if k != "grounding" or i % 3 == 0})
        for i, row in enumerate(rows(300))
    ]
    profile = quick(labelled)
    assert "grounding" not in profile.model.names
    assert any("not used" in note and "grounding" in note for note in profile.notes)


def test_a_constant_signal_is_not_used(rows) -> None:
    """It says nothing, and its scale would be 0."""
    labelled = [replace(row, signals={**row.signals, "constant": 1.0}) for row in rows(100)]
    assert "constant" not in quick(labelled).model.names


def test_three_rows_are_too_few(rows) -> None:
    """The error says how many are needed."""
    labelled = [replace(row, correct=i > 0) for i, row in enumerate(rows(3))]
    with pytest.raises(TooFewLabelsError) as caught:
        quick(labelled)
    assert (caught.value.n, caught.value.needed) == (3, 20)


def test_no_rows_are_an_error() -> None:
    """An empty file must not look like a profile."""
    with pytest.raises(TooFewLabelsError) as caught:
        quick([])
    assert caught.value.n == 0


@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_a_clear_error(rows, label: bool) -> None:
    """Nothing can be learned about answers that were never seen."""
    with pytest.raises(OneClassError) as caught:
        quick([replace(row, correct=label) for row in rows(100)])
    assert (caught.value.label, caught.value.n) == (label, 100)


def test_too_few_of_one_kind_are_named(rows) -> None:
    """A hundred right answers and three wrong ones cannot be split into folds."""
    with pytest.raises(TooFewLabelsError, match="questions with a wrong answer") as caught:
        quick([replace(row, correct=i > 2) for i, row in enumerate(rows(100))])
    assert (caught.value.n, caught.value.needed) == (3, 4)


@pytest.mark.parametrize("rare", [True, False])
@pytest.mark.parametrize("calibrator", ["auto", "venn_abers"])
def test_the_fewest_allowed_of_one_kind_are_enough(rows, rare: bool, calibrator: str) -> None:
    """Four of the rarer kind survive two nested splits."""
    labelled = [replace(row, correct=(i < 4) == rare) for i, row in enumerate(rows(60))]
    assert quick(labelled, calibrator=calibrator).n_labels == 60


def test_models_are_never_mixed(rows) -> None:
    """The error names row and difference."""
    other = Fingerprint(
        model="m2", dtype="float32", template="t1", settings="position -3, blocks 15 to 29, by answer, texts by claim"
    )
    labelled = [*rows(30), *rows(1, fingerprint=other)]
    with pytest.raises(MixedScoresError, match="model 'm2' instead of 'm1'") as caught:
        quick(labelled)
    assert caught.value.row == 31


def test_proxy_and_own_answers_are_never_mixed(rows) -> None:
    """A score of another model's answer means something else."""
    labelled = list(rows(30))
    labelled[5] = replace(labelled[5], fingerprint=replace(labelled[5].fingerprint, proxy=True))
    with pytest.raises(MixedScoresError, match="proxy True"):
        quick(labelled)


def test_rows_without_fingerprint_need_one(rows) -> None:
    """A profile that fits everything would calibrate what it does not know."""
    with pytest.raises(CalibrationError, match="which model"):
        quick(rows(50, fingerprint=None))
    given = Fingerprint(model="own", dtype="float32", template="", settings="")
    assert quick(rows(50, fingerprint=None), fingerprint=given, method="semgrad").fingerprint == given


def test_an_unknown_signal_lists_the_known(rows) -> None:
    """A typo in `method` is answered with the choice."""
    with pytest.raises(SignalUnavailableError, match="mean_nll") as caught:
        quick(rows(50), method="mean_nlll")
    assert "fused" in caught.value.known


def test_the_expiry_date_is_kept(rows) -> None:
    """It is checked when the profile is applied."""
    end = datetime(2030, 1, 1, tzinfo=UTC)
    assert quick(rows(50), expires=end, method="semgrad").expires_at == end


def test_held_out_answers_were_not_fitted_on(rows) -> None:
    """A quarter of the questions make the pairs; the fit has the rest."""
    profile = quick(rows(400), held_out=0.25, method="semgrad")
    assert profile.pairs.held_out
    assert len(profile.pairs.confidence) == 100
    assert profile.edge == pytest.approx(1 / 302)


def test_copies_of_a_question_do_not_flatter(rows) -> None:
    """Every row 4 times under one group: a model that remembers its training rows gains nothing on the folds."""
    rng = np.random.default_rng(0)
    unknowable = [replace(row, correct=bool(rng.random() < 0.5)) for row in rows(60)]
    copies = [row for row in unknowable for _ in range(4)]
    assert quick(copies, calibrator="isotonic", method="semgrad").evidence.auroc.value < 0.65


def test_a_long_stream_is_sampled_in_bounded_memory(rows) -> None:
    """Rows are read once and only `max_rows` of them held; the count of all is kept."""
    profile = quick((row for row in rows(5_000)), max_rows=300, method="semgrad")
    assert (profile.n_labels, profile.n_seen) == (300, 5_000)
    assert "sample of 300 of 5000" in profile.notes[-1]


def test_the_sample_is_uniform() -> None:
    """Late rows are kept as often as early ones."""
    fingerprint = Fingerprint(model="m", dtype="", template="", settings="")
    stream = (LabelledScore(signals={"i": float(i)}, correct=False, fingerprint=fingerprint) for i in range(10_000))
    kept = collect(stream, max_rows=1_000).signals[:, 0]
    assert kept.mean() == pytest.approx(5_000, abs=4 * 10_000 / np.sqrt(12 * 1_000))


def test_folds_never_split_a_group_and_test_every_row_once() -> None:
    """Answers to one question on both sides would leak the label."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    correct = (rng.random(300) < 0.3).astype(float)
    folds = grouped_folds(correct, groups, seed=0)
    assert np.sum(folds, axis=0).tolist() == [1] * 300
    for test in folds:
        assert not set(groups[test]) & set(groups[~test])


def test_folds_share_out_the_rarer_kind() -> None:
    """Ten right answers in a thousand: two in each of five folds."""
    correct = np.zeros(1_000)
    correct[::100] = 1
    assert [correct[test].sum() for test in grouped_folds(correct, np.arange(1_000), seed=0)] == [2] * 5


def test_out_of_fold_confidences_differ_from_in_sample_ones(rows) -> None:
    """They come from fits that did not see the row."""
    labels = collect(rows(100))
    plan = Plan(method="fused", calibrator="isotonic", required=dict.fromkeys(labels.names, True))
    honest = out_of_fold(labels, plan)
    flattering = fit(labels, plan).confidences(labels)
    assert ((honest - labels.correct) ** 2).mean() > ((flattering - labels.correct) ** 2).mean()


def test_columns_standardised_once_a_fold_fit_as_each_fold_by_itself(rows) -> None:
    """With adversarial rows, whose weight is tried later, signals that rows lack, and a part of the signals."""
    made = [
        replace(
            row,
            signals={name: value for name, value in row.signals.items() if n % 7 or name != "grounding"},
            adversarial="denied answer" if n % 5 == 0 and not row.correct else None,
        )
        for n, row in enumerate(rows(120))
    ]
    labels = collect(made)
    plan = Plan(method="fused", calibrator="platt", required=dict.fromkeys(labels.names, False))
    folds = Folds(labels, plan)
    for share, names in ((1.0, labels.names), (0.02, ("grounding", "semgrad"))):
        some = replace(labels.select(names), adversarial_share=share)
        found = folds.margins(some, [0.1])[0.1]
        for test in labels.folds(plan.seed + 1):
            alone = fit_fused(
                some.take(~test), signs=[plan.sign(name) for name in names], required=[False] * len(names), ridge=0.1
            )
            assert found[test] == pytest.approx(alone.margins(some.signals[test]), abs=1e-9)


def test_a_score_labels_itself() -> None:
    """`LabelledScore.of` takes everything that a scorer gave."""
    score = Score(
        method="hybridgrad",
        value=2.0,
        signals={"semgrad": 1.0},
        fingerprint=Fingerprint(model="m", dtype="", template="", settings=""),
        model="tiny",
    )
    labelled = LabelledScore.of(score, correct=True, group="q1", tags=frozenset({"a"}))
    assert labelled.signals == {"hybridgrad": 2.0, "semgrad": 1.0}
    assert (labelled.fingerprint, labelled.group, labelled.tags) == (score.fingerprint, "q1", {"a"})
