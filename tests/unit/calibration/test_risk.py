"""Risk-controlled thresholds: exact bounds, honest refusals, and the promise kept in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from semgrad_guard.calibration import LabelPairs, Profile, labels_needed, risk_threshold, risk_thresholds_by_tag
from semgrad_guard.calibration.risk import binomial_cdf, upper_bound
from semgrad_guard.errors import CalibrationError, RiskNotControllableError, TooFewLabelsError


def pairs_of(confidence: np.ndarray, correct: np.ndarray, **more: object) -> LabelPairs:
    """Return labelled confidences, each its own group unless given."""
    return LabelPairs(
        confidence=tuple(confidence),
        correct=tuple(bool(c) for c in correct),
        group=more.pop("group", tuple(range(len(confidence)))),  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(name="sure")
def _sure() -> LabelPairs:
    """200 answers: the surer half all right, the other half all wrong."""
    return pairs_of(np.linspace(1, 0, 200), np.repeat([1.0, 0.0], 100))


def test_binomial_cdf_equals_scipy() -> None:
    """The exact test needs an exact tail, also far out."""
    for k, n, p in [(0, 29, 0.1), (3, 50, 0.1), (40, 1000, 0.05), (5, 5, 0.3), (0, 400, 0.5)]:
        assert binomial_cdf(k, n, p) == pytest.approx(binom.cdf(k, n, p), rel=1e-9)


def test_upper_bound_equals_the_beta_quantile() -> None:
    """Clopper-Pearson's bound has a closed form."""
    for k, n, delta in [(0, 29, 0.05), (3, 50, 0.05), (40, 1000, 0.01)]:
        assert upper_bound(k, n, delta) == pytest.approx(beta.ppf(1 - delta, k + 1, n - k), rel=1e-6)
    assert upper_bound(5, 5, 0.05) == 1.0


def test_labels_needed_by_hand() -> None:
    """Without a single wrong answer: 0.9^29 = 0.047 is at most 0.05, 0.9^28 = 0.052 is not."""
    assert labels_needed(0.1, 0.05) == 29


def test_labels_needed_grows_towards_the_target() -> None:
    """The nearer the true error rate to the target, the more labels prove it; and then they do."""
    few, many = labels_needed(0.1, 0.05, error_rate=0.02), labels_needed(0.1, 0.05, error_rate=0.08)
    assert 29 < few < many
    assert binom.cdf(np.ceil(0.08 * many), many, 0.1) <= 0.05


def test_no_number_of_labels_proves_what_is_false() -> None:
    """An error rate above the target is never below it."""
    with pytest.raises(CalibrationError, match="cannot be shown"):
        labels_needed(0.1, 0.05, error_rate=0.1)


def test_the_threshold_accepts_what_is_right(profile: Profile, sure: LabelPairs) -> None:
    """A clean split: the threshold lies at the border, and its figures are those of the answers above it."""
    found = risk_threshold(profile, 0.1, 0.05, pairs=sure)
    accepted = np.array(sure.confidence) >= found.value
    assert found.n_accepted == accepted.sum()
    assert found.n_wrong == (accepted & ~np.array(sure.correct)).sum()
    assert 0.45 < found.coverage < 0.56
    assert found.bound <= 0.1


def test_no_test_is_allowed_more_error_than_delta(profile: Profile, sure: LabelPairs) -> None:
    """Successes hand their share on, but the sum never passes delta: the bound is at least the one at delta itself."""
    for n_right in range(100, 200, 10):
        pairs = sure.model_copy(update={"correct": (True,) * n_right + (False,) * (200 - n_right)})
        found = risk_threshold(profile, 0.1, 0.05, pairs=pairs)
        assert found.bound >= upper_bound(found.n_wrong, found.n_accepted, 0.05) - 1e-9


def test_the_threshold_says_what_it_promises_and_what_breaks_it(profile: Profile, sure: LabelPairs) -> None:
    """A number without its conditions would be misread."""
    found = risk_threshold(profile, 0.1, 0.05, pairs=sure)
    assert "with 95% certainty at most 10% of accepted answers are wrong" in found.text
    assert "Learn-then-Test" in found.method
    for word in ("drift", "retries", "by hand"):
        assert word in found.caveats


def test_everything_is_accepted_where_everything_is_right(profile: Profile) -> None:
    """The lowest threshold is 0."""
    found = risk_threshold(profile, 0.1, pairs=pairs_of(np.linspace(0, 1, 100), np.ones(100)))
    assert (found.value, found.coverage) == (0.0, 1.0)


def test_a_stricter_target_never_accepts_more(profile: Profile) -> None:
    """Thresholds move the right way with alpha."""
    rng = np.random.default_rng(0)
    confidence = rng.random(2_000)
    pairs = pairs_of(confidence, rng.random(2_000) < 0.5 + 0.5 * confidence)
    values = [risk_threshold(profile, alpha, pairs=pairs).value for alpha in (0.1, 0.15, 0.2, 0.3)]
    assert values == sorted(values, reverse=True)


def test_a_refusal_names_the_best_reachable_and_the_labels_needed(profile: Profile) -> None:
    """Twenty right answers cannot prove 10 %, but the way there can be told."""
    confidence = np.linspace(1, 0, 25)
    with pytest.raises(RiskNotControllableError) as caught:
        risk_threshold(profile, 0.1, 0.05, pairs=pairs_of(confidence, np.repeat([1.0, 0.0], [20, 5])))
    assert (caught.value.alpha, caught.value.delta) == (0.1, 0.05)
    assert "error rate of at most" in caught.value.best
    assert "labelled questions would be needed" in caught.value.best


