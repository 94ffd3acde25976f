"""Turns a score into a confidence by a profile; a score that does not fit it stays uncalibrated, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.curves import log_odds
from semgrad_guard.calibration.fitting_scores import differences
from semgrad_guard.flow import Confidence, Contribution, utc_now
from semgrad_guard.signals import PROBES, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from semgrad_guard.calibration.drift import DriftMonitor
    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.flow import Exchange, Score

N_REASONS = 3
"""Most contributions named in a confidence's `why`."""
MOST = 0.6
"""A passage with at least this part of the attention on passages is named."""
SMALL = 0.05
"""Contributions below this change of the log-odds are not named."""


class ProfileCalibrator:
    """Turns scores into confidences by one profile; implements `ports.Calibrator`."""

    def __init__(
        self, profile: Profile, *, drift: DriftMonitor | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        """Create a calibrator.

        Args:
            profile: the fitted profile.
            drift: monitor that compares recent scores with the profile's reference; `None` monitors nothing.
            clock: returns the present moment, to check the expiry date.
        """
        self.profile = profile
        self.drift = drift
        self._clock = clock

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:  # noqa: ARG002 - the protocol's argument
        """Return the calibrated probability that the answer is correct, or `None` and the reason."""
        fit, why_not = self._fit_for(score)
        if fit is None:
            return Confidence(value=None, why=why_not, profile=self.profile.name)
        signals = fit.signals_of(score)
        margin = fit.margin(signals)
        drift = self.drift if fit is self.profile else None
        if drift is not None:
            drift.observe(margin, signals)
        value = fit.confidence_of_margin(margin)
        contributions = _contributions(fit, signals, margin)
        return Confidence(
            value=value,
            why=_why(fit, value, contributions) + _most_read(score),
            profile=self.profile.name,
            contributions=contributions,
            drifted=drift is not None and drift.drifted,
            label_free=fit.label_free,
        )

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score with a confidence for every span that has the profile's signals."""
        if self._is_expired():
            return score
        fits = [f for f in self.profile.fits() if not differences(f.fingerprint, score.fingerprint, f.model.names)]
        spans = tuple(replace(span, confidence=_span_confidence(fits, span.signals)) for span in score.spans)
        return replace(score, spans=spans)

    def _is_expired(self) -> bool:
        """Return whether the profile has expired; a profile that never expires needs no clock."""
        return self.profile.expires_at is not None and self.profile.is_expired(self._clock())

    def _fit_for(self, score: Score) -> tuple[Profile | None, str]:
        """Return the richest fit that this score has all for; or `None`, and why the richest cannot be used."""
        profile = self.profile
        if profile.expires_at is not None and self._is_expired():
            return None, f"profile {profile.name} expired on {profile.expires_at:%Y-%m-%d}"
        why_not = ""
        for fit in profile.fits():
            if fit.is_too_long(score.signals):
                continue
            found = refusal(fit, score)
            if found is None:
                return fit, ""
            why_not = found if fit is profile else why_not or found
        return None, why_not


def _span_confidence(fits: Sequence[Profile], signals: Mapping[str, float]) -> float | None:
    """Return the confidence of one span by the first fit that it has the signals for; `None` without any."""
    fit = next((fit for fit in fits if not (fit.is_too_long(signals) or _lacks(fit, signals))), None)
    return None if fit is None else fit.confidence_of_margin(fit.margin(signals))


def _lacks(fit: Profile, signals: Mapping[str, float]) -> bool:
    """Return whether a part of an answer lacks what a fit needs; probes read whole answers, so nobody expects them."""
    return not set(fit.model.missing(signals)).issubset(PROBES)


def refusal(fit: Profile, score: Score) -> str | None:
    """Return why a fit cannot calibrate this score, or `None` if it can."""
    if found := differences(fit.fingerprint, score.fingerprint, fit.model.names):
        return f"profile {fit.name} was fitted for another score: {'; '.join(found)}"
    if missing := fit.model.missing(fit.signals_of(score)):
        return f"profile {fit.name} needs signals that are missing or not finite: {', '.join(missing)}"
    return None


def _contributions(profile: Profile, signals: Mapping[str, float], margin: float) -> tuple[Contribution, ...]:
    """Return how much each signal moved the log-odds relative to the average answer, the strongest first.

    Calibration is not linear in the margin, so the shares are scaled to add up to the change after calibration.
    """
    model = profile.model
    parts = model.parts(signals)
    scale = _slope(profile, margin)
    found = [
        Contribution(
            column.name,
            float(part * scale),
            explain(column.name, float(part), signals.get(column.name, column.average), column.average),
        )
        for column, part in zip(model.columns, parts, strict=True)
        if part
    ]
    return tuple(sorted(found, key=lambda c: -abs(c.weight)))


def _why(profile: Profile, value: float, contributions: tuple[Contribution, ...]) -> str:
    """Describe where the value comes from."""
    if profile.label_free:
        return f"percentile of {profile.reference.n} reference scores, not a probability: {profile.name} has no labels"
    average = profile.confidence_of_margin(profile.model.intercept)
    low = value < average
    named = [c.text for c in contributions if (c.weight < 0) == low and abs(c.weight) >= SMALL][:N_REASONS]
    start = f"profile {profile.name}, {profile.n_labels} labels"
    if profile.fingerprint.proxy:
        start = f"read by a proxy: {start}" + (f" ({profile.basis})" if profile.basis else "")
    return f"{start}; {'low' if low else 'high'} because: {'; '.join(named)}" if named else start


def _most_read(score: Score) -> str:
    """Name the passage that gets most of the attention on passages, where one of several does."""
    shares = [share or 0.0 for share in score.passage_attention]
    total = sum(shares)
    if len(shares) < 2 or total <= 0 or max(shares) < MOST * total:
        return ""
    return f"; of {len(shares)} passages mostly number {shares.index(max(shares)) + 1} was read"


def _slope(profile: Profile, margin: float) -> float:
    """Return the change of calibrated log-odds per unit of margin, from the average answer to this one."""
    start = profile.model.intercept
    if abs(margin - start) < 1e-9:
        return 1.0
    ends = np.array([profile.confidence_of_margin(start), profile.confidence_of_margin(margin)])
    below, above = log_odds(np.clip(ends, 1e-9, 1 - 1e-9))
    return float((above - below) / (margin - start))
