"""`semgrad-guard watch`: a guard's decisions as they come, from its file of records."""

from __future__ import annotations

import time
from collections import Counter, deque
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.telemetry.jsonl import RecordReader
from semgrad_guard.wire import answered_attempt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from semgrad_guard.flow import Record

EXAMPLES = examples(
    "semgrad-guard watch guard.jsonl",
    "semgrad-guard watch guard.jsonl --once --last 50",
    more="""
The file is the one that a policy names: `telemetry: {jsonl: guard.jsonl}`. Ctrl-C ends watching.
    """,
)
MAX_QUESTION = 60
"""Columns of the question; it gets at most two lines."""
PAUSE_S = 0.5
"""How often the file is looked at."""
_STYLES = {"answered": "green", "reviewed": "green", "warned": "yellow", "pending": "cyan", "abstained": "magenta"}


def watch(
    file: Annotated[Path, typer.Argument(help="A guard's records.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print what is there, and end.")] = False,
    last: Annotated[int, typer.Option(min=1, help="How many questions are shown.")] = 20,
) -> None:
    """Show a guard's decisions as they come: confidence, what was done, by which rule."""
    board, reader, console = Board(last), RecordReader(file), Console()
    board.add(reader.new())
    if once:
        console.print(board.shown())
        return
    with Live(board.shown(), console=console, auto_refresh=False) as live:
        while True:
            board.add(reader.new())
            live.update(board.shown(), refresh=True)
            time.sleep(PAUSE_S)


class Board:
    """The last records, and figures about all of them."""

    def __init__(self, last: int) -> None:
        """Choose how many records are shown."""
        self._last: deque[Record] = deque(maxlen=last)
        self._by_status: Counter[str] = Counter()
        self._confidences: deque[float] = deque(maxlen=1000)

    def add(self, records: Iterable[Record]) -> None:
        """Add records, oldest first."""
        for record in records:
            self._last.append(record)
            self._by_status[str(record.status)] += 1
            value = _confidence(record)
            if value is not None:
                self._confidences.append(value)

    def shown(self) -> Group:
        """Return the figures and the table of the last records, newest first."""
        table = plain_table()
        table.add_column("time", no_wrap=True)
        table.add_column("conf.", justify="right", no_wrap=True)
        table.add_column("status", min_width=9, no_wrap=True)
        table.add_column("tries", justify="right", no_wrap=True)
        table.add_column("rule", overflow="fold", min_width=14)
        table.add_column("question", overflow="fold", max_width=MAX_QUESTION)
        for record in reversed(self._last):
            table.add_row(*_row(record))
        return Group(self._figures(), table)

    def _figures(self) -> Text:
        total = sum(self._by_status.values())
        parts = [f"{total:,} question{'' if total == 1 else 's'}"]
        parts += [f"{n:,} {status}" for status, n in self._by_status.most_common()]
        if self._confidences:
            parts.append(f"median confidence {median(self._confidences):.2f}")
        return Text(", ".join(parts))


def _row(record: Record) -> tuple[str | Text, ...]:
    status, value = str(record.status), _confidence(record)
    last = record.attempts[-1].decision if record.attempts else None
    question = next((a.exchange.question for a in record.attempts if a.exchange.question), None)
    shown = shorten(question, 2 * MAX_QUESTION, placeholder=" ...") if question else "(texts are not logged)"
    return (
        record.at.astimezone().strftime("%H:%M:%S"),
        "-" if value is None else f"{value:.2f}",
        Text(status, style=_STYLES.get(status, "")),
        str(len(record.attempts)),
        Text(last.rule if last else "-"),
        Text(shown, style="" if question else "dim"),
    )


def _confidence(record: Record) -> float | None:
    answer = answered_attempt(record)
    return answer.decision.confidence.value if answer else None
