"""Standardised, signed, summed: the fused model by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from semgrad_guard.calibration.curves import fit_logistic, log_odds, sigmoid, smoothed
from semgrad_guard.calibration.fused import Z_LIMIT, FusedModel, SignalColumn, standardiser


def column(name: str, weight: float, **changes: object) -> SignalColumn:
    """Return a column of mean 1 and scale 2 on the plain scale."""
    plain = {"name": name, "transform": "identity", "mean": 1.0, "scale": 2.0, "weight": weight, "average": 1.0}
    return SignalColumn(**{**plain, **changes})  # type: ignore[arg-type]


MODEL = FusedModel(columns=(column("nll", -2.0), column("grounding", 1.0)), intercept=0.5)


def test_the_margin_by_hand() -> None:
    """(3 − 1) / 2 · −2 + (2 − 1) / 2 · 1 + 0.5 = −1."""
    assert MODEL.margin({"nll": 3.0, "grounding": 2.0}) == pytest.approx(-1.0)


def test_rows_and_single_answers_agree() -> None:
    """Fitting uses one form, the request path the other."""
    assert MODEL.margins(np.array([[3.0, 2.0], [1.0, 1.0]])) == pytest.approx([-1.0, 0.5])


def test_the_average_answer_has_the_intercept() -> None:
    """Contributions are counted from there."""
    assert MODEL.parts({"nll": 1.0, "grounding": 1.0}) == pytest.approx([0, 0])


def test_signals_without_weight_are_not_needed() -> None:
    """An answer that lacks a signal that says nothing can still be judged; one column always stays."""
    model = FusedModel(columns=(*MODEL.columns, column("idle", 0.0)), intercept=0.5)
    assert model.pruned() == MODEL
    assert FusedModel(columns=(column("idle", 0.0),), intercept=0.5).pruned().names == ("idle",)


def test_an_outlier_is_cut_off() -> None:
    """One absurd value cannot drown the others."""
    assert MODEL.margin({"nll": 1e9, "grounding": 1.0}) == pytest.approx(0.5 - 2.0 * Z_LIMIT)


def test_a_log_column_reads_ratios() -> None:
    """Ln e = 1 is the mean: no part; a value of 0 counts as the floor, never as minus infinity."""
    model = FusedModel(columns=(column("g", 1.0, transform="log", floor=math.exp(-1)),), intercept=0.0)
    assert model.margin({"g": math.e}) == pytest.approx(0.0)
    assert model.margin({"g": 0.0}) == pytest.approx(-1.0)


def test_missing_names_what_is_absent_or_not_finite() -> None:
    """Optional signals are not missed."""
    model = FusedModel(columns=(*MODEL.columns, column("extra", 1.0, required=False)), intercept=0.0)
    assert model.missing({"nll": math.nan}) == ("nll", "grounding")
    assert model.margin({"nll": 1.0, "grounding": 1.0}) == pytest.approx(0.0)


def test_heavy_tails_are_read_on_a_log_scale() -> None:
    """Gradient norms span decades; shares do not."""
    rng = np.random.default_rng(0)
    assert standardiser("g", np.exp(rng.normal(-8, 2, 500)), required=True).transform == "log"
    assert standardiser("s", rng.random(500), required=True).transform == "identity"
    assert standardiser("d", rng.normal(0, 50, 500), required=True).transform == "identity"


def test_standardised_values_have_mean_zero_and_spread_one() -> None:
    """So that one penalty suits all signals."""
    raw = np.exp(np.random.default_rng(0).normal(-3, 2, 1_000))
    z = standardiser("g", raw, required=True).standardise(raw)
    assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=0.01)


def test_logistic_equals_scikit_learn() -> None:
    """The same penalised likelihood, where no sign binds: ridge λ per row is C = 1 / (n λ)."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = (rng.random(300) < sigmoid(x @ [1.0, -2.0, 0.5] + 0.3)).astype(float)
    weights, intercept = fit_logistic(x, y, signs=[0, 0, 0], ridge=0.01)
    reference = LogisticRegression(C=1 / (300 * 0.01), tol=1e-10, max_iter=1_000).fit(x, y)
    assert weights == pytest.approx(reference.coef_[0], abs=1e-4)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-4)


def test_what_tells_data_sets_apart_teaches_nothing() -> None:
    """Within each set the signal is worth nothing; over both it looks like much, because one has more right answers."""
    rng = np.random.default_rng(1)
    sets = np.repeat([0, 1], 400)
    x = rng.normal(size=(800, 1)) + 3.0 * sets[:, None]
    y = (rng.random(800) < np.where(sets == 1, 0.8, 0.2)).astype(float)
    pooled, _ = fit_logistic(x, y, signs=[0])
    within, intercept = fit_logistic(x, y, signs=[0], strata=sets)
    assert pooled[0] > 0.5
    assert abs(within[0]) < 0.2
    assert intercept == pytest.approx(-3.0 / 2 * within[0], abs=0.15)


def test_counts_with_long_tails_are_read_on_a_scale_of_logs() -> None:
    """A count may be 0, so 1 is added; shares stay as they are."""
    counts = np.array([0.0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 8, 13, 21, 34, 55, 89])
    column = standardiser("missing_words", counts, required=True)
    assert column.transform == "log1p"
    assert column.standardise(np.array([0.0, 89.0])) == pytest.approx(
        (np.log1p([0.0, 89.0]) - column.mean) / column.scale
    )
    assert standardiser("grounding", np.linspace(0, 1, 30), required=True).transform == "identity"


def test_a_sign_that_the_data_contradict_gives_zero() -> None:
    """The bound holds exactly, not nearly."""
    x = np.array([[0.0], [1.0]] * 20)
    weights, _ = fit_logistic(x, np.array([0.0, 1.0] * 20), signs=[-1])
    assert weights[0] == 0.0


def test_separable_labels_do_not_give_endless_slopes() -> None:
    """Platt's smoothed targets keep the optimum finite."""
    margins = np.linspace(-1, 1, 50)
    weights, _ = fit_logistic(margins[:, None], smoothed((margins > 0).astype(float)), signs=[1])
    assert 1 < weights[0] < 100


def test_sigmoid_and_log_odds_are_inverse_and_never_overflow() -> None:
    """Also far out."""
    assert sigmoid(np.array([-1e4, 0.0, 1e4])) == pytest.approx([0, 0.5, 1])
    assert log_odds(sigmoid(np.array([-3.0, 0.1]))) == pytest.approx([-3.0, 0.1])
