"""Calibration curves against numbers that can be worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from semgrad_guard.calibration.curves import (
    BetaCurve,
    CautiousCurve,
    IsotonicCurve,
    PercentileCurve,
    PlattCurve,
    VennAbersCurve,
)
from semgrad_guard.calibration.fit import (
    FITS,
    MAX_KNOTS,
    fit_beta,
    fit_curve,
    fit_isotonic,
    fit_platt,
    fit_venn_abers,
)


def test_platt_is_the_logistic_of_slope_and_intercept() -> None:
    """Margin 1 with slope 2 and intercept -2 is log-odds 0, an even chance."""
    assert PlattCurve(slope=2.0, intercept=-2.0).probabilities(np.array([1.0])) == pytest.approx([0.5])


def test_platt_of_two_margins_gives_the_smoothed_label_means() -> None:
    """Two points, two parameters: the fit passes through the mean smoothed label at each margin.

    4 right answers at margin 1, 4 wrong at margin 0: targets (4+1)/(4+2) = 5/6 and 1/(4+2) = 1/6.
    """
    curve = fit_platt(np.repeat([1.0, 0.0], 4), np.repeat([1.0, 0.0], 4))
    assert curve.probabilities(np.array([1.0, 0.0])) == pytest.approx([5 / 6, 1 / 6], abs=1e-4)


def test_platt_never_slopes_downwards() -> None:
    """A margin that points the wrong way becomes useless, not upside down."""
    curve = fit_platt(np.repeat([1.0, 0.0], 10), np.repeat([0.0, 1.0], 10))
    assert curve.slope == 0.0


def test_beta_with_unit_coefficients_changes_nothing() -> None:
    """With a = b = 1 and c = 0, ln p − ln(1 − p) is the margin itself."""
    margins = np.array([-30.0, -1.0, 0.0, 2.0, 30.0])
    expected = 1 / (1 + np.exp(-margins))
    assert BetaCurve(a=1, b=1, c=0).probabilities(margins) == pytest.approx(expected)


def test_beta_fit_recovers_honest_margins() -> None:
    """Labels drawn from the margin's own probability need no correction."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 20_000)
    correct = (rng.random(20_000) < 1 / (1 + np.exp(-margins))).astype(float)
    curve = fit_beta(margins, correct)
    assert (curve.a, curve.b, curve.c) == pytest.approx((1, 1, 0), abs=0.1)


