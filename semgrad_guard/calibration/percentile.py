"""Profiles without labels: their values are percentiles of recent scores and are marked as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.curves import PercentileCurve
from semgrad_guard.calibration.evidence import N_QUANTILES, reference_of
from semgrad_guard.calibration.fit import edge
from semgrad_guard.calibration.fused import FusedModel, standardiser
from semgrad_guard.calibration.labels import MAX_ROWS, MIN_LABELS, LabelledScore, collect
from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import SignalUnavailableError, TooFewLabelsError
from semgrad_guard.signals import direction_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from semgrad_guard.flow import Score


def percentile_profile(  # noqa: PLR0913 - options with defaults
    scores: Iterable[Score],
    *,
    name: str,
    method: str | None = None,
    directions: Mapping[str, int] | None = None,
    expires: datetime | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Profile:
    """Return a profile whose value is the share of these scores that were less sure; it is no probability.

    Args:
        scores: recent scores of one model and setting.
        name: name of the profile.
        method: the signal to rank by; the scores' own method if not given.
        directions: signal -> 1 where a higher value is surer, -1 where it is less sure; overrides the built-in table.
        expires: moment from which the profile no longer calibrates.
        max_rows: scores kept of a longer stream.
        seed: seed of that sample.

    Raises:
        TooFewLabelsError: fewer than 20 scores have the signal.
        SignalUnavailableError: no score has the signal.
        MixedScoresError: the scores come from different models or settings.
    """
    methods: list[str] = []

    def unlabelled() -> Iterable[LabelledScore]:
        for score in scores:
            if not methods:
                methods.append(score.method)
            yield LabelledScore.of(score, correct=False)

    labels = collect(unlabelled(), max_rows=max_rows, seed=seed)
    signal = method or methods[0]
    if signal not in labels.names:
        raise SignalUnavailableError(signal, "is not in the scores", labels.names)
    rows = labels.select([signal])
    rows = rows.take(np.isfinite(rows.signals[:, 0]))
    if len(rows) < MIN_LABELS:
        raise TooFewLabelsError(len(rows), MIN_LABELS, f"scores with signal {signal}")
    column = standardiser(signal, rows.signals[:, 0], required=True)
    weight = float(direction_of(signal, directions) or -1)
    model = FusedModel(columns=(column.model_copy(update={"weight": weight}),), intercept=0.0)
    return Profile(
        name=name,
        expires_at=expires,
        fingerprint=labels.fingerprint,
        method=signal,
        model=model,
        curve=_curve(model.margins(rows.signals)),
        edge=edge(len(rows)),
        label_free=True,
        n_dropped=len(labels) - len(rows),
        n_seen=labels.n_seen,
        reference=reference_of(model, rows),
        notes=("no labels: values are percentiles of the reference scores, not probabilities",),
    )


def _curve(margins: NDArray[np.float64]) -> PercentileCurve:
    """Return the share of margins below some of their values, with equal margins counting half."""
    ordered = np.sort(margins)
    values = np.unique(ordered)
    if len(values) > N_QUANTILES:
        values = values[np.unique(np.linspace(0, len(values) - 1, N_QUANTILES).round().astype(int))]
    shares = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2 / len(ordered)
    return PercentileCurve(margins=tuple(map(float, values)), shares=tuple(map(float, shares)))
