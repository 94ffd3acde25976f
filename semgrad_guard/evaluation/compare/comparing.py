"""Labelled signals -> what each method is worth, with intervals and paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.fit import Plan, out_of_fold, usable_signals
from semgrad_guard.calibration.labels import check_enough
from semgrad_guard.calibration.metrics import DRAWS, Interval, paired_difference, with_interval
from semgrad_guard.calibration.probes import cross_fitted, with_components
from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.signals import COSTLY, EVERY, SIGNALS, Family, direction_of
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import Labels

    Array = NDArray[np.float64]

Kind = Family | Literal["fused", "chosen"]
"""What ranks the answers: one signal of a family, several fused, or the one that was best on the other folds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How answers are ranked, and from which signals."""

    name: str
    kind: Kind
    signals: tuple[str, ...]
    """One, or several that are fused or chosen from."""

    @property
    def direction(self) -> int:
        """1 where a higher value of the single signal is surer, -1 where it is less sure."""
        return direction_of(self.signals[0])


def single_methods(names: tuple[str, ...]) -> list[Method]:
    """Return a method for each signal that has a direction, from the signals that rows have."""
    known = [signal for name in names if (signal := EVERY.get(name))]
    ranked = [signal for signal in known if signal.direction and signal.ranks]
    return [Method(name=signal.name, kind=signal.family, signals=(signal.name,)) for signal in ranked]


def fused_methods(names: tuple[str, ...]) -> list[Method]:
    """Return the fusions that show what each family adds; the first is what the guard uses by default."""
    by_kind: dict[Kind, tuple[str, ...]] = {
        kind: tuple(name for name in names if name in SIGNALS and SIGNALS[name].family == kind)
        for kind in ("gradient", "likelihood", "attention", "probe", "text", "embedding", "forward")
    }
    gradients, likelihoods, attention, probes, texts, closeness, forward = by_kind.values()
    own = gradients + likelihoods + attention + probes
    without = own + texts
    wanted = {
        "fused": without + closeness,
        "fused + forward": without + closeness + forward if forward else (),
        "fused, no gradients": likelihoods + attention + probes + texts + closeness,
        "fused, no attention": gradients + likelihoods + probes + texts + closeness if attention else (),
        "fused, no probes": gradients + likelihoods + attention + texts + closeness if probes else (),
        "fused, no text": own + closeness if texts else (),
        "fused, no embeddings": without if closeness else (),
        "fused, no embeddings, no gradients": likelihoods + attention + probes + texts if closeness else (),
        "fused, gradients only": gradients,
        "fused, likelihoods only": likelihoods,
        "fused, attention only": attention,
        "fused, probes only": probes,
        "fused, text only": texts,
        "fused, embeddings only": closeness,
    }
    return _of_several("fused", wanted)


def chosen_methods(names: tuple[str, ...]) -> list[Method]:
    """Return the choices of one score by its figures on the other folds.

    They are what a fusion has to beat: the best of many scores on the very answers it is judged by is partly luck.
    """
    directed = [name for name in names if name in SIGNALS and direction_of(name)]
    own = tuple(name for name in directed if SIGNALS[name].family in _OWN)
    free = tuple(name for name in directed if SIGNALS[name].family != "forward")
    return _of_several("chosen", {"best score of the model": own, "best single score": free})


_OWN: frozenset[Family] = frozenset({"gradient", "likelihood", "attention", "probe"})
"""Families of signals that come from the model's own pass over the answer."""


def _of_several(kind: Kind, wanted: Mapping[str, tuple[str, ...]]) -> list[Method]:
    return [Method(name=name, kind=kind, signals=signals) for name, signals in wanted.items() if len(signals) > 1]


RISKS = (0.05, 0.10, 0.20)
"""Error rates among accepted answers for which coverage is reported."""
BY_TAG = ("fused", "semgrad", "hybridgrad", "mean_nll", "sum_nll", "semantic_entropy")
"""Methods told apart by tag."""


class MethodResult(Frozen):
    """What one method is worth. Ranking figures are for "wrong": least sure first."""

    name: str
    kind: str
    signals: tuple[str, ...]
    n: int
    """Answers that have the method's signals."""
    auroc: Interval
    auprc: Interval
    prr: Interval
    aurc: Interval
    ece: Interval
    """Of its cross-validated, calibrated confidence."""
    coverage: dict[str, Interval]
    """Error rate -> largest share of answers that could be accepted with it; the labels were looked at."""
    behind_fused: Interval | None
    """AUROC of `fused` minus its own, on the answers that have both."""
    seconds: float | None
    """Mean seconds an answer, beyond writing it; `None` where they were not measured."""


