"""Rows of a file worked on by many processes, on Ray Data: the lines that one process writes, in the same order."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from semgrad_guard.errors import OptionError
from semgrad_guard.evaluation.rows import row_of
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Fingerprint

MOST_BLOCKS = 1_000
"""Parts in which the rows travel; a part that is done is written while the others are worked on."""


class RowWork(Protocol):
    """Has a model, and turns rows into the lines of the output file."""

    @property
    def name(self) -> str:
        """Readable name of the model."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """What the scores depend on apart from the rows."""
        ...

    def lines(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return one object for each row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a model that other processes hold."""

    name: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How many processes work, and what each of them gets.

    Raises:
        OptionError: there is none.
    """

    number: int = 1
    gpus: float = 0.0
    """0.5 puts two processes on one GPU."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        if self.number < 1 or self.gpus < 0:
            raise OptionError("workers", (self.number, self.gpus), "at least 1 process and 0 GPUs")

    @property
    def share(self) -> dict[str, float]:
        """What Ray sets aside for each process."""
        return {"num_cpus": 1, "num_gpus": self.gpus}


def about(make: Callable[[], RowWork], workers: Workers) -> About:
    """Return what is known of the model, which a process of Ray loads for it.

    Args:
        make: makes the work where it is done; it has to be picklable.
        workers: what a process gets.
    """
    ray = _started()

    def ask() -> About:
        work = make()
        return About(work.name, work.fingerprint)

    found: About = ray.get(ray.remote(ask).options(**workers.share).remote())
    return found


def on_ray(
    batches: Iterable[Sequence[Row]], make: Callable[[], RowWork], workers: Workers, path: Path
) -> Iterator[dict[str, Any]]:
    """Yield one object for each row, in order, while the rest is worked on.

    A batch of a process that dies is worked on by another one. The rows wait in Ray's object store, which moves to disk
    what does not fit.

    Args:
        batches: the rows that are worked on together.
        make: makes the work where it is done; it has to be picklable.
        workers: how many processes work.
        path: the file of the rows, for messages.
    """
    ray = _started()
    items = [{"rows": json.dumps([[row.line, dict(row.fields)] for row in batch])} for batch in batches]
    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
    done = rows.map(
        _Worker,
        fn_constructor_args=(make, str(path)),
        compute=ray.data.ActorPoolStrategy(size=workers.number),
        **workers.share,
    )
    for found in done.iter_rows():
        yield from json.loads(found["lines"])


class _Worker:
    """One process that works; it loads its model once."""

    def __init__(self, make: Callable[[], RowWork], path: str) -> None:
        self._work, self._path = make(), Path(path)

    def __call__(self, item: dict[str, str]) -> dict[str, str]:
        rows = [row_of(fields, self._path, line) for line, fields in json.loads(item["rows"])]
        return {"lines": json.dumps(self._work.lines(rows))}


def _started() -> Any:
    """Return Ray, connected: to the cluster of `RAY_ADDRESS`, the one that runs on this machine, or a new one."""
    ray: Any = require("ray", extra="ray")
    require("ray.data", extra="ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="warning", log_to_driver=False)
    return ray
