"""Labelled scores: the data that a profile is fitted on, read from a stream into arrays of bounded size."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.fitting_scores import differences
from semgrad_guard.errors import (
    CalibrationError,
    ImpossibleSignalError,
    MixedScoresError,
    OneClassError,
    TooFewLabelsError,
)
from semgrad_guard.signals import is_possible, signal_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Fingerprint, Score

N_FOLDS = 5
MIN_LABELS = 20
MIN_PER_CLASS = 4
"""Groups needed with a right and with a wrong answer: two nested splits must leave both in every training part."""


def check_enough(correct: NDArray[np.float64], groups: NDArray[np.int64]) -> None:
    """Check that there are enough labels to fit and to test.

    Raises:
        OneClassError: there are only right or only wrong answers.
        TooFewLabelsError: there are fewer than 20 rows, or too few of one kind.
    """
    n, right = len(correct), int(correct.sum())
    if n and right in {0, n}:
        raise OneClassError(bool(right), n)
    if n < MIN_LABELS:
        raise TooFewLabelsError(n, MIN_LABELS)
    for label, kind in ((1, "right"), (0, "wrong")):
        have = len(np.unique(groups[correct == label]))
        if have < MIN_PER_CLASS:
            raise TooFewLabelsError(have, MIN_PER_CLASS, f"questions with a {kind} answer")


def grouped_folds(
    correct: NDArray[np.float64], groups: NDArray[np.int64], *, seed: int, n_folds: int = N_FOLDS
) -> list[NDArray[np.bool_]]:
    """Return the test rows of each fold; every row is tested once, and no group is split between folds.

    Groups are dealt out in the order of their number of answers of the rarer kind, ties at random. scikit-learn's
    StratifiedGroupKFold does the same by a search that takes seconds for thousands of groups.
    """
    _, index = np.unique(groups, return_inverse=True)
    right = np.bincount(index, weights=correct)
    wrong = np.bincount(index, weights=1 - correct)
    n_folds = max(2, min(n_folds, int((right > 0).sum()), int((wrong > 0).sum())))
    common, rare = (right, wrong) if (right > 0).sum() > (wrong > 0).sum() else (wrong, right)
    shuffle = np.random.default_rng(seed).random(len(right))
    fold_of_group = np.empty(len(right), dtype=np.int64)
    fold_of_group[np.lexsort((shuffle, common, rare))] = np.arange(len(right)) % n_folds
    return [fold_of_group[index] == fold for fold in range(n_folds)]


MIN_SOURCES = 3
"""From so many data sets on, a fit is chosen by what carries over from the others to each."""
MAX_ROWS = 10_000
"""Most rows kept for fitting, a uniform sample of more: enough for twenty coefficients, and memory stays bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledScore:
    """The raw signals of one answer and whether the answer was correct."""

    signals: Mapping[str, float]
    correct: bool
    fingerprint: Fingerprint | None = None
    """What the signals depend on; `None` only where the caller of `fit_profile` gives it for all rows."""
    group: str | None = None
    """Question or page that the answer belongs to; folds and bootstraps never split a group. `None`: a separate one."""
    tags: frozenset[str] = frozenset()
    source: str | None = None
    """Data set that the answer belongs to; where there are several, evidence is given for each left out in turn."""
    author: str | None = None
    """Model that wrote the answer, where known."""
    adversarial: str | None = None
    """Kind of an answer that was made to look right; such answers teach the fit, and are no evidence for it."""
    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict[str, "Sequence[float]"])
    """What probes read, by the probe's signal; see `Score.vectors`."""

    @classmethod
    def of(
        cls, score: Score, *, correct: bool, group: str | None = None, tags: frozenset[str] = frozenset()
    ) -> LabelledScore:
        """Return a labelled score from a scorer's score."""
        return cls(
            signals={score.method: score.value, **score.signals},
            correct=correct,
            fingerprint=score.fingerprint,
            group=group,
            tags=tags,
            vectors=score.vectors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labelled scores as arrays; row i of each belongs to the same answer."""

    names: tuple[str, ...]
    """Signal names, the columns of `signals`."""
    signals: NDArray[np.float64]
    """Raw signals, ``(row, signal)``; NaN where a row lacks one."""
    correct: NDArray[np.float64]
    """1 where the answer was correct, else 0."""
    groups: NDArray[np.int64]
    """Index of the group, from 0."""
    tags: tuple[frozenset[str], ...]
    fingerprint: Fingerprint
    n_seen: int
    """Rows read, including those that the sample left out."""
    sources: tuple[str | None, ...] = ()
    """Data set of each answer; empty where none has one."""
    authors: tuple[str | None, ...] = ()
    """Author of each answer; empty where none is known."""
    kinds: tuple[str | None, ...] = ()
    """Kind of each adversarial answer, `None` for an honest one; empty where all are honest."""
    adversarial_share: float = 1.0
    """Weight of all adversarial answers together, as a share of the honest ones'."""
    vectors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, "NDArray[np.float64]"])
    """What probes read, by the probe's signal, ``(row, number)``; rows of NaN where an answer has none."""

    @property
    def honest(self) -> NDArray[np.bool_]:
        """True for each answer that was given, not made to look right."""
        return np.array([kind is None for kind in self.kinds] or [True] * len(self), dtype=bool)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each answer in a fit: 1, and together `adversarial_share` of the honest for adversarial ones.

        Several data sets weigh the same.
        """
        honest, strata = self.honest, self.strata
        n = np.bincount(strata[honest], minlength=int(strata.max(initial=0)) + 1)[strata]
        n_honest, n_made = int(honest.sum()), max(1, int((~honest).sum()))
        weight: NDArray[np.float64] = n_honest / np.maximum(1, n) / len(np.unique(strata))
        return np.where(honest, weight, min(1.0, self.adversarial_share * n_honest / n_made))

    @property
    def strata(self) -> NDArray[np.int64]:
        """Index of the data set of each answer; all 0 where there are too few to leave one out."""
        if not self.has_sources:
            return np.zeros(len(self), dtype=np.int64)
        return np.unique([source or "" for source in self.sources], return_inverse=True)[1].astype(np.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.correct)

    @property
    def has_sources(self) -> bool:
        """True where the rows name enough data sets to leave each out in turn."""
        return len(set(self.sources) - {None}) >= MIN_SOURCES

    def folds(self, seed: int) -> list[NDArray[np.bool_]]:
        """Return the test rows of each fold in which a fit is chosen: the data sets, or groups of questions."""
        if not self.has_sources:
            return grouped_folds(self.correct, self.groups, seed=seed)
        return [self.strata == stratum for stratum in np.unique(self.strata)]

    def take(self, rows: NDArray[np.bool_]) -> Labels:
        """Return some of the rows."""
        index = np.arange(len(self))[rows]
        return Labels(
            names=self.names,
            signals=self.signals[index],
            correct=self.correct[index],
            groups=self.groups[index],
            tags=tuple(self.tags[i] for i in index),
            fingerprint=self.fingerprint,
            n_seen=self.n_seen,
            sources=tuple(self.sources[i] for i in index) if self.sources else (),
            authors=tuple(self.authors[i] for i in index) if self.authors else (),
            kinds=tuple(self.kinds[i] for i in index) if self.kinds else (),
            adversarial_share=self.adversarial_share,
            vectors={name: values[index] for name, values in self.vectors.items()},
        )

    def select(self, names: Sequence[str]) -> Labels:
        """Return the same rows with some of the signals."""
        columns = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), signals=self.signals[:, columns])


def collect(
    rows: Iterable[LabelledScore], *, fingerprint: Fingerprint | None = None, max_rows: int = MAX_ROWS, seed: int = 0
) -> Labels:
    """Return labelled scores as arrays, reading the rows once and keeping at most `max_rows` of them.

    Args:
        rows: labelled scores, any number.
        fingerprint: what all the signals depend on, for rows without a fingerprint.
        max_rows: size of the uniform sample that is kept of a longer stream.
        seed: seed of that sample.

    Raises:
        MixedScoresError: the rows have different fingerprints.
        ImpossibleSignalError: a signal has a value that it cannot have.
        TooFewLabelsError: there are no rows.
        CalibrationError: the rows have no fingerprint, and none was given.
    """
    kept, n_seen, fingerprint = _sample(rows, fingerprint, max_rows, seed)
    if not kept:
        raise TooFewLabelsError(0, MIN_LABELS)
    if fingerprint is None:
        msg = (
            f"none of the {n_seen} rows says which model and settings its signals come from: "
            "score the answers with `semgrad-guard score`, or pass `fingerprint`"
        )
        raise CalibrationError(msg)
    names = tuple(sorted({name for row in kept for name in row.signals}))
    signals = np.full((len(kept), len(names)), np.nan)
    for i, row in enumerate(kept):
        signals[i] = [row.signals.get(name, np.nan) for name in names]
    signals[~np.isfinite(signals)] = np.nan
    keys = [f"group:{row.group}" if row.group is not None else f"row:{i}" for i, row in enumerate(kept)]
    order: dict[str, int] = {}
    return Labels(
        names=names,
        signals=signals,
        correct=np.array([float(row.correct) for row in kept]),
        groups=np.array([order.setdefault(key, len(order)) for key in keys], dtype=np.int64),
        tags=tuple(row.tags for row in kept),
        fingerprint=fingerprint,
        n_seen=n_seen,
        sources=tuple(row.source for row in kept) if any(row.source for row in kept) else (),
        authors=tuple(row.author for row in kept) if any(row.author for row in kept) else (),
        kinds=tuple(row.adversarial for row in kept) if any(row.adversarial for row in kept) else (),
        vectors={name: _stacked(kept, name) for name in sorted({name for row in kept for name in row.vectors})},
    )


def _stacked(rows: Sequence[LabelledScore], name: str) -> NDArray[np.float64]:
    """Return a vector of each row, NaN where a row has none or one with a number that is not finite.

    Raises:
        MixedScoresError: they are not equally long, so they come from different models.
    """
    width = next(len(row.vectors[name]) for row in rows if name in row.vectors)
    found = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        vector = row.vectors.get(name)
        if vector is None:
            continue
        if len(vector) != width:
            raise MixedScoresError(i + 1, (f"{name} reads {len(vector)} numbers instead of {width}",))
        found[i] = vector
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def _check_signals(row: int, signals: Mapping[str, float]) -> None:
    for name, value in signals.items():
        known = signal_of(name)
        if known is not None and not is_possible(name, value):
            raise ImpossibleSignalError(row, name, value, known.limits)


def _sample(
    rows: Iterable[LabelledScore], fingerprint: Fingerprint | None, max_rows: int, seed: int
) -> tuple[list[LabelledScore], int, Fingerprint | None]:
    """Return a uniform sample of a stream, its length, and the one fingerprint of its rows.

    The same label of the same answer to one question counts once, however often it was given.
    """
    rng = random.Random(seed)  # noqa: S311 - sampling, not secrecy
    kept: list[LabelledScore] = []
    n_seen = 0
    seen = set[int]()
    for number, row in enumerate(rows, 1):
        _check_signals(number, row.signals)
        if row.fingerprint is not None and row.fingerprint != fingerprint:
            if fingerprint is not None and (found := differences(fingerprint, row.fingerprint)):
                raise MixedScoresError(number, found)
            fingerprint = fingerprint or row.fingerprint
        label = hash((row.group, row.correct, row.source, row.adversarial, *sorted(row.signals.items())))
        if row.group is not None and label in seen:
            continue
        seen.add(label)
        n_seen += 1
        if len(kept) < max_rows:
            kept.append(row)
        elif (place := rng.randrange(n_seen)) < max_rows:
            kept[place] = row
    return kept, n_seen, fingerprint
