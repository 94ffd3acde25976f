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
_STATED_FOR = "llama-8b"
_MS: dict[Way, float] = {"single pass": 60.0, "SemGrad alone": 45.0}
_COLD_MS = 70.0
_LARGE_BATCH_MS = 30.0
_EXTRA_MB = 600.0
_LONGEST = "8192 + 128"
_SAMPLES = 1.5
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
    large_s: float | None = None
    """Seconds an exchange of 512 + 32 tokens takes among 64; `None` on a processor."""

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
    device: str = "cpu"
    accelerated: bool = False
    """Whether the device is an accelerator: times are medians then, and other targets hold."""
    left_out: tuple[str, ...] = ()
    """Measurements that did not fit in memory."""

    def targets(self) -> list[Target]:
        """Return the targets whose lengths were measured, and the bounds that nothing exact can beat."""
        found = [Target("batch of short exchanges, times the throughput of one by one", self.batch.speedup, least=2.0)]
        if self.batch.large_s is not None:
            large = self.batch.large_s * 1000
            found.append(Target("64 x (512 + 32) in batches, ms an exchange", large, most=self._if_8b(_LARGE_BATCH_MS)))
        for lengths, by_way in self._by_lengths().items():
            if self.accelerated:
                found += self._accelerator_targets(lengths, by_way)
            elif all(way in by_way for way in (*_SCORING, "forward")):
                found += _targets(lengths, by_way)
        flat = None if self.accelerated else self._growth_of_memory()
        if flat is not None:
            found.append(
                Target("single pass, extra MiB at the longest context less at the shortest", flat, most=_FLAT_MB)
            )
        return found

    def _if_8b(self, limit: float | None) -> float | None:
        """Return a limit that is stated for a model of 8 billion weights in half precision, else `None`."""
        return limit if self.model.startswith(_STATED_FOR) and self.dtype == "bfloat16" else None

    def _accelerator_targets(self, lengths: str, by_way: dict[Way, CostRow]) -> list[Target]:
        """Return the targets of an accelerator for one length of prompt and answer."""
        found = list[Target]()
        for way in ("single pass", "SemGrad alone"):
            if way in by_way:
                row = by_way[way]
                limit = self._if_8b(_MS[way]) if lengths in _SINGLE else None
                found.append(Target(f"{lengths}: {way}, ms", row.seconds * 1000, most=limit))
                found.append(Target(f"{lengths}: {way}, share of generation", row.share_of_generation))
        if "cold" in by_way and "forward" in by_way:
            beyond = (by_way["cold"].seconds - by_way["forward"].seconds) * 1000
            found.append(Target(f"{lengths}: cold less one forward, ms", beyond, most=self._if_8b(_COLD_MS)))
        if "cold" in by_way and "plain" in by_way:
            speedup = by_way["plain"].seconds / by_way["cold"].seconds
            found.append(Target(f"{lengths}: plain definition / cold path", speedup, least=1.0))
        if "five samples" in by_way:
            samples = by_way["five samples"].seconds / by_way["generation"].seconds
            found.append(Target(f"{lengths}: five samples / one answer", samples, most=_SAMPLES))
        memory = by_way["single pass"].extra_mb if "single pass" in by_way else None
        if memory is not None:
            limit = self._if_8b(_EXTRA_MB) if lengths == _LONGEST else None
            found.append(Target(f"{lengths}: single pass, extra MiB", memory, most=limit))
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
        """Return the report as a table: for each length a row for each way, readable in 80 columns."""
        where = self.device if self.accelerated else f"{self.threads} threads"
        title = f"Cost of scoring: {self.model}, {self.dtype}, {where}"
        caption = f"left out for want of memory: {', '.join(self.left_out)}" if self.left_out else None
        table = Table(title=title, caption=caption)
        table.add_column("prompt + answer")
        table.add_column("way")
        for heading in ("ms", "of writing", "extra MiB"):
            table.add_column(heading, justify="right")
        for lengths, by_way in self._by_lengths().items():
            for number, row in enumerate(by_way.values()):
                memory = "" if row.extra_mb is None else f"{row.extra_mb:,.0f}"
                share = f"{row.share_of_generation:.1%}"
                table.add_row("" if number else lengths, row.way, f"{row.seconds * 1000:,.0f}", share, memory)
            table.add_section()
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
