"""`semgrad-guard signals`: every raw signal, what it means and what it costs."""

from __future__ import annotations

from rich.table import Table

from semgrad_guard.cli.terminal import wide_console

EXAMPLES = """[bold]Examples[/bold]

  semgrad-guard signals

Any of them may be the `method` of a policy, if it is a score; `fused` weighs all that a profile was fitted on.
"""
COSTS = {
    "free": "comes with the one backward pass",
    "text": "counts words: about a millisecond",
    "embedding": "sentence embeddings, where `scorer.embedding` or a chain's own are given; passages are remembered",
    "forward": "another forward pass: only with `scorer.signals`",
}
"""What each kind of cost means."""
MIN_WIDTH = 120


def signals() -> None:
    """List every raw signal: meaning, unit, direction and cost."""
    from semgrad_guard.scoring.signals import SIGNALS  # noqa: PLC0415 - beside its use

    console = wide_console(MIN_WIDTH)
    table = Table(show_lines=True)
    for column in ("signal", "meaning", "unit", "higher is", "cost"):
        table.add_column(column)
    for signal in SIGNALS.values():
        table.add_row(signal.name, signal.meaning, signal.unit, signal.higher, signal.cost)
    console.print(table)
    for cost, meaning in COSTS.items():
        console.print(f"{cost}: {meaning}", markup=False, highlight=False, soft_wrap=True)
