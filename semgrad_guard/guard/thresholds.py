"""Computes the confidence thresholds of promised error rates from a profile's labelled answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.errors import CalibrationError, UncalibratedError
from semgrad_guard.policy.promises import promises

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.calibration import Profile, Threshold
    from semgrad_guard.policy import Policy
    from semgrad_guard.policy.promises import Promise

BY_METADATA = (
    "An override that matches metadata decides some of these answers. Labels have tags but no metadata, so it is not "
    "known which."
)


def threshold_of(promise: Promise, profile: Profile | None) -> Threshold:
    """Return the lowest confidence threshold that keeps a promise.

    Raises:
        RiskNotControllableError: no threshold can be shown to keep it.
        TooFewLabelsError: there are no labelled answers of its kind.
        CalibrationError: the profile has no labels, or there is no profile.
    """
    if profile is None:
        msg = "`accept` asks for an error rate, but the policy names no profile to compute its threshold from"
        raise UncalibratedError(msg)
    from semgrad_guard.calibration import risk_threshold  # loads numpy

    labels = profile.pairs.of_kind(promise.any_of, promise.none_of)
    try:
        return risk_threshold(profile, promise.max_error_rate, promise.delta, pairs=labels)
    except CalibrationError as error:
        error.add_note(f"required by {promise.rule} for {promise.answers}")
        raise


def resolver(profile: Profile | None) -> Callable[[Promise], float]:
    """Return a function that computes the threshold of a promise with this profile."""
    return lambda promise: threshold_of(promise, profile).value


def promised(policy: Policy, profile: Profile | None) -> tuple[list[str], CalibrationError | None]:
    """Describe the promises of a policy and what breaks them; also return the first error if one cannot be kept."""
    lines: list[str] = []
    caveats: list[str] = []
    broken: CalibrationError | None = None
    rates = promises(policy)
    for rule, promise in rates.items():
        try:
            threshold = threshold_of(promise, profile)
        except CalibrationError as error:
            lines.append(f"  - of {promise.answers}: cannot be kept: {error} [{rule}]")
            broken = broken or error
        else:
            lines.append(f"  - of {promise.answers}: {threshold.text} [{rule}]")
            caveats = [threshold.caveats]
    if not lines:
        return [], None
    if any(override.accept is not None and override.match.metadata is not None for override in policy.overrides):
        caveats.append(BY_METADATA)
    together = 1 - sum(promise.delta for promise in rates.values())
    head = f"Promised error rates, which hold together with {together * 100:g} % certainty:"
    return [head, *lines, *(f"  {caveat}" for caveat in caveats)], broken
