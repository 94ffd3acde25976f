"""Cross-validation folds that keep a group together and spread the labels evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.errors import OneClassError, TooFewLabelsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_FOLDS = 5
MIN_LABELS = 20
MIN_PER_CLASS = 4
"""Groups needed with a right and with a wrong answer: two nested splits must leave both in every training part."""


def check_enough(correct: NDArray[np.float64], groups: NDArray[np.int64]) -> None:
    """Check that there are labels enough to fit and to test.

    Raises:
        OneClassError: only right or only wrong answers.
        TooFewLabelsError: fewer than 20 rows, or too few of one kind.
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
    """Return for each fold which rows it tests; every row is tested once, and a group never in two folds.

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
