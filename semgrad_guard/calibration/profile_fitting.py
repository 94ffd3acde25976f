"""Labelled scores -> profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.evidence import measure, reference_of
from semgrad_guard.calibration.fitting import MIN_FUSED, Fitted, Plan, fit, out_of_fold
from semgrad_guard.calibration.labels import MAX_ROWS, Labels, check_enough, collect, grouped_folds
from semgrad_guard.calibration.profile import Evidence, LabelPairs, Profile
from semgrad_guard.errors import SignalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from semgrad_guard.calibration.curve_fitting import CalibratorName
    from semgrad_guard.calibration.labels import LabelledScore
    from semgrad_guard.flow import Fingerprint

REQUIRED_SHARE = 0.95
"""A signal that at least this share of rows has is required; rows without it are dropped."""
NEVER_REQUIRED = "retrieval_"
"""How retrieval signals' names begin: one passage alone, or a retriever without scores, must not leave an answer
uncalibrated, so their average always stands in for them."""
USABLE_SHARE = 0.50
"""A signal that fewer rows have is not used; between the two it is optional, its average standing in for it."""


def fit_profile(  # noqa: PLR0913 - the options of the command, each with a default
    rows: Iterable[LabelledScore],
    *,
    name: str,
    method: str = "fused",
    calibrator: CalibratorName = "auto",
    directions: Mapping[str, int] | None = None,
    fingerprint: Fingerprint | None = None,
    expires: datetime | None = None,
    held_out: float = 0.0,
    draws: int = 1_000,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Profile:
    """Return a profile fitted on labelled scores, with out-of-sample evidence.

    Args:
        rows: labelled scores of one model and setting; read once, any number.
        name: name of the profile.
        method: `fused`, or the name of one signal. Below 50 labels `fused` becomes the best single score.
        calibrator: calibration curve; `auto` picks among Platt, beta and isotonic by cross-validated log-loss.
        directions: signal -> 1, -1 or 0, over the built-in table: whether a higher value may only raise or only lower
            confidence.
        fingerprint: what the signals depend on, where the rows do not say it.
        expires: moment from which the profile no longer calibrates.
        held_out: share of groups kept from the fit, in [0, 0.5]: risk-controlled thresholds then rest on answers that
            the very model in the profile never saw. With 0 they rest on out-of-fold confidences, which use every label
            but stand for models fitted on four fifths of them.
        draws: bootstrap resamples of the evidence.
        max_rows: rows kept of a longer stream.
        seed: seed of sample, folds and bootstrap; equal input and seed give an equal profile.

    Raises:
        OneClassError: only right or only wrong answers.
        TooFewLabelsError: fewer than 20 usable rows, or fewer than 4 questions with a right or with a wrong answer.
        MixedScoresError: rows of different models or settings.
        SignalUnavailableError: the signal of `method` is not in the rows.
    """
    labels = collect(rows, fingerprint=fingerprint, max_rows=max_rows, seed=seed)
    check_enough(labels.correct, labels.groups)
    required = _usable(labels, method)
    needed = labels.select([name for name, is_needed in required.items() if is_needed]).signals
    complete: NDArray[np.bool_] = np.all(np.isfinite(needed), axis=1)
    n_dropped = int((~complete).sum())
    labels = labels.take(complete)
    check_enough(labels.correct, labels.groups)
    plan = Plan(
        method=_method(method, labels),
        calibrator=calibrator,
        required=required,
        directions=dict(directions or {}),
        seed=seed,
    )
    fitted, pairs, evidence = _carry_out(labels, plan, held_out, draws)
    return Profile(
        name=name,
        expires_at=expires,
        fingerprint=labels.fingerprint,
        method="fused" if plan.method == "fused" else fitted.model.names[0],
        model=fitted.model,
        curve=fitted.curve,
        edge=fitted.edge,
        n_labels=len(labels),
        n_dropped=n_dropped,
        n_seen=labels.n_seen,
        base_rate=float(labels.correct.mean()),
        evidence=evidence,
        reference=reference_of(fitted.model, labels),
        pairs=pairs,
        notes=_notes(method, plan, labels, n_dropped),
    )


def usable_signals(labels: Labels) -> dict[str, bool]:
    """Return the signals that a fusion can use, and whether each is required."""
    share = dict(zip(labels.names, np.isfinite(labels.signals).mean(axis=0), strict=True))
    spread = {n: len(np.unique(c[np.isfinite(c)])) > 1 for n, c in zip(labels.names, labels.signals.T, strict=True)}
    return {
        n: bool(s >= REQUIRED_SHARE) and not n.startswith(NEVER_REQUIRED)
        for n, s in share.items()
        if s >= USABLE_SHARE and spread[n]
    }


def _usable(labels: Labels, method: str) -> dict[str, bool]:
    """Return the usable signals for a method, and whether each is required."""
    usable = usable_signals(labels)
    if method == "fused":
        if not usable:
            raise SignalUnavailableError("fused", "finds no signal that half of the rows have", labels.names)
        return usable
    if method not in labels.names:
        raise SignalUnavailableError(method, "is not in the rows", [*usable, "fused"])
    if method not in usable:
        raise SignalUnavailableError(
            method, "is constant, or missing in more than half of the rows", [*usable, "fused"]
        )
    return {method: True}


def _method(method: str, labels: Labels) -> str:
    """Return the method that the number of labels allows."""
    return "best" if method == "fused" and len(labels) < MIN_FUSED else method


def _carry_out(labels: Labels, plan: Plan, held_out: float, draws: int) -> tuple[Fitted, LabelPairs, Evidence]:
    """Return the fit, the pairs for thresholds, and the evidence."""
    if held_out > 0:
        test = grouped_folds(labels.correct, labels.groups, seed=plan.seed, n_folds=max(2, round(1 / held_out)))[0]
        train, unseen = labels.take(~test), labels.take(test)
        check_enough(train.correct, train.groups)
        fitted = fit(train, plan)
        confidence = fitted.confidences(unseen)
    else:
        unseen, fitted = labels, fit(labels, plan)
        confidence = out_of_fold(labels, plan)
    evidence = measure(confidence, unseen, directions=plan.directions, draws=draws, seed=plan.seed)
    return fitted, _pairs(confidence, unseen, held_out=held_out > 0), evidence


def _pairs(confidence: NDArray[np.float64], labels: Labels, *, held_out: bool) -> LabelPairs:
    """Return confidences and labels as the profile keeps them."""
    return LabelPairs(
        confidence=tuple(round(float(c), 9) for c in confidence),
        correct=tuple(bool(c) for c in labels.correct),
        group=tuple(int(g) for g in labels.groups),
        tags=tuple(tuple(sorted(t)) for t in labels.tags) if any(labels.tags) else (),
        held_out=held_out,
    )


def _notes(method: str, plan: Plan, labels: Labels, n_dropped: int) -> tuple[str, ...]:
    """Return what was decided on the way, in words."""
    notes: list[str] = []
    if plan.method == "best":
        notes.append(f"{len(labels)} labels are fewer than {MIN_FUSED}: the best single score instead of {method}")
    if n_dropped:
        notes.append(f"{n_dropped} rows left out: a required signal was missing, NaN or infinite")
    unused = [n for n in labels.names if n not in plan.required]
    if unused and method == "fused":
        notes.append(f"not used (constant, or missing in over half of the rows): {', '.join(unused)}")
    if labels.n_seen > len(labels) + n_dropped:
        notes.append(f"a uniform sample of {len(labels) + n_dropped} of {labels.n_seen} rows was used")
    return tuple(notes)