def test_isotonic_pools_what_is_out_of_order() -> None:
    """Labels 0 1 0 1: the middle pair is out of order and becomes its mean, 1/2."""
    curve = fit_isotonic(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert curve.probabilities(np.array([-9.0, 0.0, 1.0, 2.0, 3.0, 9.0])) == pytest.approx([0, 0, 0.5, 0.5, 1, 1])


def test_isotonic_is_flat_outside_its_knots() -> None:
    """Beyond the labels there is no evidence for more."""
    curve = IsotonicCurve(knots=(0.0, 1.0), values=(0.2, 0.7))
    assert curve.probabilities(np.array([-5.0, 0.5, 5.0])) == pytest.approx([0.2, 0.45, 0.7])


def test_venn_abers_by_hand() -> None:
    """Two labels, wrong at 0 and right at 1; a new answer between them.

    Taken as wrong: labels 0 0 1 in order, its fit is 0. Taken as right: 0 1 1, its fit is 1. Merged: 1 / (1 − 0 + 1).
    Below both, taken as right: 1 0 1 pools to 1/2 1/2 1; p = 0.5 / (1 − 0 + 0.5) = 1/3; above both it is 1 − 1/3.
    """
    curve = fit_venn_abers(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert curve.probabilities(np.array([0.5, -1.0, 2.0])) == pytest.approx([1 / 2, 1 / 3, 2 / 3])


def test_the_last_bit_of_a_margin_does_not_move_it_off_a_knot() -> None:
    """Where many labels share a margin the curve jumps, and the same answer in another batch differs by a bit."""
    curve = fit_venn_abers(np.array([-1.0, -1.0, 0.3, 0.3, 0.3]), np.array([0.0, 0.0, 1.0, 1.0, 1.0]))
    at, below = curve.probabilities(np.array([0.3, np.nextafter(0.3, 0.0)]))
    assert below == at > curve.probabilities(np.array([0.2]))[0]


def test_venn_abers_equals_its_definition() -> None:
    """The table agrees with refitting isotonic regression for every new answer, as the paper defines it."""
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(1)
    margins = np.round(rng.normal(size=40), 1)
    correct = (rng.random(40) < 1 / (1 + np.exp(-margins))).astype(float)
    curve = fit_venn_abers(margins, correct)
    for new in [*margins[:10], -4.0, 4.0, 0.05]:
        for label, bound in zip((0.0, 1.0), curve.bounds(np.array([new])), strict=True):
            refit = IsotonicRegression().fit(np.append(margins, new), np.append(correct, label))
            assert bound[0] == pytest.approx(refit.predict([new])[0])


def test_venn_abers_pools_many_margins() -> None:
    """A long calibration set is held in a bounded table that still tells the margins apart."""
    rng = np.random.default_rng(2)
    margins = rng.normal(size=5_000)
    correct = (rng.random(5_000) < 1 / (1 + np.exp(-margins))).astype(float)
    curve = fit_venn_abers(margins, correct)
    assert len(curve.knots) <= MAX_KNOTS
    assert curve.probabilities(np.array([-1.5, 1.5])) == pytest.approx([0.182, 0.818], abs=0.06)


def test_venn_abers_doubts_more_with_fewer_labels() -> None:
    """The distance of p0 and p1 says how many labels speak."""
    few = fit_venn_abers(np.arange(6.0), np.array([0, 0, 1, 0, 1, 1.0]))
    many = fit_venn_abers(np.repeat(np.arange(6.0), 50), np.repeat([0, 0, 1, 0, 1, 1.0], 50))
    width = [float(np.subtract(*c.bounds(np.array([2.5]))[::-1])[0]) for c in (few, many)]
    assert width[0] > 5 * width[1]


def test_percentile_curve_is_the_share_below() -> None:
    """Half of the reference lies below its median; between two reference margins the share is interpolated."""
    curve = PercentileCurve(margins=(0.0, 1.0, 3.0), shares=(0.25, 0.5, 0.75))
    assert curve.probabilities(np.array([1.0, 2.0, 9.0])) == pytest.approx([0.5, 0.625, 0.75])


def test_auto_keeps_platt_where_it_is_true() -> None:
    """Isotonic must not win by chance on labels that are logistic in the margin."""
    rng = np.random.default_rng(3)
    margins = rng.normal(size=120)
    correct = (rng.random(120) < 1 / (1 + np.exp(-2 * margins))).astype(float)
    curve = fit_curve(margins, correct, np.arange(120), calibrator="auto", seed=0)
    assert isinstance(curve, CautiousCurve)
    assert isinstance(curve.fitted, PlattCurve)


def test_auto_takes_isotonic_where_a_logistic_cannot_bend() -> None:
    """A step in the middle of many labels is no logistic, and isotonic finds it."""
    rng = np.random.default_rng(4)
    margins = rng.normal(0, 3, 3_000)
    correct = (rng.random(3_000) < np.where(margins < 0, 0.3, 0.6)).astype(float)
    curve = fit_curve(margins, correct, np.arange(3_000), calibrator="auto", seed=0)
    assert isinstance(curve, CautiousCurve)
    assert isinstance(curve.fitted, IsotonicCurve)


def test_where_labels_end_the_curve_follows_them_and_not_its_shape() -> None:
    """Six in ten are right at the top, but a logistic through the rest goes on to nine in ten."""
    rng = np.random.default_rng(6)
    margins = rng.normal(-1.5, 1.5, 3_000)
    chance = np.minimum(1 / (1 + np.exp(-2 * margins)), 0.6)
    correct = (rng.random(3_000) < chance).astype(float)
    top = margins > 1.0
    platt = fit_platt(margins, correct).probabilities(margins[top]).mean()
    cautious = CautiousCurve(fitted=fit_platt(margins, correct), counted=fit_venn_abers(margins, correct))
    assert platt > 0.7
    assert cautious.probabilities(margins[top]).mean() == pytest.approx(correct[top].mean(), abs=0.05)


@pytest.mark.parametrize("name", FITS)
def test_a_named_calibrator_is_used(name: str) -> None:
    """The caller's choice is not second-guessed."""
    rng = np.random.default_rng(5)
    margins = rng.normal(size=60)
    correct = (rng.random(60) < 0.5).astype(float)
    assert fit_curve(margins, correct, np.arange(60), calibrator=name, seed=0).kind == name  # type: ignore[arg-type]


def test_venn_abers_table_is_indexed_at_knots_and_gaps() -> None:
    """Index 2 k + 1 is knot k, even indices are the gaps around it."""
    curve = VennAbersCurve(knots=(0.0,), if_wrong=(0.1, 0.2, 0.3), if_right=(0.4, 0.5, 0.6))
    low, high = curve.bounds(np.array([-1.0, 0.0, 1.0]))
    assert (low.tolist(), high.tolist()) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


NO_CURVES = [
    (IsotonicCurve, {"knots": (0.0, 1.0), "values": (0.7, 0.2)}, "ascending"),
    (IsotonicCurve, {"knots": (1.0, 0.0), "values": (0.2, 0.7)}, "ascending"),
    (IsotonicCurve, {"knots": (0.0, 1.0), "values": (0.2,)}, "2 entries"),
    (IsotonicCurve, {"knots": (0.0,), "values": (1.5,)}, "less than or equal to 1"),
    (VennAbersCurve, {"knots": (0.0,), "if_wrong": (0.1, 0.2, 0.3), "if_right": (0.4, 0.5)}, "3 entries"),
    (VennAbersCurve, {"knots": (0.0,), "if_wrong": (0.3, 0.2, 0.1), "if_right": (0.4, 0.5, 0.6)}, "ascending"),
    (VennAbersCurve, {"knots": (0.0,), "if_wrong": (1.0, 1.0, 1.0), "if_right": (0.0, 0.0, 0.0)}, "not be below"),
    (PercentileCurve, {"margins": (0.0, 1.0), "shares": (0.9, 0.1)}, "ascending"),
    (PercentileCurve, {"margins": (0.0, 1.0), "shares": (0.1,)}, "2 entries"),
    (PlattCurve, {"slope": 1e300, "intercept": 0.0}, "less than or equal to"),
    (BetaCurve, {"a": 0.0, "b": 0.0, "c": -1e300}, "greater than or equal to"),
]


@pytest.mark.parametrize(("kind", "numbers", "why"), NO_CURVES)
def test_numbers_that_are_no_curve_are_refused(kind, numbers, why) -> None:
    """They would give NaN, an error in the middle of an answer, or less confidence for more."""
    with pytest.raises(ValueError, match=why):
        kind(**numbers)
