"""The stages that a guard is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semgrad_guard.guard.reviewing import EarlierVerdicts
    from semgrad_guard.guard.verdict_loop import VerdictLoop
    from semgrad_guard.ports import Calibrator, Decider, ReviewQueue, Scorer, Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One of each stage; swap any by `dataclasses.replace`."""

    scorer: Scorer
    calibrator: Calibrator
    decider: Decider
    queue: ReviewQueue | None = None
    earlier: EarlierVerdicts | None = None
    """Verdicts that answer the same question again; `None` asks a person each time."""
    verdicts: VerdictLoop | None = None
    """Passes verdicts on while the program runs."""
    sink: Sink | None = None
    abstain_message: str
    """What the caller gets when a person rejects the answer, or when nothing else could be done."""
    budget_s: float | None = None
    """Seconds for all attempts at one question, scoring included; `None` sets no limit."""
    policy: str = "policy"
    """Where the policy came from, with its digest: for records."""
