"""A score that fits the profile gets a confidence; any other stays uncalibrated and says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from semgrad_guard.calibration import Profile, ProfileCalibrator, fit_profile
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


SETTINGS = "position -3, blocks 15 to 29, by answer, texts by claim"


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"model": "m2"}, "model 'm2' instead of 'm1'"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' instead of 'float32'"),
        ({"template": "t2"}, "template 't2' instead of 't1'"),
        ({"proxy": True}, "proxy True instead of False"),
        ({"settings": SETTINGS.replace("-3", "-1")}, "position -1 instead of -3"),
        ({"settings": SETTINGS.replace("15", "12")}, "blocks (12, 29) instead of (15, 29)"),
        ({"settings": SETTINGS.replace(", texts by claim", "")}, "texts 'of whole answers' instead of 'by claim'"),
    ],
)
def test_a_difference_that_matters_leaves_it_uncalibrated(
    calibrator: ProfileCalibrator, score: MakeScore, change: dict[str, Any], seen: str
) -> None:
    """A number from another model, precision, template, setting or author means something else."""
    other = score(fingerprint=replace(score().fingerprint, **change))
    confidence = confidence_of(calibrator, other)
    assert confidence.value is None
    assert seen in confidence.why


@pytest.mark.parametrize(
    ("method", "change", "fits"),
    [
        ("grounding", {"model": "m2", "dtype": "bfloat16", "template": "t2"}, True),
        ("grounding", {"settings": SETTINGS.replace("-3", "-1")}, True),
        ("grounding", {"settings": SETTINGS.replace("by claim", "by claim in de")}, False),
        ("mean_nll", {"settings": SETTINGS.replace("-3", "-1").replace("15", "2")}, True),
        ("mean_nll", {"settings": SETTINGS + ", embedder minilm [0.100 0.200]"}, True),
        ("mean_nll", {"model": "m2"}, False),
        ("semgrad", {"settings": SETTINGS.replace("-3", "-1")}, False),
    ],
)
def test_only_what_its_own_signals_depend_on_matters(
    rows: Any, score: MakeScore, method: str, change: dict[str, Any], fits: bool
) -> None:
    """Giving an embedder must not void a profile that uses none, nor another position one that counts words."""
    profile = fit_profile(rows(60), name="one", method=method, draws=20)
    found = confidence_of(ProfileCalibrator(profile), score(fingerprint=replace(score().fingerprint, **change)))
    assert (found.value is not None) == fits


def test_the_richest_fit_that_the_score_has_all_for_is_used(rows: Any, score: MakeScore) -> None:
    """An embedder that is missing, fails or is another one costs its signals, not the confidence."""
    embedded = SETTINGS + ", embedder minilm [0.100 0.900]"
    rng = np.random.default_rng(0)
    labelled = [
        replace(
            row,
            fingerprint=replace(row.fingerprint, settings=embedded),
            signals={**row.signals, "support_similarity": float(np.clip(rng.normal(0.6 * row.correct, 0.2), -1, 1))},
        )
        for row in rows(200)
    ]
    calibrator = ProfileCalibrator(fit_profile(labelled, name="two", draws=20))
    rich = replace(score().fingerprint, settings=embedded)
    meant = confidence_of(calibrator, score(fingerprint=rich, signals={"support_similarity": 0.6}))
    renamed = replace(rich, settings=embedded.replace("minilm [0.100", "another [0.105"))
    other = replace(rich, settings=embedded.replace("0.900", "0.500"))
    same = confidence_of(calibrator, score(fingerprint=renamed, signals={"support_similarity": 0.6}))
    without = confidence_of(calibrator, score())
    foreign = confidence_of(calibrator, score(fingerprint=other, signals={"support_similarity": 0.6}))
    assert meant.value is not None
    assert without.value is not None
    assert same.value == meant.value > without.value
    assert foreign.value == without.value
    assert "without embeddings" in without.why
    assert "without embeddings" not in meant.why


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


def test_a_profile_without_an_end_needs_no_clock(profile: Profile, score: MakeScore) -> None:
    """A machine whose clock fails must not lose the answers that no date decides."""

    def no_date() -> datetime:
        msg = "year 60000 is out of range"
        raise ValueError(msg)

    lasting = ProfileCalibrator(profile, clock=no_date)
    assert confidence_of(lasting, score()).value is not None
    assert lasting.with_span_confidences(score()).spans == ()
    expiring = profile.model_copy(update={"expires_at": datetime(2030, 1, 1, tzinfo=UTC)})
    with pytest.raises(ValueError, match="60000"):
        confidence_of(ProfileCalibrator(expiring, clock=no_date), score())


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


@pytest.mark.parametrize(
    ("n_own_words", "used"), [(1.0, "short"), (12.0, "short"), (13.0, "synthetic"), (None, "synthetic")]
)
def test_short_answers_have_a_fit_of_their_own(
    profile: Profile, score: MakeScore, n_own_words: float | None, used: str
) -> None:
    """Chosen by the number of words; where that is not known, the answer may be long."""
    brief = profile.model_copy(update={"name": "short", "max_words": 12, "edge": 0.3})
    calibrator = ProfileCalibrator(profile.model_copy(update={"brief": brief}))
    signals = {} if n_own_words is None else {"n_own_words": n_own_words}
    confidence = confidence_of(calibrator, score(signals={**score().signals, **signals}))
    assert f"profile {used}," in confidence.why
    assert confidence.profile == "synthetic"


def test_a_short_answer_without_the_signals_of_its_fit_has_the_general_one(profile: Profile, score: MakeScore) -> None:
    """It would be better judged by the other, but is judged."""
    column = profile.model.columns[0].model_copy(update={"name": "unknown", "required": True})
    brief = profile.model_copy(
        update={"max_words": 12, "model": profile.model.model_copy(update={"columns": (column,)})}
    )
    calibrator = ProfileCalibrator(profile.model_copy(update={"brief": brief}))
    confidence = confidence_of(calibrator, score(signals={**score().signals, "n_own_words": 3.0}))
    assert confidence.value is not None


@pytest.mark.parametrize(
    ("shares", "named"),
    [((0.1, 0.6, None), "of 3 passages mostly number 2 was read"), ((0.3, 0.3), None), ((0.5,), None), ((), None)],
)
def test_the_passage_that_was_read_most_is_named(
    calibrator: ProfileCalibrator, score: MakeScore, shares: tuple[float | None, ...], named: str | None
) -> None:
    """Whoever doubts an answer looks there first; where none stands out, nothing is said."""
    why = confidence_of(calibrator, score(passage_attention=shares)).why
    assert (named is not None and why.endswith(named)) or (named is None and "was read" not in why)
