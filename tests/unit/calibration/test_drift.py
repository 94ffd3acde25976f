"""Drift: silent while scores look as before, loud when they do not, bounded and safe between threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from semgrad_guard.calibration import DriftMonitor, Profile, ProfileCalibrator
from semgrad_guard.calibration.drift import ks_distance
from semgrad_guard.flow import Exchange, Score

if TYPE_CHECKING:
    from collections.abc import Callable


def feed(monitor: DriftMonitor, rows, shift: dict[str, float] | None = None) -> None:
    """Observe rows as the calibrator would, some signals moved."""
    for row in rows:
        signals = {name: value + (shift or {}).get(name, 0.0) for name, value in row.signals.items()}
        monitor.observe(monitor.profile.margin(signals), signals)


def test_ks_distance_by_hand() -> None:
    """Recent 1 2 against reference 2 3: below 2 half of the recent and none of the reference; 0.5."""
    assert ks_distance("x", np.array([1.0, 2.0]), [2.0, 3.0], 2, 0.05).distance == pytest.approx(0.5)


def test_scores_as_before_are_no_drift(profile: Profile, rows) -> None:
    """New answers of the same kind stay silent."""
    monitor = DriftMonitor(profile)
    feed(monitor, rows(1_000, seed=5))
    assert monitor.comparisons
    assert not monitor.drifted
    assert monitor.why == ""


def test_moved_scores_are_drift_and_named(profile: Profile, rows) -> None:
    """One signal moves; it is the one that is named."""
    monitor = DriftMonitor(profile)
    feed(monitor, rows(200, seed=5), shift={"mean_nll": 2.0})
    assert monitor.drifted
    assert "mean_nll" in monitor.why
    assert "length" not in monitor.why


def test_drift_clears_when_scores_are_as_before_again(profile: Profile, rows) -> None:
    """A passing burst of odd questions is not remembered for ever."""
    monitor = DriftMonitor(profile)
    feed(monitor, rows(200, seed=5), shift={"mean_nll": 2.0})
    feed(monitor, rows(300, seed=6))
    assert not monitor.drifted


def test_nothing_is_said_before_the_window_is_full(profile: Profile, rows) -> None:
    """Few scores are no evidence."""
    monitor = DriftMonitor(profile)
    feed(monitor, rows(199, seed=5), shift={"mean_nll": 9.0})
    assert not monitor.comparisons
    assert not monitor.drifted


def test_the_window_is_bounded(profile: Profile, rows) -> None:
    """A guard that runs for months holds no more than its window."""
    monitor = DriftMonitor(profile, window=60)
    feed(monitor, rows(500, seed=5))
    assert monitor.n_scores == 60


def test_false_alarms_are_as_rare_as_promised(profile: Profile) -> None:
    """40 monitors of 2,000 undrifted margins each; at 20 % allowed, 8 plus 3 standard errors may ever alarm."""
    margins = np.asarray(profile.reference.margin)
    alone = profile.model_copy(update={"reference": profile.reference.model_copy(update={"signals": {}, "n": 300})})
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        monitor, ever = DriftMonitor(alone, false_alarm=0.2), False
        for margin in rng.choice(margins, 2_000):
            monitor.observe(float(margin), {})
            ever = ever or monitor.drifted
        alarms += ever
    assert alarms <= 8 + 3 * np.sqrt(40 * 0.2 * 0.8)


def test_outcomes_that_belie_the_confidence_are_drift(profile: Profile) -> None:
    """Answers said to be 90 % sure that are right half the time."""
    monitor = DriftMonitor(profile)
    for i in range(120):
        monitor.observe_outcome(0.9, correct=i % 2 == 0)
    assert monitor.drifted
    assert "share of right answers" in monitor.why


def test_honest_outcomes_are_no_drift(profile: Profile) -> None:
    """Nor when only doubtful answers are looked at by people."""
    monitor, rng = DriftMonitor(profile), np.random.default_rng(0)
    for confidence in rng.uniform(0, 0.4, 500):
        monitor.observe_outcome(float(confidence), correct=bool(rng.random() < confidence))
    assert not monitor.drifted


def test_the_calibrator_reports_drift(profile: Profile, score: Callable[..., Score]) -> None:
    """The same odd score over and over: the confidence says that the profile may no longer fit."""
    calibrator = ProfileCalibrator(profile, drift=DriftMonitor(profile))
    odd = score(signals={"mean_nll": 9.0})
    found = [calibrator.confidence(Exchange(), odd).drifted for _ in range(200)]
    assert not any(found[:199])
    assert found[199]


def test_a_score_of_another_model_is_not_watched(profile: Profile, score: Callable[..., Score]) -> None:
    """What the profile does not calibrate says nothing about its drift."""
    monitor = DriftMonitor(profile)
    other = score(fingerprint=profile.fingerprint.__class__(model="m2", dtype="float32", template="t", settings="s"))
    ProfileCalibrator(profile, drift=monitor).confidence(Exchange(), other)
    assert monitor.n_scores == 0


def test_many_threads_lose_no_score(profile: Profile, rows) -> None:
    """8 threads, 250 scores each: the window holds the last 2,000."""
    monitor = DriftMonitor(profile, window=2_000)
    labelled = list(rows(250))
    threads = [threading.Thread(target=feed, args=(monitor, labelled)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.n_scores == 2_000
