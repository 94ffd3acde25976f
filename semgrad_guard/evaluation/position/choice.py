"""Chooses position and band from the map of scores, and checks the choice by labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration import Interval, paired_difference, with_interval
from semgrad_guard.calibration.labels import collect
from semgrad_guard.calibration.metrics import auroc
from semgrad_guard.errors import DataFileError, OneClassError
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.position.preservation import STILL
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.signals import POSITIONS, semgrad_at

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from semgrad_guard.evaluation.position.preservation import SpsMap

    Array = NDArray[np.float64]

DRAWS = 1_000
SPLITS = 200
"""Random halvings of the questions."""
SURE_SHARE = 0.95
"""Share of bootstrap draws that must choose the same position."""
SURE_HALVES = 0.80
"""Share of halvings whose two halves must choose the same position; halves are noisier than the whole."""
MIN_BAND = 4
"""Bands shorter than 1 / MIN_BAND of the blocks are not looked at: they would be chosen by noise."""
WORTHWHILE = 0.01
"""Gain of AUC on unseen questions from which another band is worth naming."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Array) -> Estimate:
        """Return the value with the percentile interval of its draws; undefined draws are left out."""
        defined = draws[np.isfinite(draws)]
        if not len(defined):
            return cls(value, float("nan"), float("nan"))
        low, high = np.quantile(defined, [0.025, 0.975])
        return cls(float(value), float(low), float(high))

    def text(self) -> str:
        """Return value and interval in words."""
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def brief(self) -> str:
        """Return value and interval in as few columns as can be read."""
        return "undefined" if np.isnan(self.value) else f"{self.value:.2f} {self.low:.2f}-{self.high:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BetterBand:
    """The contiguous band with the highest contrast at the chosen position."""

    band: tuple[int, int]
    """First and last block, both included."""
    auc: float
    held_out_gain: Estimate
    """AUC beyond the upper half's, on the half of the questions that did not choose it; interval over halvings."""

    @property
    def is_better(self) -> bool:
        """True when it beats the upper half on unseen questions, by enough to matter."""
        return self.held_out_gain.low > 0 and self.held_out_gain.value >= WORTHWHILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the scan found and what to use."""

    band: tuple[int, int]
    """Upper half of the blocks, first and last included."""
    aucs: tuple[Estimate, ...]
    """Contrast of each position over the band, first position first."""
    shares: tuple[float, ...]
    """Share of bootstrap draws that choose each position."""
    found: int | None
    """Position with the highest contrast among the template's tokens (all positions where the prompts share none);
    `None` where no candidate can be compared."""
    runner_up: int | None
    margin: Estimate
    """Contrast beyond the runner-up's."""
    halves_agree: float
    """Share of halvings whose halves choose the same position."""
    held_out_auc: Estimate
    """Contrast, on the other half, of the position that one half chose; interval over halvings."""
    best_question_position: int | None
    """Question token with the highest contrast; never recommended while the template has tokens at the end."""
    over_default: Estimate
    """Contrast of the found position beyond the default's."""
    default: int
    is_published: bool
    """True when the default is published for this template, False when it is merely the last token."""
    better_band: BetterBand | None

    @property
    def is_sure(self) -> bool:
        """True when all three checks hold."""
        return (
            self.found is not None
            and self.shares[self.found] >= SURE_SHARE
            and self.margin.low > 0
            and self.halves_agree >= SURE_HALVES
        )

    @property
    def recommended(self) -> int:
        """The found position when it is sure, or clearly better than an unpublished default; else the default."""
        if self.found is None:
            return self.default
        clearly_better = not self.is_published and self.over_default.low > 0
        return self.found if self.is_sure or clearly_better else self.default


def choose(
    sps: SpsMap, *, band: tuple[int, int], default: int, is_published: bool, draws: int = DRAWS, seed: int = 0
) -> Choice:
    """Return what a map says about the position.

    Args:
        sps: the map.
        band: blocks that the contrast is averaged over, first and last included.
        default: the position to keep when the scan is not sure.
        is_published: whether the default is known for this template.
        draws: bootstrap draws over questions.
        seed: seed of draws and halvings.
    """
    rng = np.random.default_rng(seed)
    n = sps.n_questions
    whole = np.ones((1, n))
    drawn = sps.auc_of_positions(band, rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64))
    auc = sps.auc_of_positions(band, whole)[0]
    changes = sps.distance[band[0] : band[1] + 1].mean(0) > STILL
    known = np.isfinite(auc) & changes
    candidates = known & sps.is_template if sps.is_template.any() else known
    places = np.flatnonzero(candidates)
    halves = _halves(n, rng)
    order = places[np.argsort(-auc[places], kind="stable")]
    found, second = ([*map(int, order), None, None])[:2]
    picked = _picks(drawn, candidates)
    shares = tuple(float((picked == place).mean()) for place in range(len(auc)))
    agree, held_out = _held_out(sps, band, candidates, halves)
    asked = np.flatnonzero(known & ~sps.is_template)
    at_default = len(auc) + default
    return Choice(
        band=band,
        aucs=tuple(Estimate.of(auc[i], drawn[:, i]) for i in range(len(auc))),
        shares=shares,
        found=_from_end(found, sps),
        runner_up=_from_end(second, sps),
        margin=_beyond(auc, drawn, found, second),
        halves_agree=agree,
        held_out_auc=held_out,
        best_question_position=_from_end(int(asked[np.argmax(auc[asked])]) if len(asked) else None, sps),
        over_default=_beyond(auc, drawn, found, at_default if at_default >= 0 else None),
        default=default,
        is_published=is_published,
        better_band=None if found is None else _better_band(sps, found, band, halves),
    )


