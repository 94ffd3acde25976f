"""Fits a profile on labelled scores: the fusion of signals, its calibration curve, and the evidence for both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from semgrad_guard.calibration.curves import (
    BetaCurve,
    CautiousCurve,
    IsotonicCurve,
    PlattCurve,
    VennAbersCurve,
    beta_columns,
    fit_logistic,
    smoothed,
)
from semgrad_guard.calibration.evidence import (
    adversarial_evidence,
    left_out_evidence,
    measure,
    reference_of,
    reported_evidence,
)
from semgrad_guard.calibration.fused import FusedModel, fit_fused, fit_weights, standardiser
from semgrad_guard.calibration.labels import MAX_ROWS, Labels, check_enough, collect, grouped_folds
from semgrad_guard.calibration.metrics import auroc, log_losses
from semgrad_guard.calibration.probes import (
    Components,
    FittedProbe,
    along,
    cross_fitted,
    filled,
    with_components,
    with_probes,
)
from semgrad_guard.calibration.profile import Evidence, LabelPairs, Profile
from semgrad_guard.calibration.tampering import with_tampering
from semgrad_guard.errors import SignalUnavailableError
from semgrad_guard.extras import require
from semgrad_guard.signals import TAMPERING, Family, direction_of, may_be_required, signal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import LabelledScore
    from semgrad_guard.flow import Fingerprint

    Array = NDArray[np.float64]

SmoothCurve = PlattCurve | BetaCurve | IsotonicCurve
FittedCurve = SmoothCurve | VennAbersCurve | CautiousCurve

CalibratorName = Literal["auto", "platt", "beta", "isotonic", "venn_abers"]

MAX_KNOTS = 200
"""Venn-Abers refits once per knot, so margins are first pooled into at most this many groups of equal size."""


def fit_platt(margins: Array, correct: Array) -> PlattCurve:
    """Return the logistic curve of the margins."""
    slopes, intercept = fit_logistic(margins[:, None], smoothed(correct), signs=[1])
    return PlattCurve(slope=float(slopes[0]), intercept=intercept)


def fit_beta(margins: Array, correct: Array) -> BetaCurve:
    """Return the beta calibration curve of the margins."""
    weights, intercept = fit_logistic(beta_columns(margins), smoothed(correct), signs=[1, 1])
    return BetaCurve(a=float(weights[0]), b=float(weights[1]), c=intercept)


def fit_isotonic(margins: Array, correct: Array) -> IsotonicCurve:
    """Return the isotonic curve of the margins, with knots only where the line bends."""
    regression = require("sklearn.isotonic", extra="evaluation").IsotonicRegression(y_min=0, y_max=1)
    regression.fit(margins, correct)
    return IsotonicCurve(
        knots=tuple(float(x) for x in regression.X_thresholds_),
        values=tuple(float(y) for y in regression.y_thresholds_),
    )


def fit_venn_abers(margins: Array, correct: Array) -> VennAbersCurve:
    """Return the inductive Venn-Abers curve of the margins.

    Written on scipy's isotonic fit: the `venn-abers` package switches numpy's floating-point warnings off for
    the whole process when imported, and brings pandas.
    """
    knots, place = np.unique(_pooled(margins), return_inverse=True)
    weight = np.bincount(place).astype(np.float64)
    mean = np.bincount(place, weights=correct) / weight
    return VennAbersCurve(
        knots=tuple(float(x) for x in knots),
        if_wrong=_refits(mean, weight, 0.0),
        if_right=_refits(mean, weight, 1.0),
    )


def _pooled(margins: Array) -> Array:
    """Return the margins, replaced by the mean of their quantile group where there are too many distinct ones."""
    if len(np.unique(margins)) <= MAX_KNOTS:
        return margins
    edges = np.quantile(margins, np.linspace(0, 1, MAX_KNOTS + 1)[1:-1])
    group = np.searchsorted(edges, margins, "right")
    n = np.bincount(group, minlength=MAX_KNOTS)
    means = np.bincount(group, weights=margins, minlength=MAX_KNOTS) / np.maximum(n, 1)
    return means[group]


def _refits(mean: Array, weight: Array, label: float) -> tuple[float, ...]:
    """Return the isotonic value of one more answer with this label at every gap and knot, from the left."""
    isotonic = require("scipy.optimize", extra="evaluation").isotonic_regression
    values: list[float] = []
    for k in range(len(mean)):
        gap = isotonic(np.insert(mean, k, label), weights=np.insert(weight, k, 1.0)).x[k]
        joined = (mean[k] * weight[k] + label) / (weight[k] + 1)
        knot_mean, knot_weight = mean.copy(), weight.copy()
        knot_mean[k], knot_weight[k] = joined, weight[k] + 1
        values += [float(gap), float(isotonic(knot_mean, weights=knot_weight).x[k])]
    values.append(float(isotonic(np.append(mean, label), weights=np.append(weight, 1.0)).x[-1]))
    return tuple(values)


SMOOTH: dict[str, Callable[[Array, Array], SmoothCurve]] = {
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
}
"""The curves that `auto` chooses from; the first is kept unless another is clearly better."""
FITS: dict[str, Callable[[Array, Array], FittedCurve]] = {**SMOOTH, "venn_abers": fit_venn_abers}


def edge(n: int) -> float:
    """Return how far confidence stays from 0 and 1 with n labels, because finite data never prove certainty."""
    return 1.0 / (n + 2)


def fit_curve(
    margins: Array, correct: Array, groups: NDArray[np.int64], *, calibrator: CalibratorName, seed: int
) -> FittedCurve:
    """Return the fitted curve; `auto` takes the one with the lowest cross-validated log-loss, held down by Venn-Abers.

    Isotonic regression overfits when labels are few, so another curve replaces Platt's only where it is better by
    more than one standard error of the paired difference.
    """
    if calibrator != "auto":
        return FITS[calibrator](margins, correct)
    fitted = SMOOTH[_choose(margins, correct, groups, seed)](margins, correct)
    return CautiousCurve(fitted=fitted, counted=fit_venn_abers(margins, correct))


def _choose(margins: Array, correct: Array, groups: NDArray[np.int64], seed: int) -> str:
    """Return the name of the curve to use."""
    folds = grouped_folds(correct, groups, seed=seed)
    losses = {name: np.empty(len(correct)) for name in SMOOTH}
    for test in folds:
        for name, loss in losses.items():
            curve = SMOOTH[name](margins[~test], correct[~test])
            keep = edge(int((~test).sum()))
            p = np.clip(curve.probabilities(margins[test]), keep, 1 - keep)
            loss[test] = -np.log(np.where(correct[test] > 0, p, 1 - p))
    best, *others = SMOOTH
    for name in others:
        if _is_clear(losses[best] - losses[name], np.ones(len(correct)), len(correct)):
            best = name
    return best


def _is_clear(gain: Array, weights: Array, n: int) -> bool:
    """Return whether a gain is more than noise: its mean is above one standard error.

    Args:
        gain: what each row gains.
        weights: how much each row counts.
        n: number of independent rows.
    """
    mean = np.average(gain, weights=weights)
    return bool(mean > np.sqrt(np.average((gain - mean) ** 2, weights=weights) / n))


RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Penalties tried for the fused model; the one with the lowest cross-validated log-loss is kept."""
SOURCE_RIDGES = (3e-2, 3e-1, 3.0)
"""The same with several data sets: between few no fine choice can be made, and nearly equal weights carry over well."""
MIN_FUSED = 50
"""Below this many labels a fused model is not better than the best single score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of a fit, the same on all rows and inside every fold."""

    method: str
    """`fused`, `best` (the best single score) or a signal's name."""
    calibrator: CalibratorName
    required: Mapping[str, bool]
    """Usable signals, and whether each must be present when the profile is applied."""
    directions: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = 0

    def sign(self, name: str) -> int:
        """Return the direction of a signal."""
        return direction_of(name, self.directions)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model and curve, which turn signals into a confidence."""

    model: FusedModel
    curve: FittedCurve
    edge: float
    """Confidence keeps this distance from 0 and 1."""
    probes: tuple[FittedProbe, ...] = ()
    """The probes whose signals the model uses."""

    def confidences(self, labels: Labels) -> NDArray[np.float64]:
        """Return the confidence of each row."""
        labels = filled(labels, self.probes)
        margins = self.model.margins(labels.select(self.model.names).signals)
        return np.clip(self.curve.probabilities(margins), self.edge, 1 - self.edge)


def fit(labels: Labels, plan: Plan) -> Fitted:
    """Fit model and curve to these rows as the plan says; adversarial rows teach the model, not the curve."""
    wanted = {name: vectors for name, vectors in labels.vectors.items() if name in plan.required}
    labels, probes = with_probes(replace(labels, vectors=wanted), plan.seed)
    is_taught = plan.method == "fused" and not labels.honest.all()
    folds = Folds(labels, plan)
    if is_taught:
        labels = _weighed(labels, plan, folds)
    names = _chosen(labels, plan, folds) if plan.method == "fused" else (_single(labels, plan),)
    rows = labels.select(names)
    ridge, margins = _tuned(rows, folds) if len(names) > 1 else (RIDGES[0], None)
    model = _fit_model(rows, plan, ridge)
    if margins is None:
        margins = model.margins(rows.signals)
    model = model.pruned()
    if is_taught:
        model, margins = with_tampering(model, labels, margins)
    honest = rows.honest
    curve = fit_curve(
        margins[honest], rows.correct[honest], rows.groups[honest], calibrator=plan.calibrator, seed=plan.seed
    )
    used = tuple(probe for probe in probes if probe.name in model.names)
    return Fitted(model, curve, edge(int(honest.sum())), used)


def out_of_fold(labels: Labels, plan: Plan) -> NDArray[np.float64]:
    """Return the confidence of each row from a fit on the rows of other groups."""
    confidence = np.empty(len(labels))
    for test in grouped_folds(labels.correct, labels.groups, seed=plan.seed):
        confidence[test] = fit(labels.take(~test), plan).confidences(labels.take(test))
    return confidence


def _single(labels: Labels, plan: Plan) -> str:
    """Return the one signal to use on these rows."""
    if plan.method != "best":
        return plan.method
    directed = [name for name in plan.required if plan.sign(name)] or list(plan.required)
    values = labels.select(directed).signals
    honest = labels.honest
    quality = {
        name: _ranking(values[honest, j], labels.correct[honest], plan.sign(name)) for j, name in enumerate(directed)
    }
    return max(directed, key=quality.__getitem__)


def _ranking(values: NDArray[np.float64], correct: NDArray[np.float64], sign: int) -> float:
    """Return how well a signal ranks right answers before wrong ones, without the rows that lack it."""
    present = np.isfinite(values)
    found = auroc((sign or 1) * values[present], correct[present])
    return found if sign else max(found, 1 - found)


def _fit_model(labels: Labels, plan: Plan, ridge: float) -> FusedModel:
    """Return the fused model of these rows."""
    return fit_fused(
        labels,
        signs=[plan.sign(name) for name in labels.names],
        required=[plan.required[name] for name in labels.names],
        ridge=ridge,
    )


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: rows that teach, rows that are predicted, and the signals of both, standardised by those that teach."""

    test: NDArray[np.bool_]
    train: Labels
    predicted: NDArray[np.float64]
    """Raw signals of the other rows, ``(row, signal)``."""
    standardised: dict[str, tuple[Array, Array]] = field(default_factory=dict[str, "tuple[Array, Array]"])
    """What was asked for: by signal, the values of the two kinds of rows."""

    def values(self, name: str) -> tuple[Array, Array]:
        """Return a signal's standardised values in the rows that teach and in the others."""
        if name not in self.standardised:
            j = self.train.names.index(name)
            raw = self.train.signals[:, j]
            column = standardiser(name, raw[self.train.honest], required=True)
            self.standardised[name] = column.filled(raw), column.filled(self.predicted[:, j])
        return self.standardised[name]


