"""The report on the cost of scoring, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rich.table import Table

if TYPE_CHECKING:
    from semgrad_guard.flow import Json

Way = Literal[
    "generation", "answer forward", "forward", "plain", "cold", "single pass", "SemGrad alone", "five samples"
]
"""Writing the answer; one forward pass of the answer behind the prompt's cache; one of the whole text; scoring by the
plain definition, with a prefill of its own, and from the KV cache of the answer with every free signal or SemGrad
only; writing five more answers, as sampling methods do.
"""

_SCORING: tuple[Way, Way, Way, Way] = ("single pass", "SemGrad alone", "cold", "plain")
_SINGLE = {"512 + 32": 0.10, "512 + 128": 0.05}
_SPEEDUP = {"512 + 32": 5.0}
_COLD = {"2048 + 32": 1.2}
_YES_OR_NO = {True: "yes", False: "no", None: ""}
_FLAT_MB = 32.0
"""Growth that still counts as flat: one block's attention reads the keys and values of the whole context at a time."""


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
class Target:
    """One number that the cost of scoring is judged by; without `most` and `least` it is a bound for another one."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool | None:
        """True when the number meets the target; `None` when there is no target."""
        if self.most is None and self.least is None:
            return None
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def limit(self) -> str:
        """The target in words."""
        at_most = "" if self.most is None else f"at most {self.most:g}"
        return at_most if self.least is None else f"at least {self.least:g}"


@dataclass(frozen=True, slots=True)
class CostReport:
    """All measurements of one run."""

    model: str
    dtype: str
    threads: int
    torch: str
    rows: tuple[CostRow, ...]
    batch: BatchCost

    def targets(self) -> list[Target]:
        """Return the targets whose lengths were measured, and the bounds that nothing exact can beat."""
        found = [Target("batch of short exchanges, times the throughput of one by one", self.batch.speedup, least=2.0)]
        for lengths, by_way in self._by_lengths().items():
            found += _targets(lengths, by_way)
        flat = self._growth_of_memory()
        if flat is not None:
            found.append(
                Target("single pass, extra MiB at the longest context less at the shortest", flat, most=_FLAT_MB)
            )
        return found

    def _by_lengths(self) -> dict[str, dict[Way, CostRow]]:
        """Return the measurements by length of prompt and answer, in the order in which they were taken."""
        found: dict[str, dict[Way, CostRow]] = {}
        for row in self.rows:
            found.setdefault(f"{row.context} + {row.answer}", {})[row.way] = row
        return found

    def _growth_of_memory(self) -> float | None:
        """Return how much more memory the single pass takes at the longest context than at the shortest, in MiB."""
        answer = min(row.answer for row in self.rows)
        own = [row for row in self.rows if row.way == "single pass" and row.answer == answer]
        shortest, longest = min(own, key=lambda row: row.context), max(own, key=lambda row: row.context)
        if shortest is longest or shortest.extra_mb is None or longest.extra_mb is None:
            return None
        return longest.extra_mb - shortest.extra_mb

    def to_json(self) -> dict[str, Json]:
        """Return the report as JSON values."""
        report: dict[str, Json] = asdict(self)
        report["batch"] = {**asdict(self.batch), "speedup": self.batch.speedup}
        report["targets"] = [{**asdict(target), "met": target.met} for target in self.targets()]
        return report

    def table(self) -> Table:
        """Return the report as a table: a row for each length, a column for each way."""
        title = f"Cost of scoring: {self.model}, {self.dtype}, {self.threads} threads"
        table = Table(title=title, caption="milliseconds (share of generation) peak extra MiB")
        ways: tuple[Way, ...] = (
            "answer forward",
            "SemGrad alone",
            "single pass",
            "forward",
            "cold",
            "plain",
            "five samples",
        )
        for heading in ("context + answer", "generation", *ways):
            table.add_column(heading, justify="right")
        for lengths, by_way in self._by_lengths().items():
            shown = [_cell(by_way[way]) if way in by_way else "" for way in ways]
            table.add_row(lengths, f"{by_way['generation'].seconds * 1000:,.0f}", *shown)
        return table

    def targets_table(self) -> Table:
        """Return targets, results and bounds as a table."""
        table = Table(title="Targets")
        for heading in ("what", "measured", "target", "met"):
            table.add_column(heading, justify="left" if heading == "what" else "right")
        for target in self.targets():
            table.add_row(target.what, f"{target.value:.3g}", target.limit, _YES_OR_NO[target.met])
        return table


def _targets(lengths: str, by_way: dict[Way, CostRow]) -> list[Target]:
    """Return the targets for one length of prompt and answer, each followed by its bound."""
    single, alone, cold, plain = (by_way[way] for way in _SCORING)
    forward = by_way["forward"].seconds
    found = [
        Target(f"{lengths}: {way}, share of generation", row.share_of_generation, most=_SINGLE.get(lengths))
        for way, row in (("single pass", single), ("single pass for SemGrad alone", alone))
    ]
    if "answer forward" in by_way:
        share = by_way["answer forward"].share_of_generation
        found.append(Target(f"{lengths}: limit: one forward of the answer's tokens, share of generation", share))
    speedup, bound = plain.seconds / cold.seconds, plain.seconds / forward
    forwards = cold.seconds / forward
    found += [
        Target(f"{lengths}: plain definition / cold path", speedup, least=_SPEEDUP.get(lengths)),
        Target(f"{lengths}: limit: plain definition / one forward of the whole text", bound),
        Target(f"{lengths}: cold path, forward passes of the whole text", forwards, most=_COLD.get(lengths)),
    ]
    return found


def _cell(row: CostRow) -> str:
    memory = "" if row.extra_mb is None else f" {row.extra_mb:,.0f}"
    return f"{row.seconds * 1000:,.0f} ({row.share_of_generation:.0%}){memory}"
