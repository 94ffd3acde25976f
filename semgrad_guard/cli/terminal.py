"""Progress bars, and a console that is wide enough, for all commands."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bar(console: Console) -> Progress:
    """Return a progress bar with counts, time spent and time left; without a terminal it draws nothing."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def wide_console(columns: int) -> Console:
    """Return the usual console; for output to a file or pipe it is at least `columns` wide."""
    console = Console()
    return Console(width=columns) if console.width < columns and not console.is_terminal else console