class Folds:
    """The folds in which a fit is chosen: signals are standardised once for all sets, weights and penalties tried."""

    def __init__(self, labels: Labels, plan: Plan) -> None:
        self._labels, self._plan = labels, plan

    @cached_property
    def _folds(self) -> list[Fold]:
        labels = self._labels
        return [Fold(test, labels.take(~test), labels.signals[test]) for test in labels.folds(self._plan.seed + 1)]

    def margins(self, labels: Labels, ridges: Sequence[float]) -> dict[float, NDArray[np.float64]]:
        """Return for each penalty the margin of each row from a fit on the rows of other folds.

        Args:
            labels: the rows of the folds, with the signals to fit and the weights that count.
            ridges: the penalties.
        """
        margins = {ridge: np.empty(len(labels)) for ridge in ridges}
        signs = [self._plan.sign(name) for name in labels.names]
        for fold in self._folds:
            train = replace(fold.train, adversarial_share=labels.adversarial_share)
            design, predicted = (
                np.stack(columns, axis=1) for columns in zip(*map(fold.values, labels.names), strict=True)
            )
            for ridge in ridges:
                weights, intercept = fit_weights(design, train, signs=signs, ridge=ridge)
                margins[ridge][fold.test] = predicted @ weights + intercept
        return margins