class TagResult(Frozen):
    """Some methods on the answers with one tag."""

    tag: str
    n: int
    right: float
    auroc: dict[str, Interval]
    """Of the methods named in `BY_TAG`."""


class Comparison(Frozen):
    """All methods on the same answers."""

    n: int
    n_groups: int
    right: Interval
    """Share of right answers."""
    methods: tuple[MethodResult, ...]
    ablations: dict[str, Interval]
    """What a family of signals adds: AUROC of the fusion with it minus that without."""
    tags: tuple[TagResult, ...]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One method's numbers for each answer, NaN where a signal is missing; higher is surer."""

    method: Method
    order: Array
    """What ranks the answers: the raw score in its direction, or a fitted confidence."""
    confidence: Array
    """Cross-validated probability of being right; NaN throughout where it could not be fitted."""


def rank(labels: Labels, *, seed: int = 0, tick: Callable[[], None] = lambda: None) -> list[Ranked]:
    """Return every method's ranking and cross-validated confidences, those that read several signals first.

    Args:
        labels: signals and labels; rows may lack signals.
        seed: of the folds.
        tick: called after each method.

    Raises:
        OneClassError: only right or only wrong answers.
        TooFewLabelsError: fewer than 20 rows, or too few of one kind.
    """
    check_enough(labels.correct, labels.groups)
    found: list[Ranked] = []
    labels = cross_fitted(with_components(labels)[0], seed)
    usable = usable_signals(labels)
    several = (*fused_methods(tuple(usable)), *chosen_methods(tuple(usable)))
    for method in [*several, *single_methods(labels.names)]:
        found.append(_ranked(labels, method, usable, seed))
        tick()
    return found


_HOW = {"fused": "fused", "chosen": "best"}
"""Kind of method that reads several signals -> how its confidence is fitted."""


def _ranked(labels: Labels, method: Method, usable: Mapping[str, bool], seed: int) -> Ranked:
    if method.kind in _HOW:
        required = {name: usable[name] for name in method.signals}
        confidence = _confidence(labels, _HOW[method.kind], required, seed)
        return Ranked(method, confidence, confidence)
    (name,) = method.signals
    values = labels.signals[:, labels.names.index(name)]
    return Ranked(
        method, method.direction * values, _confidence(labels, name, {name: True}, seed, {name: method.direction})
    )


def _confidence(
    labels: Labels, method: str, required: Mapping[str, bool], seed: int, directions: Mapping[str, int] | None = None
) -> Array:
    """Return out-of-fold confidences, NaN for rows without a required signal or where too few rows have them."""
    found = np.full(len(labels), np.nan)
    needed = labels.select([name for name, is_needed in required.items() if is_needed]).signals
    rows: NDArray[np.bool_] = np.all(np.isfinite(needed), axis=1)
    some = labels.take(rows)
    try:
        check_enough(some.correct, some.groups)
    except SemGradGuardError:
        return found
    plan = Plan(method=method, calibrator="auto", required=required, directions=dict(directions or {}), seed=seed)
    found[rows] = out_of_fold(some, plan)
    return found


