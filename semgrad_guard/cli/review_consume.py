"""`semgrad-guard review consume`: pass verdicts on to LangSmith."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.review_options import policy_at, queue_at
from semgrad_guard.errors import ReviewError

if TYPE_CHECKING:
    from semgrad_guard.guard.verdict_loop import VerdictLoop
    from semgrad_guard.policy import Policy
    from semgrad_guard.review import SqlReviewQueue

CONSUME_EXAMPLE = "Example: semgrad-guard review consume --policy policy.yaml --once"


def consume(
    policy: Annotated[
        Path, typer.Option(help="Policy file, with its queue and `telemetry`.", exists=True, dir_okay=False)
    ],
    once: Annotated[bool, typer.Option("--once", help="Pass on what is new, and end.")] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Pass verdicts on to LangSmith, as feedback on the runs that wrote the answers.

    `review serve --policy` and every guard with `telemetry: {langsmith: true}` do the same beside their work; each
    verdict is posted once.
    """
    loop = verdict_loop(queue_at(None, policy), policy_at(None, policy))
    if loop is None:
        msg = "this policy passes verdicts on to nobody: set `telemetry: {langsmith: true}`"
        raise ReviewError(msg)
    while True:
        posted = loop.look()
        if posted:
            Console(stderr=True).print(f"{posted} verdicts passed on")
        elif once:
            return
        else:
            time.sleep(every_s)


def verdict_loop(queue: SqlReviewQueue, policy: Policy) -> VerdictLoop | None:
    """Return what passes a queue's verdicts on as a policy says; `None` where it says nothing."""
    if not policy.telemetry.langsmith:
        return None
    from semgrad_guard.guard.verdict_loop import VerdictLoop  # noqa: PLC0415 - needed for this option only

    loop = VerdictLoop(queue, langsmith=True, log_text=policy.telemetry.log_text)
    loop.prepare()
    return loop