FAMILIES: tuple[frozenset[Family], ...] = (
    frozenset({"text"}),
    frozenset({"embedding"}),
    frozenset({"text", "embedding"}),
    frozenset({"likelihood", "gradient"}),
    frozenset({"embedding", "gradient"}),
    frozenset({"likelihood", "attention"}),
    frozenset({"probe"}),
    frozenset({"text", "likelihood"}),
    frozenset({"text", "attention"}),
    frozenset({"text", "likelihood", "attention"}),
    frozenset({"text", "likelihood", "forward"}),
    frozenset({"text", "embedding", "likelihood"}),
    frozenset({"text", "embedding", "attention"}),
    frozenset({"text", "embedding", "likelihood", "attention"}),
    frozenset({"text", "embedding", "likelihood", "forward"}),
    frozenset({"text", "likelihood", "probe"}),
    frozenset({"embedding", "probe"}),
    frozenset({"text", "embedding", "probe"}),
    frozenset({"text", "embedding", "likelihood", "attention", "gradient", "forward", "sampling", "probe"}),
)
"""Sets of families of signals that a fused model may be made of, the smaller first; the last has all."""
FIRST_RIDGES = (3e-2, 3e-1)
"""Penalties with which sets of families are compared."""


def _chosen(labels: Labels, plan: Plan, folds: Folds) -> tuple[str, ...]:
    """Return the signals of the set of families that predicts best, by cross-validation.

    A larger set replaces a smaller one only where it is better by more than one standard error of the paired
    difference, so that weak signals cost no more than noise. Signals of the caller's own are in every set. With labels
    of several data sets, signals that may count either way, such as the answer's length, are left out: they tell the
    sets apart. Signs of tampering are weighed afterwards, where there are answers that teach it.
    """
    usable = [name for name in plan.required if plan.sign(name) or not labels.has_sources]
    if not labels.honest.all():
        usable = [name for name in usable if name not in TAMPERING] or usable
    sets = [_of_families(usable, families) for families in FAMILIES]
    candidates = [names for names in dict.fromkeys(sets) if names]
    if len(candidates) == 1:
        return candidates[0]
    losses = {names: _losses(labels.select(names), folds) for names in candidates}
    best, *larger = candidates
    for names in larger:
        if _is_clear(losses[best] - losses[names], labels.weights, int(labels.honest.sum())):
            best = names
    return best


