"""What must hold for every profile, curve and metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.fit import FITS
from semgrad_guard.calibration.fused import FusedModel, SignalColumn
from semgrad_guard.calibration.profile import LabelPairs, Profile, Reference, parse_profile
from semgrad_guard.calibration.risk import binomial_cdf, upper_bound
from semgrad_guard.flow import Fingerprint

finite = st.floats(-50, 50, allow_nan=False)
labels = st.lists(st.tuples(finite, st.booleans()), min_size=4, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)
confidences = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=50)


@pytest.mark.parametrize("name", FITS)
@settings(max_examples=40, deadline=None)
@given(rows=labels, probes=st.lists(finite, min_size=2, max_size=20))
def test_every_curve_rises_and_stays_in_the_unit_interval(name: str, rows, probes) -> None:
    """A surer margin never lowers the probability, whatever the labels."""
    margins = np.array([margin for margin, _ in rows])
    curve = FITS[name](margins, np.array([float(label) for _, label in rows]))
    found = curve.probabilities(np.sort(np.array([*probes, *margins])))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= -1e-12).all()


names = st.text(min_size=1, max_size=8)
columns = st.builds(
    SignalColumn,
    name=names,
    transform=st.sampled_from(["identity", "log"]),
    floor=st.floats(1e-9, 1),
    mean=finite,
    scale=st.floats(1e-3, 100),
    weight=finite,
    required=st.booleans(),
    average=finite,
)
models = st.builds(
    FusedModel,
    columns=st.lists(columns, min_size=1, max_size=4, unique_by=lambda c: c.name).map(tuple),
    intercept=finite,
)
curves = labels.flatmap(
    lambda rows: st.sampled_from(list(FITS)).map(
        lambda name: FITS[name](np.array([m for m, _ in rows]), np.array([float(y) for _, y in rows]))
    )
)
pairs = confidences.map(
    lambda rows: LabelPairs(
        confidence=tuple(c for c, _ in rows), correct=tuple(y for _, y in rows), group=tuple(range(len(rows)))
    )
)
profiles = st.builds(
    Profile,
    name=names,
    fingerprint=st.builds(Fingerprint, model=names, dtype=names, template=names, settings=names, proxy=st.booleans()),
    method=names,
    model=models,
    curve=curves,
    edge=st.floats(0, 0.49),
    reference=st.builds(Reference, n=st.integers(2, 100), margin=st.lists(finite, min_size=2).map(tuple)),
    pairs=pairs,
    created_at=st.datetimes(timezones=st.just(__import__("datetime").UTC)),
    expires_at=st.none() | st.datetimes(timezones=st.just(__import__("datetime").UTC)),
)


@settings(max_examples=50, deadline=None)
@given(profile=profiles)
def test_writing_and_reading_a_profile_changes_nothing(profile: Profile) -> None:
    """Every float, every odd name."""
    assert parse_profile(profile.model_dump_json(), "memory") == profile


@settings(max_examples=50, deadline=None)
@given(profile=profiles, values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_every_finite_signal_gives_a_confidence_inside_the_edges(profile: Profile, values: list[float]) -> None:
    """Nothing that a model can produce leaves [0, 1] or becomes NaN."""
    signals = dict(zip(profile.model.names, values, strict=False))
    found = profile.confidence_of_margin(profile.margin(signals))
    assert profile.edge <= found <= 1 - profile.edge


@settings(max_examples=50, deadline=None)
@given(profile=profiles, value=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_a_higher_signal_moves_confidence_only_its_own_way(profile: Profile, value: float, more: float) -> None:
    """The sign of a coefficient is the direction of the confidence."""
    column = profile.model.columns[0]
    rest = dict.fromkeys(profile.model.names, 1.0)
    low, high = (profile.confidence_of_margin(profile.margin({**rest, column.name: v})) for v in (value, value + more))
    assert (high - low) * np.sign(column.weight) >= -1e-9


@settings(max_examples=100, deadline=None)
@given(rows=confidences)
def test_metrics_stay_in_their_ranges_and_ignore_the_order_of_rows(rows) -> None:
    """AUROC, AUPRC, AURC, ECE and Brier are shares; PRR is at most 1."""
    confidence = np.array([c for c, _ in rows])
    correct = np.array([float(y) for _, y in rows])
    backwards = confidence[::-1], correct[::-1]
    for metric in (metrics.auroc, metrics.auprc, metrics.aurc, metrics.ece, metrics.brier, metrics.prr):
        found = metric(confidence, correct)
        assert found == pytest.approx(metric(*backwards), nan_ok=True)
        assert np.isnan(found) or found <= 1 + 1e-9
        assert np.isnan(found) or found >= 0 or metric is metrics.prr


@settings(max_examples=100, deadline=None)
@given(rows=confidences, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_ranking_metrics_see_only_the_order(rows, scale: float, shift: float) -> None:
    """Raw scores can be compared without calibration."""
    confidence = np.round(np.array([c for c, _ in rows]), 3)
    correct = np.array([float(y) for _, y in rows])
    for metric in (metrics.auroc, metrics.auprc, metrics.aurc, metrics.prr):
        moved = metric(np.round(confidence * 1000) * scale + shift, correct)
        assert metric(confidence, correct) == pytest.approx(moved, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 300), share=st.floats(0, 1), delta=st.floats(0.001, 0.5))
def test_the_upper_bound_is_where_the_tail_is_delta(n: int, share: float, delta: float) -> None:
    """By its definition, and never below what was seen."""
    k = int(share * n)
    bound = upper_bound(k, n, delta)
    assert bound >= k / n
    if k < n:
        assert binomial_cdf(k, n, bound) == pytest.approx(delta, rel=1e-3)
