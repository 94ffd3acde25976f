"""A profile in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from semgrad_guard.calibration import Interval, Profile

_MEANING = {
    "auroc": ("AUROC", "a right answer is surer than a wrong one; 0.5 is chance"),
    "auprc": ("AUPRC", "precision of finding wrong answers"),
    "prr": ("PRR", "share of the possible gain of rejecting the least sure; 0 is chance, 1 perfect"),
    "aurc": ("AURC", "mean error rate among the surest answers; lower is better"),
    "ece": ("ECE", "mean gap of confidence and share right; lower is better"),
    "brier": ("Brier", "mean squared gap; lower is better"),
    "log_loss": ("log-loss", "nats; lower is better"),
}
N_SIGNALS = 8
"""Single signals listed beside the profile's own figures."""


def describe(profile: Profile) -> str:
    """Return what a profile is, one fact a line."""
    if profile.label_free:
        basis = f"{profile.reference.n:,} scores, no labels: its values are percentiles, not probabilities"
    else:
        basis = f"{profile.n_labels:,} labelled answers, {profile.base_rate or 0:.0%} of them right"
    fit = profile.fingerprint
    lines = [
        f"profile {profile.name}: {profile.method}, {profile.curve.kind} curve, from {basis}",
        f"model {fit.model}, {fit.dtype}, template {fit.template}, {fit.settings}"
        + (", answers of another model (proxy)" if fit.proxy else ""),
        f"made {profile.created_at:%Y-%m-%d}"
        + (f", expires {profile.expires_at:%Y-%m-%d}" if profile.expires_at else ", no expiry date"),
        *profile.notes,
    ]
    return "\n".join(lines)


def evidence_table(profile: Profile) -> Table:
    """Return the table of out-of-sample figures, and of the best single signals beside them."""
    table = Table(title="What it is worth, out-of-sample", title_justify="left")
    table.add_column("figure")
    table.add_column("value (95 % interval)", justify="right")
    table.add_column("meaning")
    if profile.evidence is None:
        table.add_row("none", "", "no labels")
        return table
    for field, (title, meaning) in _MEANING.items():
        found: Interval = getattr(profile.evidence, field)
        table.add_row(title, found.text(), meaning)
    singles = sorted(profile.evidence.signals.items(), key=lambda item: -(item[1].value or 0.0))
    for i, (signal, found) in enumerate(singles[:N_SIGNALS]):
        if i == 0:
            table.add_section()
        table.add_row(signal, found.text(), "AUROC of this signal alone")
    return table
