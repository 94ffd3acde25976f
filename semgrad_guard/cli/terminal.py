"""What all commands show alike: examples below their help, progress bars, and a console that is wide enough."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def examples(*commands: str, more: str = "") -> str:
    """Return the text below the help of a command: commands to paste, and what else there is to know.

    Args:
        commands: command lines, short enough for one line of 80 columns; a wrapped one is no longer one command.
        more: paragraphs; the terminal chooses where their lines end.
    """
    listed = [f"  {escape(command)}" for command in commands]
    paragraphs = [escape(" ".join(paragraph.split())) for paragraph in more.split("\n\n")]
    return "\n\n".join(["[bold]Examples[/bold]", *listed, *filter(None, paragraphs)])


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
