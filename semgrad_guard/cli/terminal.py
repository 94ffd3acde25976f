"""What commands show on a terminal: progress bars and a console that is wide enough."""

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
    """Return a progress bar with counts, time spent and time left; it draws nothing where there is no terminal."""
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
    """Return the usual console; into a file or pipe it prints at least so many columns."""
    console = Console()
    return Console(width=columns) if console.width < columns and not console.is_terminal else console
