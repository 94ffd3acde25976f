"""`semgrad-guard review consume|export|import|erase|migrate|stats`: maintain a queue."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.review.options import AsJson, By, PolicyFile, Url, policy_at, queue_at, reviewer
from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.errors import ReviewError

if TYPE_CHECKING:
    from semgrad_guard.guard.verdict_loop import VerdictLoop
    from semgrad_guard.policy import Policy
    from semgrad_guard.review import SqlReviewQueue

CONSUME_EXAMPLES = examples(
    "semgrad-guard review consume --policy policy.yaml", "semgrad-guard review consume --policy policy.yaml --once"
)


def consume(
    policy: Annotated[
        Path, typer.Option(help="Policy file, with its queue and `telemetry`.", exists=True, dir_okay=False)
    ],
    once: Annotated[bool, typer.Option("--once", help="Post the new verdicts and exit.")] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two checks.")] = 5.0,
) -> None:
    """Post verdicts to LangSmith, as feedback on the runs that produced the answers.

    `review serve --policy` and every guard with `telemetry: {langsmith: true}` do
    the same in the background; each verdict is posted once.
    """
    loop = verdict_loop(queue_at(None, policy), policy_at(None, policy))
    if loop is None:
        msg = "this policy passes no verdicts on: set `telemetry: {langsmith: true}`"
        raise ReviewError(msg)
    while True:
        posted = loop.look()
        if posted:
            Console(stderr=True).print(f"{posted} verdicts posted")
        elif once:
            return
        else:
            time.sleep(every_s)


def verdict_loop(queue: SqlReviewQueue, policy: Policy) -> VerdictLoop | None:
    """Return the loop that posts a queue's verdicts to LangSmith, or `None` if the policy does not want that."""
    if not policy.telemetry.langsmith:
        return None
    from semgrad_guard.guard.verdict_loop import VerdictLoop  # needed for this option only

    loop = VerdictLoop(queue, langsmith=True, log_text=policy.telemetry.log_text)
    loop.prepare()
    return loop


EXPORT_EXAMPLES = examples(
    "semgrad-guard review export items.jsonl", "semgrad-guard review export items.jsonl --tag medical"
)
IMPORT_EXAMPLES = examples(
    "semgrad-guard review import items.jsonl",
    "semgrad-guard review import items.jsonl --url postgresql://ann@db/review",
)
ERASE_EXAMPLES = examples("semgrad-guard review erase 3f9c", "semgrad-guard review erase --older-than-days 90")
MIGRATE_EXAMPLES = examples(
    "semgrad-guard review migrate", "semgrad-guard review migrate --url postgresql://ann@db/review"
)
STATS_EXAMPLES = examples("semgrad-guard review stats", "semgrad-guard review stats --json")

_DAY_S = 86_400


def export(
    file: Annotated[Path | None, typer.Argument(help="File to write; by default standard output.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only items with this tag; repeat for several.")] = None,
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Export items as JSON lines, with their verdicts, comments and history."""
    from semgrad_guard.review import Filters  # loads SQLAlchemy

    lines = queue_at(url, policy).export(Filters(tags=frozenset(tag or ())))
    if file is None:
        for line in lines:
            print(line)
        return
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        written = sum(bool(out.write(line + "\n")) for line in lines)
    partial.replace(file)
    Console(stderr=True).print(f"{written} items in {file}", markup=False)


def import_items(
    file: Annotated[Path, typer.Argument(help="JSON lines that `export` wrote; `-` is standard input.")],
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
) -> None:
    """Import items from JSON lines; items already in the queue are not changed."""
    queue, who = queue_at(url, policy), reviewer(by)
    if str(file) == "-":
        new, known = queue.import_lines(sys.stdin, who, source="standard input")
    else:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines:
            new, known = queue.import_lines(lines, who, source=str(file))
    Console(stderr=True).print(f"{new} items imported, {known} were already there")


def erase(
    items: Annotated[list[str] | None, typer.Argument(help="Ids of the items, or their first characters.")] = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Instead of ids: erase all settled items that are older than this.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
) -> None:
    """Remove every text of items for good; their history stays."""
    queue, who = queue_at(url, policy), reviewer(by)
    if bool(items) == (older_than_days is not None):
        msg = "say what to erase: either ids or --older-than-days"
        raise ReviewError(msg)
    ids = [queue.find_id(item) for item in items or ()]
    what = f"{len(ids)} items" if items else f"all settled items older than {older_than_days:g} days"
    if not yes:
        typer.confirm(f"Remove every text of {what} in {queue.url} for good?", abort=True)
    erased = queue.erase(ids, who) if items else queue.erase_older_than((older_than_days or 0) * _DAY_S, who)
    Console(stderr=True).print(f"{erased} items erased")


def migrate(url: Url = None, policy: PolicyFile = None) -> None:
    """Set up a queue's database, or upgrade its tables to this version."""
    queue = queue_at(url, policy)
    before, now = queue.migrate()
    done = "is up to date" if before == now else "was set up" if before is None else f"was upgraded from {before}"
    Console().print(f"{queue.url} {done}: revision {now}", markup=False, highlight=False, soft_wrap=True)


def stats(url: Url = None, policy: PolicyFile = None, as_json: AsJson = False) -> None:
    """Show what waits for review, and how well the guard's confidence agrees with the reviewers."""
    from semgrad_guard.cli.review.views import age  # loads SQLAlchemy

    seen = queue_at(url, policy).insight()
    if as_json:
        shown = {
            "by_state": dict(seen.by_state),
            "oldest_at": seen.oldest_at.isoformat() if seen.oldest_at else None,
            "judged_last_day": seen.judged_last_day,
            "calibration_error": seen.calibration_error,
            "bands": [
                {"low": b.low, "high": b.high, "n": b.n, "n_correct": b.n_correct, "mean_confidence": b.mean_confidence}
                for b in seen.bands
            ],
        }
        print(json.dumps(shown))
        return
    console = Console()
    console.print(", ".join(f"{n} {state}" for state, n in seen.by_state.items() if n) or "the queue is empty")
    if seen.oldest_at:
        console.print(f"the oldest has waited {age(seen.oldest_at)}")
    if seen.bands:
        table = plain_table("confidence", "judged", "right")
        for band in seen.bands:
            table.add_row(f"{band.low:.1f} to {band.high:.1f}", str(band.n), f"{band.share_correct:.0%}")
        console.print(table)
        console.print(f"mean gap between confidence and share of right answers: {seen.calibration_error:.3f}")
