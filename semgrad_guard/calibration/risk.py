"""Risk-controlled thresholds: the lowest confidence at which accepted answers keep to an error rate.

Source: Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test" (2021): fixed-sequence testing with several
starts (a test that succeeds passes its share of the error on, which is the fallback procedure of Wiens 2003), with
exact binomial p-values (Clopper-Pearson) as in Geifman and El-Yaniv, "Selective classification for deep neural
networks" (NeurIPS 2017), whose thresholds are order statistics too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from semgrad_guard.errors import CalibrationError, RiskNotControllableError, TooFewLabelsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from semgrad_guard.calibration.profile import LabelPairs, Profile

    Array = NDArray[np.float64]


def check_target(alpha: float, delta: float) -> None:
    """Check that an error rate and a failure probability are strictly between 0 and 1.

    Raises:
        CalibrationError: one of them is not.
    """
    for name, value in (("max_error_rate", alpha), ("delta", delta)):
        if not 0 < value < 1:
            msg = f"{name} is {value:g}, but must lie strictly between 0 and 1"
            raise CalibrationError(msg)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X binomial with n draws of probability p."""
    if p <= 0 or k >= n:
        return 1.0
    if p >= 1 or k < 0:
        return 0.0
    i = np.arange(k + 1)
    log_factorial = _log_factorials(1 << n.bit_length())
    logs = log_factorial[n] - log_factorial[i] - log_factorial[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    top = logs.max()
    return min(1.0, float(np.exp(logs - top).sum()) * math.exp(top))


@cache
def _log_factorials(end: int) -> NDArray[np.float64]:
    """Return ln 0!, ln 1!, ... up to ln (end - 1)!."""
    return np.append(0.0, np.cumsum(np.log(np.arange(1, end))))


def upper_bound(n_wrong: int, n: int, delta: float) -> float:
    """Return the Clopper-Pearson bound: the error rate at which so few wrong answers have only probability delta."""
    if n_wrong >= n:
        return 1.0
    low, high = n_wrong / n, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(n_wrong, n, middle) > delta else (low, middle)
    return high


def labels_needed(alpha: float, delta: float, *, error_rate: float = 0.0) -> int:
    """Return how many accepted labelled answers are needed to prove an error rate of at most alpha.

    Args:
        alpha: the error rate to prove, in (0, 1).
        delta: allowed probability of being wrong about it, in (0, 1).
        error_rate: their true share of wrong answers, below alpha; with 0 the result is the smallest possible number.
    """
    check_target(alpha, delta)
    if error_rate <= 0:
        return math.ceil(math.log(delta) / math.log1p(-alpha))
    if error_rate >= alpha:
        msg = (
            f"answers of error rate {error_rate:g} cannot be shown to have at most {alpha:g}, with any number of labels"
        )
        raise CalibrationError(msg)

    def proves(n: int) -> bool:
        return binomial_cdf(math.ceil(error_rate * n), n, alpha) <= delta

    low, high = 0, 1
    while not proves(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


N_LEVELS = 20
"""Coverages tested: 1/20, 2/20, ... of the answers, fixed before any label is looked at."""
FIRST_START = 0.5
"""Share of delta for the first start; the rest is divided evenly among the later ones."""

Test = Literal["fixed_sequence", "bonferroni"]

CAVEATS = (
    "The promise holds for new questions of the same kind as the labelled ones, judged once with this profile. It is "
    "broken by drift (other questions, passages, prompt or model), by labels chosen by hand, and by retries that keep "
    "the best of several attempts: `semgrad-guard policy simulate` measures a whole policy, retries included."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A confidence from which answers may be accepted, and the error rate promised for them."""

    value: float
    """Accept answers with at least this confidence."""
    max_error_rate: float
    """With probability 1 − delta over the labels, at most this share of accepted answers is wrong."""
    delta: float
    n_accepted: int
    """Labelled questions at or above the threshold."""
    n_wrong: int
    """Those of them with a wrong answer."""
    n_labels: int
    """Labelled questions used, with one answer each."""
    bound: float
    """Upper confidence bound on the error rate of accepted answers, at the certainty of the threshold's test."""
    method: str
    """Test and assumptions, in words."""
    tags: frozenset[str] = frozenset()
    caveats: str = CAVEATS

    @property
    def coverage(self) -> float:
        """Share of answers that are accepted."""
        return self.n_accepted / self.n_labels

    @property
    def text(self) -> str:
        """The promise in words."""
        return (
            f"accept from confidence {self.value:.3f}: with {1 - self.delta:.0%} certainty at most "
            f"{self.max_error_rate:.0%} of accepted answers are wrong, and {self.coverage:.0%} are accepted "
            f"({self.n_wrong} of {self.n_accepted} wrong among {self.n_labels} labelled questions)"
        )


def risk_threshold(
    profile: Profile,
    max_error_rate: float,
    delta: float = 0.05,
    *,
    tags: Iterable[str] = (),
    test: Test = "fixed_sequence",
    pairs: LabelPairs | None = None,
) -> Threshold:
    """Return the lowest threshold at which accepted answers keep to an error rate, with probability 1 − delta.

    A question with several labelled answers counts once, with one of them drawn at random, because the binomial tests
    need independent labels.

    Args:
        profile: gives the out-of-fold or held-out confidences.
        max_error_rate: largest share of wrong answers among accepted ones, in (0, 1).
        delta: probability, over the draw of the labels, that the promise fails, in (0, 1).
        tags: use only labelled answers with all of these tags; for several rules divide delta by their number, as
            `risk_thresholds_by_tag` does.
        test: `fixed_sequence` starts with the surest answers and continues while it succeeds; it is exact where a
            higher confidence never means more errors. `bonferroni` needs no such assumption and accepts somewhat fewer.
        pairs: labelled confidences to use instead of the profile's, for example from later verdicts.

    Raises:
        RiskNotControllableError: no threshold can be shown to meet the target; the error says what can be shown, and
            how many labels the target takes.
        TooFewLabelsError: no labelled answer has these tags.
        CalibrationError: a target outside (0, 1), or a profile without labels.
    """
    check_target(max_error_rate, delta)
    if profile.label_free:
        msg = (
            f"profile {profile.name} was made without labels: no error rate can be promised; use a number for `accept`"
        )
        raise CalibrationError(msg)
    return threshold_on(pairs or profile.pairs, max_error_rate, delta, tags=tags, test=test)


def threshold_on(
    source: LabelPairs, max_error_rate: float, delta: float, *, tags: Iterable[str] = (), test: Test = "fixed_sequence"
) -> Threshold:
    """Return the threshold for labelled confidences; see `risk_threshold`.

    Raises:
        RiskNotControllableError: as `risk_threshold`.
        TooFewLabelsError: as `risk_threshold`.
    """
    required = frozenset(tags)
    confidence, correct = _one_per_group(*source.arrays(required))
    if not len(confidence):
        kind = f"labelled answers with tags {', '.join(sorted(required))}" if required else "labelled answers"
        raise TooFewLabelsError(0, labels_needed(max_error_rate, delta), kind)
    levels = _levels(confidence, correct)
    passed = _passed(levels, max_error_rate, delta, test)
    if passed is None:
        raise RiskNotControllableError(max_error_rate, delta, _best(levels, len(confidence), max_error_rate, delta))
    level, error = passed
    return Threshold(
        value=level.value,
        max_error_rate=max_error_rate,
        delta=delta,
        n_accepted=level.n,
        n_wrong=level.n_wrong,
        n_labels=len(confidence),
        bound=upper_bound(level.n_wrong, level.n, error),
        method=_words(test, held_out=source.held_out),
        tags=required,
    )


def risk_thresholds_by_tag(
    profile: Profile, max_error_rate: Mapping[str, float], delta: float = 0.05
) -> dict[str, Threshold | RiskNotControllableError | TooFewLabelsError]:
    """Return a threshold, or an error, for each tag; all promises hold together with probability 1 − delta.

    Args:
        profile: gives the labelled answers with their tags.
        max_error_rate: tag -> largest share of wrong answers among accepted ones.
        delta: probability that any of the promises fails; divided evenly (Bonferroni).
    """
    found: dict[str, Threshold | RiskNotControllableError | TooFewLabelsError] = {}
    for tag, alpha in max_error_rate.items():
        try:
            found[tag] = risk_threshold(profile, alpha, delta / len(max_error_rate), tags=(tag,))
        except (RiskNotControllableError, TooFewLabelsError) as error:
            found[tag] = error
    return found


@dataclass(frozen=True, slots=True)
class _Level:
    """The answers above one threshold."""

    value: float
    n: int
    n_wrong: int


def _one_per_group(confidence: Array, correct: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return one random row of each group, surest first."""
    shuffled = np.random.default_rng(0).permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    rows = shuffled[first]
    order = rows[np.argsort(-confidence[rows], kind="stable")]
    return confidence[order], correct[order]


def _levels(confidence: Array, correct: Array) -> list[_Level]:
    """Return the answers above each tested threshold, from few to all.

    A threshold is the confidence of the answer at a fixed rank, and only answers strictly above it count: given that
    confidence, they are independent draws of answers above it.
    """
    n = len(confidence)
    levels: dict[int, _Level] = {}
    for i in range(1, N_LEVELS):
        cut = confidence[math.ceil(n * i / N_LEVELS) - 1]
        above = int(np.searchsorted(-confidence, -cut, "left"))
        if above:
            levels[above] = _Level(float(np.nextafter(cut, 1.0)), above, above - int(correct[:above].sum()))
    levels[n] = _Level(0.0, n, n - int(correct.sum()))
    return [levels[above] for above in sorted(levels)]


def _passed(levels: list[_Level], alpha: float, delta: float, test: Test) -> tuple[_Level, float] | None:
    """Return the level of largest coverage that is shown to meet the target, and the error allowed in its test."""
    enough = labels_needed(alpha, delta * FIRST_START)
    usable = [level for level in levels if level.n >= enough] or levels[-1:]
    later = delta * (1 - FIRST_START) / max(1, len(usable) - 1)
    own = [delta * FIRST_START if len(usable) > 1 else delta, *[later] * (len(usable) - 1)]
    if test == "bonferroni":
        own = [delta / len(usable)] * len(usable)
    passed, left = None, 0.0
    for level, share in zip(usable, own, strict=True):
        allowed = share + left
        if binomial_cdf(level.n_wrong, level.n, alpha) <= allowed:
            passed, left = (level, allowed), allowed if test == "fixed_sequence" else 0.0
        else:
            left = 0.0
    return passed


def _best(levels: list[_Level], n: int, alpha: float, delta: float) -> str:
    """Describe what can be shown instead, and how many labels the target would take."""
    level = min(levels, key=lambda level: upper_bound(level.n_wrong, level.n, delta))
    bound = upper_bound(level.n_wrong, level.n, delta)
    reached = (
        f"the best that {n} labelled questions show is an error rate of at most {bound:.0%}, "
        f"accepting {level.n / n:.0%} ({level.n_wrong} of {level.n} wrong)"
    )
    hopeful = [level for level in levels if level.n >= N_LEVELS and level.n_wrong / level.n < 0.9 * alpha]
    if hopeful:
        cheapest = max(hopeful, key=lambda level: level.n * _divergence(level.n_wrong / level.n, alpha))
        accepted = labels_needed(alpha, delta * FIRST_START, error_rate=cheapest.n_wrong / cheapest.n)
        return f"{reached}; about {math.ceil(accepted * n / cheapest.n)} labelled questions would be needed"
    return f"{reached}, and not even the surest answers are wrong rarely enough, so more labels alone may not help"


def _divergence(rate: float, alpha: float) -> float:
    """Return the evidence for alpha that each label of this error rate adds (Kullback-Leibler divergence, in nats)."""
    wrong = rate * math.log(rate / alpha) if rate > 0 else 0.0
    return wrong + (1 - rate) * math.log((1 - rate) / (1 - alpha))


def _words(test: Test, *, held_out: bool) -> str:
    """Describe the test and its assumptions."""
    how = {
        "fixed_sequence": "Learn-then-Test, fixed sequence over coverages with exact binomial tests; assumes that a "
        "higher confidence never means more errors",
        "bonferroni": "Learn-then-Test, Bonferroni over coverages with exact binomial tests",
    }[test]
    source = (
        "on answers kept out of the profile's fit"
        if held_out
        else "on out-of-fold confidences, each from a fit on four fifths of the labels, close to the profile's own"
    )
    return f"{how}; {source}"
