"""The reliability plot: the share of right answers at each confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_BINS = 10
Z = 1.96
"""Standard deviations of a 95 % interval."""


def bins_of(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], n_bins: int = N_BINS
) -> list[tuple[float, float, int]]:
    """Return mean confidence, share of right answers and number of answers for bins of about equal size, ascending."""
    edges = np.unique(np.quantile(confidence, np.arange(1, n_bins) / n_bins))
    place = np.searchsorted(edges, confidence, "right")
    return [
        (float(confidence[place == b].mean()), float(correct[place == b].mean()), int((place == b).sum()))
        for b in np.unique(place)
    ]


def wilson(share: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % interval of a share of n answers (Wilson 1927); inside [0, 1] also at shares of 0 and 1."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)  # rounding must not leave [0, 1]


def save_reliability_plot(
    path: Path, confidence: NDArray[np.float64], correct: NDArray[np.float64], *, title: str
) -> None:
    """Write the plot in the format of the file's extension (.png, .svg, .pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="evaluation").Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    found = bins_of(confidence, correct)
    mean, right, n = (np.array(column) for column in zip(*found, strict=True))
    low, high = wilson(right, n)
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="honest confidence")
    upper.errorbar(
        mean, right, yerr=[right - low, high - right], marker="o", capsize=3, label="labelled answers (95 % interval)"
    )
    upper.set(ylabel="share of right answers", xlim=(0, 1), ylim=(-0.02, 1.02), title=title)
    upper.legend(loc="upper left")
    lower.hist(confidence, bins=np.linspace(0, 1, 21), color="0.6")
    lower.set(xlabel="confidence", ylabel="answers")
    figure.savefig(path)