def compare(
    labels: Labels,
    ranked: Sequence[Ranked],
    seconds: Mapping[str, float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Comparison:
    """Return the figures of all methods.

    Args:
        labels: what was ranked.
        ranked: from `rank`, with the same labels.
        seconds: mean seconds an answer by what takes them: `score`, `context_gain`, `p_true`, `samples`.
        draws: bootstrap resamples.
        seed: of the resampling.
        tick: called after each method.
    """
    by_name = {one.method.name: one for one in ranked}
    fused = by_name.get("fused")
    results: list[MethodResult] = []
    for one in ranked:
        results.append(_result(labels, one, fused, seconds, draws, seed))
        tick()
    return Comparison(
        n=len(labels),
        n_groups=len(np.unique(labels.groups)),
        right=with_interval(_share_right, labels.correct, labels.correct, labels.groups, draws=draws, seed=seed),
        methods=tuple(results),
        ablations=_ablations(labels, by_name, draws, seed),
        tags=_by_tag(labels, [one for one in ranked if one.method.name in BY_TAG], draws, seed),
    )


_share_right = metrics.Metric(lambda _, correct, weights: weights @ correct / weights.sum(axis=1))


def _result(
    labels: Labels, one: Ranked, fused: Ranked | None, seconds: Mapping[str, float], draws: int, seed: int
) -> MethodResult:
    def interval(metric: metrics.Metric, values: Array) -> Interval:
        return _interval(labels, metric, values, draws, seed)

    return MethodResult(
        name=one.method.name,
        kind=one.method.kind,
        signals=one.method.signals,
        n=int(np.isfinite(one.order).sum()),
        auroc=interval(metrics.auroc, one.order),
        auprc=interval(metrics.auprc, one.order),
        prr=interval(metrics.prr, one.order),
        aurc=interval(metrics.aurc, one.order),
        ece=interval(metrics.ece, one.confidence),
        coverage={f"{risk:g}": interval(metrics.coverage_at_risk(risk), one.order) for risk in RISKS},
        behind_fused=None if fused is None or one is fused else _difference(labels, fused, one, draws, seed),
        seconds=_seconds(one.method, seconds),
    )


def _interval(labels: Labels, metric: metrics.Metric, values: Array, draws: int, seed: int) -> Interval:
    """Return a metric of the rows that have a value."""
    rows = np.isfinite(values)
    if not rows.any():
        return Interval(value=None)
    return with_interval(metric, values[rows], labels.correct[rows], labels.groups[rows], draws=draws, seed=seed)


def _difference(labels: Labels, left: Ranked, right: Ranked, draws: int, seed: int) -> Interval:
    """Return AUROC(left) - AUROC(right) on the rows that both rank."""
    rows = np.isfinite(left.order) & np.isfinite(right.order)
    if not rows.any():
        return Interval(value=None)
    return paired_difference(
        metrics.auroc,
        left.order[rows],
        right.order[rows],
        labels.correct[rows],
        labels.groups[rows],
        draws=draws,
        seed=seed,
    )


def _ablations(labels: Labels, by_name: Mapping[str, Ranked], draws: int, seed: int) -> dict[str, Interval]:
    pairs = {
        "gradients": ("fused", "fused, no gradients"),
        "gradients, without embeddings,": ("fused, no embeddings", "fused, no embeddings, no gradients"),
        "attention weights": ("fused", "fused, no attention"),
        "probes": ("fused", "fused, no probes"),
        "text": ("fused", "fused, no text"),
        "embeddings": ("fused", "fused, no embeddings"),
        "forward passes": ("fused + forward", "fused"),
    }
    return {
        added: _difference(labels, by_name[with_it], by_name[without], draws, seed)
        for added, (with_it, without) in pairs.items()
        if with_it in by_name and without in by_name
    }


def _by_tag(labels: Labels, methods: Sequence[Ranked], draws: int, seed: int) -> tuple[TagResult, ...]:
    """Return the figures for each tag that some answers have and others do not."""
    found: list[TagResult] = []
    everywhere = frozenset.intersection(*labels.tags)
    for tag in sorted(frozenset().union(*labels.tags) - everywhere):
        rows = np.array([tag in tags for tags in labels.tags])
        some = labels.take(rows)
        auroc = {one.method.name: _interval(some, metrics.auroc, one.order[rows], draws, seed) for one in methods}
        found.append(TagResult(tag=tag, n=len(some), right=float(some.correct.mean()), auroc=auroc))
    return tuple(found)


_STEP_OF = {
    "gradient": "score",
    "likelihood": "score",
    "attention": "score",
    "probe": "score",
    "text": None,
    "embedding": "embedding",
    "sampling": "samples",
}
"""The step whose time a kind of single method takes; text signals count words, which takes none to speak of."""


def _seconds(method: Method, seconds: Mapping[str, float]) -> float | None:
    """Return what a method costs beyond writing the answer."""
    if method.kind in _HOW:
        kinds = {EVERY[name].family for name in method.signals}
        steps = {name for name in method.signals if name in COSTLY}
        steps |= {step for kind in kinds & _STEP_OF.keys() if (step := _STEP_OF[kind])}
    elif method.kind == "forward":
        steps = {method.signals[0]}
    else:
        step = _STEP_OF[method.kind]
        if step is None:
            return 0.0
        steps = {step}
    return sum(seconds[step] for step in steps) if steps <= seconds.keys() else None
