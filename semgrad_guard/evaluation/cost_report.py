"""The cost of scoring as numbers: for a table, and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rich.table import Table

if TYPE_CHECKING:
    from semgrad_guard.flow import Json

Way = Literal["generation", "forward", "plain", "cold", "single pass", "five samples"]
"""Writing the answer; one forward pass of the whole text; scoring by the plain definition, with a prefill of its own,
and behind the writing; writing five more answers, as sampling methods do."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """One measurement."""

    context: int
    """Prompt tokens."""
    answer: int
    """Answer tokens."""
    way: Way
    seconds: float
    """Best of several runs."""
    share_of_generation: float
    """Seconds divided by those of writing the answer."""
    extra_mb: float | None
    """Peak memory beyond that before, in MiB."""


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Short exchanges scored one by one and together."""

    n: int
    one_by_one_s: float
    together_s: float

    @property
    def speedup(self) -> float:
        """How many times the throughput of one by one."""
        return self.one_by_one_s / self.together_s


@dataclass(frozen=True, slots=True)
class CostReport:
    """All measurements of one run."""

    model: str
    dtype: str
    threads: int
    torch: str
    rows: tuple[CostRow, ...]
    batch: BatchCost

    def seconds(self, context: int, answer: int, way: Way) -> float:
        """Return one measured time."""
        return next(r.seconds for r in self.rows if (r.context, r.answer, r.way) == (context, answer, way))

    def to_json(self) -> dict[str, Json]:
        """Return the report as JSON values."""
        report: dict[str, Json] = asdict(self)
        report["batch"] = {**asdict(self.batch), "speedup": self.batch.speedup}
        return report

    def table(self) -> Table:
        """Return the report as a table: a row for each length, a column for each way."""
        title = f"Cost of scoring: {self.model}, {self.dtype}, {self.threads} threads"
        table = Table(title=title, caption="milliseconds (share of generation) peak extra MiB")
        for heading in (
            "context + answer",
            "generation",
            "plain",
            "cold",
            "single pass",
            "five samples",
            "cold / forward",
        ):
            table.add_column(heading, justify="right")
        for context, answer in dict.fromkeys((row.context, row.answer) for row in self.rows):
            cells = {row.way: row for row in self.rows if (row.context, row.answer) == (context, answer)}
            shown = [_cell(cells[way]) for way in ("plain", "cold", "single pass", "five samples")]
            forwards = cells["cold"].seconds / cells["forward"].seconds
            written = f"{cells['generation'].seconds * 1000:,.0f}"
            table.add_row(f"{context} + {answer}", written, *shown, f"{forwards:.2f}")
        return table


def _cell(row: CostRow) -> str:
    memory = "" if row.extra_mb is None else f" {row.extra_mb:,.0f}"
    return f"{row.seconds * 1000:,.0f} ({row.share_of_generation:.0%}){memory}"
