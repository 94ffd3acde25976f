"""The SPS map as a picture: blocks by positions, as published and with the controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from semgrad_guard.evaluation.position.choice import Choice
    from semgrad_guard.evaluation.position.preservation import SpsMap


def save_sps_plot(path: Path, sps: SpsMap, choice: Choice, tokens: Sequence[str], *, title: str) -> None:
    """Write the plot; the file's ending says the format (.png, .svg, .pdf).

    Args:
        path: where to.
        sps: the map.
        choice: what it says about the position.
        tokens: what stands at each position, for the axis.
        title: heading.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="evaluation").Figure(figsize=(11, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    # an AUC has a middle, so colours part there; the raw difference is shown on its own scale
    for axes, values, heading, colours in (
        (left, sps.raw, "as published: cosine difference", {"cmap": "viridis"}),
        (right, sps.auc, "controlled contrast: AUC (0.5 is chance)", {"cmap": "RdBu", "vmin": 0.0, "vmax": 1.0}),
    ):
        image = axes.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **colours)
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set(title=heading, xlabel="position from the prompt's end")
        axes.set_xticks(range(len(tokens)))
        axes.set_xticklabels(
            [f"{at}  {token}" for at, token in zip(sps.positions, tokens, strict=True)], rotation=90, fontsize=8
        )
        axes.axhline(choice.band[0] - 0.5, color="black", linewidth=1, linestyle="--")
        _mark(axes, sps, choice)
    left.set_ylabel("decoder block (band above the dashed line)")
    figure.savefig(path)


def _mark(axes: object, sps: SpsMap, choice: Choice) -> None:
    """Frame the recommended position, and draw where the question ends."""
    rectangle = require("matplotlib.patches", extra="evaluation").Rectangle
    place = len(sps.positions) + choice.recommended
    if place >= 0:
        height = choice.band[1] - choice.band[0] + 1
        corner = (place - 0.5, choice.band[0] - 0.5)
        axes.add_patch(rectangle(corner, 1, height, fill=False, edgecolor="black", linewidth=2))  # type: ignore[attr-defined]
    edges = np.flatnonzero(np.diff(sps.is_template.astype(int)) > 0)
    if len(edges):
        axes.axvline(edges[-1] + 0.5, color="black", linewidth=1, linestyle=":")  # type: ignore[attr-defined]