NO_SHARE = 1e-6
"""Weight of rows that are judged like the others and teach nothing."""
ADVERSARIAL_SHARES = (0.6, 0.2, 0.05)
"""Weights that adversarial answers may have together, as a share of the honest ones'; the largest that costs these no
more than noise is taken."""


def _weighed(labels: Labels, plan: Plan, folds: Folds) -> Labels:
    """Return the rows with the largest weight of adversarial ones at which honest ones are predicted as without them.

    As without: their cross-validated log-loss is not higher by more than one standard error of the paired difference.
    With several data sets they teach nothing but the signs of tampering: what they have in common with honest answers
    differs from set to set.
    """
    if labels.has_sources:
        return replace(labels, adversarial_share=NO_SHARE)

    def honest_losses(share: float) -> NDArray[np.float64]:
        weighed = replace(labels, adversarial_share=share)
        return _losses(weighed.select(_chosen(weighed, plan, folds)), folds)[labels.honest]

    without = honest_losses(NO_SHARE)
    for share in ADVERSARIAL_SHARES:
        worse = honest_losses(share) - without
        if not _is_clear(worse, np.ones(len(worse)), len(worse)):
            return replace(labels, adversarial_share=share)
    return replace(labels, adversarial_share=ADVERSARIAL_SHARES[-1])