def test_a_refusal_says_when_more_labels_would_not_help(profile: Profile) -> None:
    """Half of even the surest answers are wrong: labels are not what is missing."""
    confidence = np.linspace(1, 0, 400)
    with pytest.raises(RiskNotControllableError, match="more labels alone may not help"):
        risk_threshold(profile, 0.1, 0.05, pairs=pairs_of(confidence, np.arange(400) % 2))


def test_copies_of_one_question_are_one_label(profile: Profile) -> None:
    """Thirty right answers to three questions prove nothing like thirty questions do."""
    confidence, correct = np.linspace(1, 0.5, 30), np.ones(30)
    assert risk_threshold(profile, 0.1, pairs=pairs_of(confidence, correct)).n_labels == 30
    with pytest.raises(RiskNotControllableError, match="3 labelled questions"):
        risk_threshold(profile, 0.1, pairs=pairs_of(confidence, correct, group=tuple(np.arange(30) % 3)))


def test_tags_choose_their_labels(profile: Profile) -> None:
    """A rule for one tag rests on that tag's answers alone."""
    confidence = np.concatenate([np.linspace(1, 0, 100)] * 2)
    pairs = pairs_of(confidence, np.repeat([1.0, 0.0], 100), tags=(("medical",),) * 100 + ((),) * 100)
    assert risk_threshold(profile, 0.1, tags={"medical"}, pairs=pairs).n_labels == 100
    with pytest.raises(RiskNotControllableError):
        risk_threshold(profile, 0.1, pairs=pairs)
    with pytest.raises(TooFewLabelsError, match="tags legal") as caught:
        risk_threshold(profile, 0.1, tags={"legal"}, pairs=pairs)
    assert caught.value.n == 0


def test_rules_for_several_tags_share_delta(profile: Profile) -> None:
    """All promises together hold with 1 − delta, so each gets its part; an impossible one is an error value."""
    tags = (("a",),) * 100 + (("b",),) * 100
    pairs = pairs_of(np.tile(np.linspace(1, 0, 100), 2), np.repeat([1.0, 0.0], 100), tags=tags)
    tagged = profile.model_copy(update={"pairs": pairs})
    found = risk_thresholds_by_tag(tagged, {"a": 0.1, "b": 0.1}, 0.05)
    assert found["a"].delta == pytest.approx(0.025)
    assert isinstance(found["b"], RiskNotControllableError)


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.05), (1, 0.05), (0.1, 0), (0.1, 1), (-1, 0.05)])
def test_targets_outside_zero_and_one_are_refused(profile: Profile, alpha: float, delta: float) -> None:
    """They mean nothing."""
    with pytest.raises(CalibrationError, match="strictly between 0 and 1"):
        risk_threshold(profile, alpha, delta)


def test_a_profile_without_labels_promises_nothing(profile: Profile) -> None:
    """A percentile is no error rate."""
    with pytest.raises(CalibrationError, match="without labels"):
        risk_threshold(profile.model_copy(update={"label_free": True}), 0.1)


# --- the promise, in simulation ---------------------------------------------------------------------------------------

GRID = np.linspace(0, 1, 2_001)
TRUTHS = {
    # P(right | confidence c), c uniform
    "honest": lambda c: c,
    "good": lambda c: np.clip(0.6 + 0.5 * c, 0, 1),
    "flat at the target": lambda c: np.full_like(c, 0.8),
    "step at the target": lambda c: np.where(c > 0.5, 0.95, 0.6),
}


@pytest.fixture(name="quick_refusals")
def _quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse without working out the advice: it takes most of the time of a simulation."""
    monkeypatch.setattr("semgrad_guard.calibration.risk._best", lambda *_: "")


def violations(profile: Profile, truth, n: int, n_sets: int, test: str) -> int:
    """Return in how many calibration sets the promised error rate of 20 % is broken in truth."""
    wrong = 1 - truth(GRID)
    error_above = np.cumsum(wrong[::-1])[::-1] / np.arange(len(GRID), 0, -1)
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(n_sets):
        confidence = rng.random(n)
        correct = rng.random(n) < truth(confidence)
        try:
            found = risk_threshold(profile, 0.2, 0.1, pairs=pairs_of(confidence, correct), test=test)
        except RiskNotControllableError:
            continue
        broken += np.interp(found.value, GRID, error_above) > 0.2 + 1e-9
    return broken


@pytest.mark.usefixtures("quick_refusals")
@pytest.mark.parametrize("name", TRUTHS)
def test_the_promise_is_kept_over_many_calibration_sets(profile: Profile, name: str) -> None:
    """1,000 sets of 150 labels: broken in at most delta = 10 % of them, plus 3 binomial standard errors (2.8 %)."""
    assert violations(profile, TRUTHS[name], 150, 1_000, "fixed_sequence") <= 1_000 * 0.1 + 3 * np.sqrt(1_000 * 0.09)


@pytest.mark.usefixtures("quick_refusals")
def test_bonferroni_keeps_the_promise_where_confidence_misleads(profile: Profile) -> None:
    """Error rates that go up and down with confidence: the assumption-free test holds too (300 sets)."""

    def wavy(c: np.ndarray) -> np.ndarray:
        return np.where((c * 10).astype(int) % 2, 0.95, 0.65)

    assert violations(profile, wavy, 150, 300, "bonferroni") <= 300 * 0.1 + 3 * np.sqrt(300 * 0.09)
