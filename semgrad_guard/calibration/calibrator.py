"""Turns a score into a confidence by a profile; a score that does not fit it stays uncalibrated, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.curves import log_odds
from semgrad_guard.calibration.labels import differences
from semgrad_guard.flow import Confidence, Contribution, utc_now
from semgrad_guard.signals import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from semgrad_guard.calibration.drift import DriftMonitor
    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.flow import Exchange, Score

N_REASONS = 3
"""Most contributions named in a confidence's `why`."""
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
        why_not = self._refusal(score)
        if why_not is not None:
            return Confidence(value=None, why=why_not, profile=self.profile.name)
        signals = _signals(score)
        margin = self.profile.margin(signals)
        if self.drift is not None:
            self.drift.observe(margin, signals)
        value = self.profile.confidence_of_margin(margin)
        contributions = self._contributions(signals, margin)
        return Confidence(
            value=value,
            why=self._why(value, contributions),
            profile=self.profile.name,
            contributions=contributions,
            drifted=self.drift is not None and self.drift.drifted,
            label_free=self.profile.label_free,
        )

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score with a confidence for every span that has the profile's signals."""
        if self.profile.is_expired(self._clock()) or differences(self.profile.fingerprint, score.fingerprint):
            return score
        spans = tuple(replace(span, confidence=self._span_confidence(span.signals)) for span in score.spans)
        return replace(score, spans=spans)

    def _span_confidence(self, signals: Mapping[str, float]) -> float | None:
        """Return the confidence of one span; `None` where a signal is missing."""
        if self.profile.model.missing(signals):
            return None
        return self.profile.confidence_of_margin(self.profile.margin(signals))

    def _refusal(self, score: Score) -> str | None:
        """Return why the profile cannot calibrate this score, or `None` if it can."""
        profile = self.profile
        if profile.expires_at is not None and profile.is_expired(self._clock()):
            return f"profile {profile.name} expired on {profile.expires_at:%Y-%m-%d}"
        if found := differences(profile.fingerprint, score.fingerprint):
            return f"profile {profile.name} was fitted for another score: {'; '.join(found)}"
        if missing := profile.model.missing(_signals(score)):
            return f"profile {profile.name} needs signals that are missing or not finite: {', '.join(missing)}"
        return None

    def _contributions(self, signals: Mapping[str, float], margin: float) -> tuple[Contribution, ...]:
        """Return how much each signal moved the log-odds relative to the average answer, the strongest first.

        Calibration is not linear in the margin, so the shares are scaled to add up to the change after calibration.
        """
        model = self.profile.model
        parts = model.parts(signals)
        scale = _slope(self.profile, margin)
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

    def _why(self, value: float, contributions: tuple[Contribution, ...]) -> str:
        """Describe where the value comes from."""
        profile = self.profile
        if profile.label_free:
            return (
                f"percentile of {profile.reference.n} reference scores, not a probability: {profile.name} has no labels"
            )
        average = profile.confidence_of_margin(profile.model.intercept)
        low = value < average
        named = [c.text for c in contributions if (c.weight < 0) == low and abs(c.weight) >= SMALL][:N_REASONS]
        start = f"profile {profile.name}, {profile.n_labels} labels"
        return f"{start}; {'low' if low else 'high'} because: {'; '.join(named)}" if named else start


def _signals(score: Score) -> dict[str, float]:
    """Return all signals of a score, including its value."""
    return {score.method: score.value, **score.signals}


def _slope(profile: Profile, margin: float) -> float:
    """Return the change of calibrated log-odds per unit of margin, from the average answer to this one."""
    start = profile.model.intercept
    if abs(margin - start) < 1e-9:
        return 1.0
    ends = np.array([profile.confidence_of_margin(start), profile.confidence_of_margin(margin)])
    below, above = log_odds(np.clip(ends, 1e-9, 1 - 1e-9))
    return float((above - below) / (margin - start))
