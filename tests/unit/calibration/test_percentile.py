"""Without labels: percentiles, flagged as such everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from semgrad_guard.calibration import Profile, ProfileCalibrator, load_profile, percentile_profile
from semgrad_guard.errors import SignalUnavailableError, TooFewLabelsError
from semgrad_guard.flow import Exchange, Score

MakeScore = Callable[..., Score]


def scores(make: MakeScore, n: int) -> Iterator[Score]:
    """Yield scores 1, 2, ... n."""
    return (make(value=float(i), signals={"semgrad": float(i)}) for i in range(1, n + 1))


@pytest.fixture(name="percentiles")
def _percentiles(score: MakeScore) -> Profile:
    return percentile_profile(scores(score, 99), name="recent")


def test_the_value_is_the_share_that_is_less_sure(percentiles: Profile, score: MakeScore) -> None:
    """Score 50 of 1 to 99 is the median; lower scores are surer."""
    calibrator = ProfileCalibrator(percentiles)
    values = [calibrator.confidence(Exchange(), s).value for s in scores(score, 99)]
    assert values[49] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_the_confidence_is_flagged_and_says_that_it_is_no_probability(percentiles: Profile, score: MakeScore) -> None:
    """Nobody may take it for a calibrated one."""
    confidence = ProfileCalibrator(percentiles).confidence(Exchange(), score())
    assert confidence.label_free
    assert "not a probability" in confidence.why


def test_the_profile_is_flagged_and_survives_the_file(percentiles: Profile, tmp_path) -> None:
    """No labels, no evidence, no base rate; and the same after saving."""
    assert percentiles.label_free
    assert (percentiles.n_labels, percentiles.evidence, percentiles.base_rate) == (0, None, None)
    assert load_profile(percentiles.save(tmp_path / "p.json")) == percentiles


def test_another_signal_can_be_ranked_by(score: MakeScore) -> None:
    """One whose higher values are surer turns the order round."""
    rows = [score(signals={"grounding": i / 50}) for i in range(50)]
    calibrator = ProfileCalibrator(percentile_profile(rows, name="g", method="grounding"))
    low, high = (calibrator.confidence(Exchange(), rows[i]).value for i in (5, 45))
    assert (low, high) == pytest.approx((0.11, 0.91), abs=0.05)


def test_few_scores_are_refused(score: MakeScore) -> None:
    """Percentiles of a handful mean nothing."""
    with pytest.raises(TooFewLabelsError) as caught:
        percentile_profile(scores(score, 5), name="few")
    assert (caught.value.n, caught.value.needed) == (5, 20)


def test_an_unknown_signal_is_refused(score: MakeScore) -> None:
    """With the known ones named."""
    with pytest.raises(SignalUnavailableError, match="semgrad"):
        percentile_profile(scores(score, 30), name="x", method="magic")


def test_equal_scores_have_one_percentile(score: MakeScore) -> None:
    """Ties count half below."""
    profile = percentile_profile((score(value=1.0) for _ in range(30)), name="flat")
    assert ProfileCalibrator(profile).confidence(Exchange(), score(value=1.0)).value == pytest.approx(0.5)