def _of_families(names: Iterable[str], families: frozenset[Family]) -> tuple[str, ...]:
    return tuple(name for name in names if (signal := signal_of(name)) is None or signal.family in families)


def _losses(labels: Labels, folds: Folds) -> NDArray[np.float64]:
    """Return each row's out-of-fold log-loss, with the better of a few penalties."""
    margins = folds.margins(labels, FIRST_RIDGES)
    losses = [_row_losses(margin, labels) for margin in margins.values()]
    return min(losses, key=lambda loss: float(np.average(loss, weights=labels.weights)))


def _tuned(labels: Labels, folds: Folds) -> tuple[float, NDArray[np.float64]]:
    """Return the penalty with the lowest cross-validated log-loss, and its out-of-fold margins."""
    ridges = SOURCE_RIDGES if labels.has_sources else RIDGES
    margins = folds.margins(labels, ridges)
    best = min(ridges, key=lambda r: float(np.average(_row_losses(margins[r], labels), weights=labels.weights)))
    return best, margins[best]


def _row_losses(margins: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return the log-loss of each row after Platt scaling on the honest ones.

    A penalty shrinks margins, which the calibration curve undoes anyway. With several data sets each has a scaling of
    its own: their shares of right answers differ, and what can carry over is the order.
    """
    honest = labels.honest
    sources = np.array([source or "" for source in labels.sources] if labels.has_sources else [""] * len(labels))
    p = np.empty(len(labels))
    for source in np.unique(sources):
        rows = sources == source
        p[rows] = fit_platt(margins[rows & honest], labels.correct[rows & honest]).probabilities(margins[rows])
    return log_losses(p, labels.correct)


REQUIRED_SHARE = 0.95
"""A signal that at least this share of rows has is required, if it may be; rows without it are dropped."""
USABLE_SHARE = 0.50
"""A signal that fewer rows have is not used; between the two it is optional, and missing values are averages."""


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
    simpler: bool = False,
    reported: Iterable[LabelledScore] = (),
    seed: int = 0,
) -> Profile:
    """Return a profile fitted on labelled scores, with out-of-sample evidence.

    Where the rows have signals of meaning, it holds a second fit without them, for answers that come without. Rows that
    are `adversarial` teach the fit at a small weight; the curve, thresholds and evidence rest on the others.

    Args:
        rows: labelled scores of one model and setting; read once, any number.
        name: name of the profile.
        method: `fused`, or the name of one signal. Below 50 labels `fused` becomes the best single score.
        calibrator: calibration curve; `auto` picks among Platt, beta and isotonic by cross-validated log-loss, and
            takes the lower of it and Venn-Abers.
        directions: signal -> 1 (a higher value may only raise confidence), -1 (only lower it) or 0; overrides the
            built-in table.
        fingerprint: what the signals depend on, for rows without a fingerprint.
        expires: moment from which the profile no longer calibrates.
        held_out: share of groups kept from the fit, in [0, 0.5]. Risk-controlled thresholds are then computed from
            answers that the profile's fit did not use. With 0 they are computed from out-of-fold confidences, which
            use every label but come from models fitted on four fifths of them.
        draws: bootstrap resamples of the evidence.
        max_rows: rows kept of a longer stream.
        simpler: also hold a fit on the signals of texts alone, for scores of other models.
        reported: labelled scores of further data sets, which are judged for the evidence and not fitted on.
        seed: seed of sample, folds and bootstrap; equal input and seed give an equal profile.

    Raises:
        OneClassError: there are only right or only wrong answers.
        TooFewLabelsError: fewer than 20 usable rows, or fewer than 4 questions with a right or with a wrong answer.
        MixedScoresError: the rows come from different models or settings.
        SignalUnavailableError: the signal of `method` is not in the rows.
    """
    labels = collect(rows, fingerprint=fingerprint, max_rows=max_rows, seed=seed)
    _check(labels)
    labels, components = with_components(labels)
    labels = cross_fitted(labels, seed)
    settings = Settings(
        method=method,
        calibrator=calibrator,
        directions=dict(directions or {}),
        expires=expires,
        held_out=held_out,
        draws=draws,
        seed=seed,
    )
    further = list(reported)
    unseen = collect(further, fingerprint=fingerprint, max_rows=max_rows, seed=seed) if further else None
    unseen = None if unseen is None else along(unseen, components)
    profile: Profile | None = None
    for title, families in reversed(_fits(labels, method, simpler=simpler)):
        names = _of_families(labels.names, families) if families else labels.names
        fitted = _profile(labels.select(names), f"{name}{title}", settings, unseen, components)
        profile = fitted.model_copy(update={"simpler": profile})
    if profile is None:  # pragma: no cover - there is always the first fit
        raise AssertionError
    return profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `fit_profile`, which are the same for every fit of a profile."""

    method: str
    calibrator: CalibratorName
    directions: Mapping[str, int]
    expires: datetime | None
    held_out: float
    draws: int
    seed: int


WITHOUT_MEANING: frozenset[Family] = frozenset({"text", "likelihood", "attention", "gradient", "forward", "probe"})
TEXTS_ONLY: frozenset[Family] = frozenset({"text"})


def _fits(labels: Labels, method: str, *, simpler: bool) -> list[tuple[str, frozenset[Family] | None]]:
    """Return what each fit of a profile is called and made of, the richest first; `None` is all signals."""
    fits: list[tuple[str, frozenset[Family] | None]] = [("", None)]
    if method != "fused":
        return fits
    families = {found.family for name in labels.names if (found := signal_of(name)) is not None}
    if "embedding" in families and families - {"embedding"}:
        fits.append((", without embeddings", WITHOUT_MEANING))
    if simpler and "text" in families and families - {"embedding", "text"}:
        fits.append((", texts only", TEXTS_ONLY))
    return fits


def _check(labels: Labels) -> None:
    honest = labels.honest
    check_enough(labels.correct[honest], labels.groups[honest])


def _profile(
    labels: Labels, name: str, settings: Settings, reported: Labels | None, components: Mapping[str, Components]
) -> Profile:
    """Return one fit, without simpler ones."""
    required = _usable(labels, settings.method)
    needed = labels.select([signal for signal, is_needed in required.items() if is_needed]).signals
    complete: NDArray[np.bool_] = np.all(np.isfinite(needed), axis=1)
    n_dropped = int((~complete & labels.honest).sum())
    is_sample = labels.n_seen > len(labels)
    labels = labels.take(complete)
    _check(labels)
    honest = labels.take(labels.honest)
    plan = Plan(
        method=_method(settings.method, honest),
        calibrator=settings.calibrator,
        required=required,
        directions=settings.directions,
        seed=settings.seed,
    )
    fitted, pairs, evidence = _carry_out(labels, plan, settings.held_out, settings.draws)
    if reported is not None:
        found = reported_evidence(reported, fitted.confidences, draws=settings.draws, seed=settings.seed)
        evidence = evidence.model_copy(update={"left_out": {**evidence.left_out, **found}})
    return Profile(
        name=name,
        expires_at=settings.expires,
        fingerprint=labels.fingerprint,
        method="fused" if plan.method == "fused" else fitted.model.names[0],
        model=fitted.model,
        probes=tuple(probe.unfolded(components[probe.name]) for probe in fitted.probes),
        curve=fitted.curve,
        edge=fitted.edge,
        n_labels=len(honest),
        n_dropped=n_dropped,
        n_seen=labels.n_seen,
        base_rate=float(honest.correct.mean()),
        evidence=evidence,
        reference=reference_of(fitted.model, honest),
        pairs=pairs,
        notes=_notes(settings.method, plan, labels, n_dropped, is_sample=is_sample),
    )


def usable_signals(labels: Labels) -> dict[str, bool]:
    """Return the signals that a fused model can use, and whether each is required.

    Honest rows decide which there are; adversarial ones may be the only ones in which a signal varies.
    """
    share = dict(zip(labels.names, np.isfinite(labels.signals[labels.honest]).mean(axis=0), strict=True))
    spread = {n: len(np.unique(c[np.isfinite(c)])) > 1 for n, c in zip(labels.names, labels.signals.T, strict=True)}
    return {
        n: bool(s >= REQUIRED_SHARE) and may_be_required(n) for n, s in share.items() if s >= USABLE_SHARE and spread[n]
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
    """Return the method to use: with few labels, the best single score instead of a fused model."""
    return "best" if method == "fused" and len(labels) < MIN_FUSED else method


def _carry_out(labels: Labels, plan: Plan, held_out: float, draws: int) -> tuple[Fitted, LabelPairs, Evidence]:
    """Return the fit, the pairs for thresholds, and the evidence."""
    if held_out > 0:
        test = grouped_folds(labels.correct, labels.groups, seed=plan.seed, n_folds=max(2, round(1 / held_out)))[0]
        train, unseen = labels.take(~test), labels.take(test)
        _check(train)
        fitted = fit(train, plan)
        confidence = fitted.confidences(unseen)
    else:
        unseen, fitted = labels, fit(labels, plan)
        confidence = out_of_fold(labels, plan)
    adversarial, threshold = adversarial_evidence(confidence, unseen)
    honest = unseen.honest
    confidence, unseen = confidence[honest], unseen.take(honest)
    evidence = measure(confidence, unseen, directions=plan.directions, draws=draws, seed=plan.seed)
    left_out = left_out_evidence(
        labels, lambda rest, judged: fit(rest, plan).confidences(judged), draws=draws, seed=plan.seed
    )
    evidence = evidence.model_copy(
        update={"adversarial": adversarial, "adversarial_threshold": threshold, "left_out": left_out}
    )
    return fitted, _pairs(confidence, unseen, held_out=held_out > 0), evidence


def _pairs(confidence: NDArray[np.float64], labels: Labels, *, held_out: bool) -> LabelPairs:
    """Return confidences and labels in the form that the profile stores."""
    return LabelPairs(
        confidence=tuple(round(float(c), 9) for c in confidence),
        correct=tuple(bool(c) for c in labels.correct),
        group=tuple(int(g) for g in labels.groups),
        tags=tuple(tuple(sorted(t)) for t in labels.tags) if any(labels.tags) else (),
        held_out=held_out,
    )


def _notes(method: str, plan: Plan, labels: Labels, n_dropped: int, *, is_sample: bool) -> tuple[str, ...]:
    """Describe the choices made while fitting."""
    notes: list[str] = []
    if plan.method == "best":
        notes.append(
            f"{int(labels.honest.sum())} labels are fewer than {MIN_FUSED}: the best single score instead of {method}"
        )
    if n_dropped:
        notes.append(f"{n_dropped} rows left out: a required signal was missing, NaN or infinite")
    unused = [n for n in labels.names if n not in plan.required]
    if unused and method == "fused":
        notes.append(f"not used (constant, or missing in over half of the rows): {', '.join(unused)}")
    n_made = int((~labels.honest).sum())
    if n_made:
        notes.append(f"{n_made} answers that were made to look right taught the fit at a small weight")
    if is_sample:
        notes.append(f"a uniform sample of {len(labels) + n_dropped} of {labels.n_seen} rows was used")
    return tuple(notes)
