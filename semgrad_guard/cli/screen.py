"""The console of commands that print wide tables."""

from __future__ import annotations

from rich.console import Console


def wide_console(columns: int) -> Console:
    """Return the usual console; into a file or pipe it prints at least so many columns, where nobody sees an edge."""
    console = Console()
    return Console(width=columns) if console.width < columns and not console.is_terminal else console
