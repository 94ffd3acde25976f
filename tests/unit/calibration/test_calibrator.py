"""A score that fits the profile gets a confidence; any other stays uncalibrated and says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from semgrad_guard.calibration import Profile, ProfileCalibrator
from semgrad_guard.calibration.curves import log_odds
from semgrad_guard.flow import Exchange, Fingerprint, Score, SpanScore
from semgrad_guard.ports import Calibrator

MakeScore = Callable[..., Score]


@pytest.fixture(name="calibrator")
def _calibrator(profile: Profile) -> ProfileCalibrator:
    return ProfileCalibrator(profile)


def confidence_of(calibrator: ProfileCalibrator, score: Score):
    """Return the confidence of a score; the exchange plays no part."""
    return calibrator.confidence(Exchange(), score)


def test_it_is_a_calibrator(calibrator: ProfileCalibrator) -> None:
    """The guard only knows the port."""
    assert isinstance(calibrator, Calibrator)


def test_a_fitting_score_gets_a_probability(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """A confidence is inside (0, 1) and names its profile."""
    confidence = confidence_of(calibrator, score())
    assert confidence.value is not None
    assert 0 < confidence.value < 1
    assert confidence.profile == "synthetic"
    assert not confidence.label_free


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "m2"), ("dtype", "bfloat16"), ("template", "t2"), ("settings", "position=-1"), ("proxy", True)],
)
def test_any_difference_of_the_fingerprint_leaves_it_uncalibrated(
    calibrator: ProfileCalibrator, score: MakeScore, field: str, value: object
) -> None:
    """A number from another model, precision, template, setting or author means something else."""
    plain = score()
    changed = {name: getattr(plain.fingerprint, name) for name in ("model", "dtype", "template", "settings", "proxy")}
    other = score(fingerprint=Fingerprint(**{**changed, field: value}))
    confidence = confidence_of(calibrator, other)
    assert confidence.value is None
    assert field in confidence.why
    assert repr(value) in confidence.why


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_signal_that_is_not_finite_leaves_it_uncalibrated(
    calibrator: ProfileCalibrator, score: MakeScore, bad: float
) -> None:
    """NaN must never turn into a probability."""
    confidence = confidence_of(calibrator, score(signals={"mean_nll": bad}))
    assert confidence.value is None
    assert "mean_nll" in confidence.why


def test_a_missing_signal_leaves_it_uncalibrated(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """A profile that reads grounding cannot judge an answer without passages."""
    full = score()
    without = Score(
        method="semgrad",
        value=full.value,
        signals={k: v for k, v in full.signals.items() if k != "grounding"},
        fingerprint=full.fingerprint,
        model="tiny",
    )
    confidence = confidence_of(calibrator, without)
    assert confidence.value is None
    assert "grounding" in confidence.why


def test_an_expired_profile_calibrates_nothing(profile: Profile, score: MakeScore) -> None:
    """At the expiry moment itself it is over."""
    end = datetime(2030, 1, 1, tzinfo=UTC)
    expiring = profile.model_copy(update={"expires_at": end})
    before = ProfileCalibrator(expiring, clock=lambda: datetime(2029, 12, 31, tzinfo=UTC))
    after = ProfileCalibrator(expiring, clock=lambda: end)
    assert confidence_of(before, score()).value is not None
    assert confidence_of(after, score()).value is None
    assert "expired on 2030-01-01" in confidence_of(after, score()).why


def test_contributions_add_up_to_the_change_of_log_odds(
    calibrator: ProfileCalibrator, profile: Profile, score: MakeScore
) -> None:
    """Each weight is a share of the move from the average answer to this one."""
    confidence = confidence_of(calibrator, score(signals={"grounding": 0.0}))
    ends = np.array([profile.confidence_of_margin(profile.model.intercept), confidence.value])
    average, own = log_odds(ends)
    assert sum(c.weight for c in confidence.contributions) == pytest.approx(own - average)


def test_low_confidence_says_what_lowers_it(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """The reason is in words that a user knows, strongest first."""
    confidence = confidence_of(calibrator, score(signals={"grounding": 0.0}))
    assert confidence.contributions[0].signal == "grounding"
    assert confidence.contributions[0].weight < 0
    assert "low because: answer words are not in the passages" in confidence.why


def test_high_confidence_says_what_raises_it(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """A high confidence is explained by what speaks for the answer."""
    confidence = confidence_of(calibrator, score(signals={"grounding": 1.0, "semgrad": 0.05}))
    assert "high because:" in confidence.why
    assert "answer words are in the passages" in confidence.why


def test_confidence_keeps_off_zero_and_one(profile: Profile) -> None:
    """Labels in finite number prove no certainty: the nearest to 0 and 1 is 1 / (n + 2)."""
    assert profile.confidence_of_margin(1e6) == pytest.approx(1 - 1 / 302)
    assert profile.confidence_of_margin(-1e6) == pytest.approx(1 / 302)


def test_spans_get_confidences_where_their_signals_are_there(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """A sentence without one of the signals stays uncalibrated, beside one that has all."""
    signals = score().signals
    spans = (SpanScore(0, 5, signals), SpanScore(6, 9, {"semgrad": 1.0}))
    judged = calibrator.with_span_confidences(score(spans=spans))
    assert judged.spans[0].confidence == confidence_of(calibrator, score()).value
    assert judged.spans[1].confidence is None


def test_spans_of_another_model_stay_uncalibrated(calibrator: ProfileCalibrator, score: MakeScore) -> None:
    """The fingerprint rule holds for sentences too."""
    other = score(
        spans=(SpanScore(0, 5, score().signals),),
        fingerprint=Fingerprint(model="m2", dtype="float32", template="t1", settings="position=-3 band=upper"),
    )
    assert calibrator.with_span_confidences(other).spans[0].confidence is None
