"""Measures the evidence of a profile: on its own rows, on data sets left out, and on answers made to look right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.metrics import DRAWS, Interval, with_interval
from semgrad_guard.calibration.profile import AdversarialEvidence, Evidence, Reference, SourceEvidence
from semgrad_guard.signals import direction_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.fused import FusedModel
    from semgrad_guard.calibration.labels import Labels

    Array = NDArray[np.float64]

N_QUANTILES = 201
"""Points of a reference distribution."""
RIGHT_ACCEPTED = 0.85
"""Share of right answers that the threshold for adversarial answers lets through."""
LEVELS = (0.5, 0.7, 0.9)
"""Confidences above which the share of right answers is reported."""
BASELINES = {"shorter answer": ("n_words", -1), "words found": ("grounding", 1)}
"""What a confidence must be better than -> the signal, and whether more of it is better."""


def measure(
    confidence: NDArray[np.float64],
    labels: Labels,
    *,
    directions: Mapping[str, int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Evidence:
    """Return the evidence for out-of-sample confidences, including the AUROC of every single signal."""

    def interval(metric: metrics.Metric) -> Interval:
        return with_interval(metric, confidence, labels.correct, labels.groups, draws=draws, seed=seed)

    return Evidence(
        auroc=interval(metrics.auroc),
        auprc=interval(metrics.auprc),
        prr=interval(metrics.prr),
        aurc=interval(metrics.aurc),
        ece=interval(metrics.ece),
        brier=interval(metrics.brier),
        log_loss=interval(metrics.log_loss),
        signals={
            name: _of_signal(labels, j, direction_of(name, directions), draws, seed)
            for j, name in enumerate(labels.names)
        },
    )


def _of_signal(labels: Labels, column: int, direction: int, draws: int, seed: int) -> Interval:
    """Return the AUROC of one signal, over the rows that have it; without a known direction, higher counts as surer."""
    values = labels.signals[:, column]
    rows = np.isfinite(values)
    if not rows.any():
        return Interval(value=None)
    return with_interval(
        metrics.auroc,
        (direction or 1) * values[rows],
        labels.correct[rows],
        labels.groups[rows],
        draws=draws,
        seed=seed,
    )


def reference_of(model: FusedModel, labels: Labels) -> Reference:
    """Return the distributions of margin and signals that later scores are compared with."""
    rows = labels.select(model.names)
    return Reference(
        n=len(rows),
        margin=_quantiles(model.margins(rows.signals)),
        signals={name: _quantiles(rows.signals[:, j]) for j, name in enumerate(rows.names)},
    )


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the quantiles at evenly spaced shares, or all values, sorted, where there are few."""
    present = np.sort(values[np.isfinite(values)])
    if len(present) > N_QUANTILES:
        present = np.quantile(present, np.linspace(0, 1, N_QUANTILES))
    return tuple(float(v) for v in present)


def thresholds(confidence: Array, labels: Labels) -> Array:
    """Return for each row the threshold that lets `RIGHT_ACCEPTED` of the right honest answers of its data set through.

    Rows of a data set without right answers get that of all.
    """
    right, strata = labels.honest & (labels.correct > 0), labels.strata
    found = np.full(len(labels), np.quantile(confidence[right], 1 - RIGHT_ACCEPTED))
    for stratum in np.unique(strata[right]):
        rows = strata == stratum
        found[rows] = np.quantile(confidence[rows & right], 1 - RIGHT_ACCEPTED)
    return found


def adversarial_evidence(confidence: Array, labels: Labels) -> tuple[dict[str, AdversarialEvidence], float | None]:
    """Return what adversarial answers get, by kind, and the threshold at which they are accepted.

    With several data sets each has a threshold of its own, as each would in use; the one returned is their average.

    Args:
        confidence: out-of-fold confidence of each row.
        labels: the rows, honest and adversarial.
    """
    kinds = np.array(labels.kinds or [None] * len(labels), dtype=object)
    right = labels.honest & (labels.correct > 0)
    if labels.honest.all() or not right.any():
        return {}, None
    threshold = thresholds(confidence, labels)
    found = {
        kind: AdversarialEvidence(
            n=int(rows.sum()),
            mean=float(confidence[rows].mean()),
            accepted=float((confidence[rows] >= threshold[rows]).mean()),
        )
        for kind in sorted({kind for kind in kinds if kind is not None})
        if (rows := kinds == kind).any()
    }
    return found, float(threshold[right].mean())


def left_out_evidence(
    labels: Labels, confidences: Callable[[Labels, Labels], Array], *, draws: int, seed: int
) -> dict[str, SourceEvidence]:
    """Return how good the confidence is on each data set, from a fit on the others.

    Args:
        labels: the rows; those without a data set are in every fit and no evidence.
        confidences: (rows to fit on, rows to judge) -> confidence of the latter.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """
    sources, names = _sources_of(labels)
    if not labels.has_sources:
        return {}
    found: dict[str, SourceEvidence] = {}
    for name in names:
        rest, judged = labels.take(sources != name), labels.take((sources == name) & labels.honest)
        if 0 < judged.correct.sum() < len(judged):
            found[name] = _of_source(confidences(rest, judged), judged, draws, seed)
    return found


def reported_evidence(
    labels: Labels, confidences: Callable[[Labels], Array], *, draws: int, seed: int
) -> dict[str, SourceEvidence]:
    """Return how good the confidence is on data sets that the fit has not seen.

    Args:
        labels: the rows; those without a data set are no evidence.
        confidences: rows to judge -> their confidence.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """
    sources, names = _sources_of(labels)
    found: dict[str, SourceEvidence] = {}
    for name in names:
        judged = labels.take(sources == name)
        if 0 < judged.correct.sum() < len(judged):
            found[f"{name} (not fitted on)"] = _of_source(confidences(judged), judged, draws, seed)
    return found


def _sources_of(labels: Labels) -> tuple[NDArray[np.object_], list[str]]:
    """Return the data set of each row, and the names of all."""
    sources = np.array(labels.sources or [None] * len(labels), dtype=object)
    return sources, sorted({source for source in sources if source is not None})


def _of_source(confidence: Array, labels: Labels, draws: int, seed: int) -> SourceEvidence:
    def interval(metric: metrics.Metric, values: Array = confidence) -> Interval:
        return with_interval(metric, values, labels.correct, labels.groups, draws=draws, seed=seed)

    return SourceEvidence(
        n=len(labels),
        right=float(labels.correct.mean()),
        auroc=interval(metrics.auroc),
        auroc_same_question=_within(confidence, labels, labels.groups),
        auroc_same_author=_within(confidence, labels, _codes(labels.authors)) if any(labels.authors) else None,
        ece=interval(metrics.ece),
        right_above={f"{level:g}": interval(metrics.share_right_above(level)) for level in LEVELS},
        baselines={
            baseline: interval(metrics.auroc, _column(labels, signal) * sign)
            for baseline, (signal, sign) in BASELINES.items()
            if signal in labels.names
        },
    )


def _within(confidence: Array, labels: Labels, kinds: NDArray[np.int64]) -> float | None:
    found = metrics.auroc_within(confidence, labels.correct, kinds)
    return None if np.isnan(found) else found


def _codes(names: Sequence[str | None]) -> NDArray[np.int64]:
    return np.unique([name or "" for name in names], return_inverse=True)[1].astype(np.int64)


def _column(labels: Labels, signal: str) -> Array:
    """Return a signal's values, the average in place of missing ones."""
    values = labels.signals[:, labels.names.index(signal)]
    known = np.isfinite(values)
    return np.where(known, values, values[known].mean() if known.any() else 0.0)
