"""What all commands show alike: examples below their help, progress bars and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
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
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console


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


def plain_table(*headings: str, title: str | None = None) -> Table:
    """Return a table that is drawn with so little that much fits into 80 columns; its title stands apart.

    Args:
        headings: of columns in which long words are folded, not cut; further columns can be added.
        title: what the table shows.
    """
    table = Table(
        title=f"\n{title}" if title else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
