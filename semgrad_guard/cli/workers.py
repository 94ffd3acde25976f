"""The options by which commands work on rows in several processes, and the model that works here or there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semgrad_guard.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from semgrad_guard.evaluation.on_ray import RowWork, Workers
    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Fingerprint

RayOption = Annotated[bool, typer.Option("--ray", help="Use several processes, on this machine or a Ray cluster.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="With --ray: how many processes.")]
GpusOption = Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each; 0.5 puts two on one GPU.")]


def workers_of(*, ray: bool, workers: int, gpus: float) -> Workers | None:
    """Return the processes that work on rows; `None` for this process alone.

    Raises:
        OptionError: processes are asked for without Ray.
    """
    from semgrad_guard.evaluation.on_ray import Workers

    found = Workers(number=workers, gpus=gpus)
    if not ray and found != Workers():
        raise OptionError("--workers, --gpus", (workers, gpus), "another number only with --ray")
    return found if ray else None


@dataclass(frozen=True, slots=True)
class Working:
    """A model that turns rows into output lines, in this process or in others."""

    name: str
    fingerprint: Fingerprint
    lines: Callable[[Iterable[Sequence[Row]]], Iterator[dict[str, Any]]]
    """Batches of rows -> one object for each row, in order."""

    def one_by_one(self, rows: Iterator[Row]) -> Iterator[dict[str, Any]]:
        """Return the lines of rows that are worked on singly, so that a kill loses one row of each process."""
        return self.lines([row] for row in rows)


def working(make: Callable[[], RowWork], workers: Workers | None, data: Path) -> Working:
    """Load the model here, or prepare to use it in other processes.

    Args:
        make: makes the work where it is done.
        workers: the processes; `None` for this one.
        data: the file of the rows, for messages.
    """
    from semgrad_guard.evaluation.on_ray import about, on_ray

    if workers is not None:
        known = about(make, workers)
        return Working(known.name, known.fingerprint, lambda batches: on_ray(batches, make, workers, data))
    work = make()
    return Working(
        work.name, work.fingerprint, lambda batches: (line for batch in batches for line in work.lines(batch))
    )