def _from_end(place: int | None, sps: SpsMap) -> int | None:
    return None if place is None else place - len(sps.positions)


def _beyond(auc: Array, drawn: Array, place: int | None, other: int | None) -> Estimate:
    """Return how much higher one position's contrast is than another's; undefined without both."""
    if place is None or other is None:
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate.of(auc[place] - auc[other], drawn[:, place] - drawn[:, other])


def _picks(aucs: Array, candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the candidate with the highest contrast in each row, -1 where there is none."""
    usable = np.where(candidates & np.isfinite(aucs), aucs, -np.inf)
    return np.where(np.isfinite(usable).any(1), usable.argmax(1), -1)


def _halves(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return random halvings as weights, ``(halving, question)`` for either half."""
    first = np.zeros((SPLITS, n))
    for row in first:
        row[rng.permutation(n)[: n // 2]] = 1.0
    return first, 1.0 - first


def _held_out(
    sps: SpsMap, band: tuple[int, int], candidates: NDArray[np.bool_], halves: tuple[Array, Array]
) -> tuple[float, Estimate]:
    """Return how often both halves choose alike, and what one half's choice is worth on the other."""
    one, other = (sps.auc_of_positions(band, half) for half in halves)
    chosen, confirmed = _picks(one, candidates), _picks(other, candidates)
    worth = other[np.arange(len(other)), chosen]
    worth[chosen < 0] = np.nan
    defined = worth[np.isfinite(worth)]
    agree = float((chosen == confirmed)[chosen >= 0].mean()) if len(defined) else 0.0
    return agree, Estimate.of(float(defined.mean()) if len(defined) else float("nan"), worth)


def _better_band(sps: SpsMap, place: int, band: tuple[int, int], halves: tuple[Array, Array]) -> BetterBand:
    """Return the best band at a position; its gain is measured on questions that did not choose it."""
    bands = [
        (first, last)
        for first in range(sps.n_layers)
        for last in range(first + max(1, sps.n_layers // MIN_BAND) - 1, sps.n_layers)
    ]
    ends = np.array(bands).T

    def band_means(weights: Array) -> Array:
        summed = np.pad(np.cumsum(sps.auc_of_layers(place, weights), axis=1), ((0, 0), (1, 0)))
        return np.asarray((summed[:, ends[1] + 1] - summed[:, ends[0]]) / (ends[1] + 1 - ends[0]))

    whole = band_means(np.ones((1, sps.n_questions)))[0]
    one, other = map(band_means, halves)
    rows, usual = np.arange(len(one)), bands.index(band)
    gains = other[rows, np.nan_to_num(one, nan=-1.0).argmax(1)] - other[:, usual]
    best = int(np.nan_to_num(whole, nan=-1.0).argmax())
    defined = gains[np.isfinite(gains)]
    gain = float(defined.mean()) if len(defined) else float("nan")
    return BetterBand(band=bands[best], auc=float(whole[best]), held_out_gain=Estimate.of(gain, gains))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCheck:
    """How well SemGrad at each position tells right answers from wrong ones."""

    n: int
    n_wrong: int
    aurocs: dict[int, Interval]
    """AUROC by position; 0.5 is chance."""
    best: int
    """Position with the highest AUROC."""
    behind_best: dict[int, Interval]
    """AUROC of the best minus that of each position, on the same answers."""

    def contradicts(self, position: int) -> bool:
        """Tell whether another position is clearly better than this one."""
        behind = self.behind_best.get(position)
        return behind is not None and behind.low is not None and behind.low > 0


def check_labels(path: Path, *, seed: int = 0) -> LabelCheck:
    """Return the AUROC of each position on a file that `semgrad-guard score` wrote.

    Raises:
        DataFileError: a row has no label, or no row holds the signals.
        OneClassError: all answers are right, or all are wrong.
    """
    labels = collect(Labeller(path=path).label(read_rows(path)), seed=seed)
    n_right = int(labels.correct.sum())
    if n_right in {0, len(labels)}:
        raise OneClassError(bool(n_right), len(labels))
    found = {position: semgrad_at(position) for position in POSITIONS if semgrad_at(position) in labels.names}
    if not found:
        advice = "score the answers with `semgrad-guard score` of this version"
        raise DataFileError(path, None, f"holds no {semgrad_at(-1)} to {semgrad_at(-5)}", advice)
    signals = labels.select(tuple(found.values())).signals
    whole = np.isfinite(signals).all(1)
    if not whole.any():
        raise DataFileError(path, None, "no row holds a finite SemGrad at every position", "score the answers again")
    surest = dict(zip(found, -signals[whole].T, strict=True))
    correct, groups = labels.correct[whole], labels.groups[whole]
    aurocs = {at: with_interval(auroc, sure, correct, groups, seed=seed) for at, sure in surest.items()}
    best = max(aurocs, key=lambda at: aurocs[at].value or 0.0)
    behind = {
        at: paired_difference(auroc, surest[best], sure, correct, groups, seed=seed)
        for at, sure in surest.items()
        if at != best
    }
    return LabelCheck(
        n=len(correct), n_wrong=int(len(correct) - correct.sum()), aurocs=aurocs, best=best, behind_best=behind
    )
