"""The search in words, as a table and as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from semgrad_guard.evaluation.position.choice import SURE_HALVES, SURE_SHARE
from semgrad_guard.extras import require
from semgrad_guard.scoring.layout import LAST_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from semgrad_guard.evaluation.position.choice import Choice, LabelCheck
    from semgrad_guard.evaluation.position.preservation import SpsMap
    from semgrad_guard.scoring.layout import KnownPosition


def save_sps_plot(path: Path, sps: SpsMap, choice: Choice, tokens: Sequence[str], *, title: str) -> None:
    """Write the plot; the file's ending says the format (.png, .svg, .pdf).

    Args:
        path: where to.
        sps: the map.
        choice: what it says about the position.
        tokens: the token at each position, for the axis.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpsReport:
    """A scan and everything to say about it."""

    model: str
    sps: SpsMap
    choice: Choice
    tokens: tuple[str, ...]
    """What stands at each position: the template's token, or `(question)`."""
    published: KnownPosition | None
    labels: LabelCheck | None = None

    def verdict(self) -> list[str]:
        """Return the findings, one sentence a line."""
        choice, sps = self.choice, self.sps
        lines = [f"{sps.n_questions} questions, {sps.n_layers} blocks, band {_span(choice.band)} (upper half)"]
        if sps.n_same_ending:
            lines.append(f"{sps.n_same_ending} paraphrase pairs left out: both end in the same word")
        lines.append(
            f"published for {self.published.family}: {self.published.position} ({self.published.source})"
            if self.published
            else "no position is published for this template"
        )
        lines += self._findings()
        why = "the scan is sure" if choice.is_sure else "better than the last token, although others come close"
        if choice.recommended != choice.found or not (choice.is_sure or not choice.is_published):
            why = "the published position is kept" if choice.is_published else "the last token is kept"
            why += ", the scan is not sure of another"
        return [*lines, *self._about_labels(), f"use position {choice.recommended}: {why}"]

    def _findings(self) -> list[str]:
        choice = self.choice
        if choice.found is None:
            why = "the states do not change with the question, or all paraphrases share their tokens"
            return [f"no position can be compared: {why}; vary the paraphrases' endings"]
        place = len(self.tokens) + choice.found
        found = f"found: {choice.found} `{self.tokens[place]}`, AUC {choice.aucs[place].text()}"
        share = f"chosen by {choice.shares[place]:.0%} of bootstrap draws (sure from {SURE_SHARE:.0%})"
        held_out = f"chosen on half of the questions it scores {choice.held_out_auc.text()} on the other half"
        agree = f"both halves choose alike in {choice.halves_agree:.0%} of halvings (sure from {SURE_HALVES:.0%})"
        lines = [f"{found}, {share}", f"{held_out}; {agree}"]
        if choice.runner_up is not None:
            lines.insert(1, f"runner-up: {choice.runner_up}, behind by {choice.margin.text()}")
        if choice.best_question_position is not None:
            at = len(self.tokens) + choice.best_question_position
            lines.append(
                f"best question token: {choice.best_question_position}, AUC {choice.aucs[at].text()}; "
                "not used, other questions have other words there"
            )
        if choice.found == LAST_TOKEN:
            lines.append(
                "the last token's state also predicts the answer's first token, which paraphrases share: "
                "confirm it with --labels"
            )
        return [*lines, self._about_band()]

    def _about_band(self) -> str:
        better = self.choice.better_band
        if better is None or not better.is_better:
            return "no other band of blocks is better than the upper half on unseen questions"
        return (
            f"blocks {_span(better.band)} carry the meaning better (AUC {better.auc:.3f}, on unseen questions by "
            f"{better.held_out_gain.text()}); the upper half is kept, for which the method was tried: "
            "change `band` only with labels that show a gain"
        )

    def _about_labels(self) -> list[str]:
        check = self.labels
        if check is None:
            return []
        recommended = self.choice.recommended
        line = f"labels: {check.n:,} answers, {check.n_wrong:,} wrong; best AUROC at {check.best}"
        if check.contradicts(recommended):
            behind = check.behind_best[recommended].text()
            return [f"{line}, {recommended} is behind by {behind}: prefer {check.best}"]
        if recommended not in check.aurocs:
            return [f"{line}, {recommended} is not among the scored positions"]
        return [f"{line}, not clearly better than {recommended}"]

    def table(self) -> Table:
        """Return one row a position, the prompt's last token first."""
        table = Table(title=f"Positions of {self.model}, mean over the band", title_justify="left", box=None)
        table.add_column("t", justify="right")
        table.add_column("token")
        headings = ["SPS", "distance", "AUC (95 %)", "draws"]
        for heading in [*headings, "AUROC of labels"] if self.labels else headings:
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("")
        first, last = self.choice.band
        for place in reversed(range(len(self.tokens))):
            at = self.sps.positions[place]
            raw, distance = (
                float(values[first : last + 1, place].mean()) for values in (self.sps.raw, self.sps.distance)
            )
            cells = [f"{raw:+.4f}", f"{distance:.4f}", self.choice.aucs[place].brief()]
            cells.append(f"{self.choice.shares[place]:.0%}" if self.choice.shares[place] else "")
            if self.labels:
                cells.append(self.labels.aurocs[at].brief() if at in self.labels.aurocs else "")
            table.add_row(str(at), self.tokens[place].replace("[", r"\["), *cells, ", ".join(self._marks(at)))
        table.caption = "SPS: cosine between paraphrases minus between questions; distance: how much the state changes"
        return table

    def _marks(self, at: int) -> list[str]:
        marks = {
            "published": self.published is not None and at == self.published.position,
            "found": at == self.choice.found,
            "use": at == self.choice.recommended,
        }
        return [mark for mark, is_so in marks.items() if is_so]

    def map_table(self) -> Table:
        """Return the whole map: AUC in percent, the top block first."""
        table = Table(title="AUC in percent, blocks by positions", title_justify="left", padding=(0, 1), box=None)
        table.add_column("block", justify="right")
        for at in self.sps.positions:
            table.add_column(str(at), justify="right")
        for layer in reversed(range(self.sps.n_layers)):
            row = self.sps.auc[layer]
            cells = ["·" if np.isnan(value) else f"[{_style(value)}]{100 * value:.0f}[/]" for value in row]
            table.add_row(str(layer), *cells)
        return table

    def to_json(self) -> dict[str, Any]:
        """Return all numbers; undefined ones are null."""
        sps, choice = self.sps, self.choice
        found = {
            "model": self.model,
            "positions": list(sps.positions),
            "tokens": list(self.tokens),
            "is_template": sps.is_template.tolist(),
            "n_questions": sps.n_questions,
            "n_same_ending": sps.n_same_ending,
            "map": {
                "sps": sps.raw.tolist(),
                "controlled": sps.difference.tolist(),
                "distance": sps.distance.tolist(),
                "auc": sps.auc.tolist(),
            },
            "choice": {**asdict(choice), "is_sure": choice.is_sure, "recommended": choice.recommended},
            "published": asdict(self.published) if self.published else None,
            "labels": self._labels_json(),
        }
        return {key: _without_nan(value) for key, value in found.items()}

    def _labels_json(self) -> dict[str, Any] | None:
        check = self.labels
        if check is None:
            return None
        aurocs = {str(at): interval.model_dump() for at, interval in check.aurocs.items()}
        return {"n": check.n, "n_wrong": check.n_wrong, "best": check.best, "auroc": aurocs}

    def policy_text(self, model: str, dtype: str) -> str:
        """Return a policy file that scores with the recommended position, for `calibrate --policy`."""
        first, last = self.choice.band
        return (
            f"# Position and band by `semgrad-guard profile find`: {self.verdict()[-1]}.\n"
            "version: 1\n"
            "scorer:\n"
            f"  model: {json.dumps(model)}\n"
            f"  dtype: {dtype}\n"
            f"  position: {self.choice.recommended}\n"
            f"  band: [{first}, {last}]\n"
            "  # profile: profile.json   # once `semgrad-guard calibrate` has made it\n"
            "accept: 0.70\n"
            "otherwise: abstain\n"
            "on_error: abstain\n"
        )


def _span(band: tuple[int, int]) -> str:
    return f"{band[0]} to {band[1]}"


def _style(value: float) -> str:
    if value >= 0.9:
        return "bold green"
    return "green" if value >= 0.75 else "yellow" if value >= 0.6 else "dim"


def _without_nan(value: Any) -> Any:
    """Return the value with null for what is no number: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value
