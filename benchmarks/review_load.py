"""The review queue under load: how much it takes, whether anything is lost, and how long reviewers wait for pages."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from benchmarks.review_pages import measure_pages
from benchmarks.review_places import empty_queue
from benchmarks.review_workers import run_load

if TYPE_CHECKING:
    from collections.abc import Sequence

_LISTS = ("list", "deep_list", "all_newest", "one_tag", "mine", "queue_page", "item_page")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as asked; return 1 when something was lost, judged twice or failed."""
    asked = _parser().parse_args(arguments)
    report: dict[str, Any] = {"database": make_url(asked.url).get_backend_name()}
    if asked.seconds > 0:
        report["load"] = _measure_load(asked)
    if asked.sizes:
        with empty_queue(asked.url) as url:
            report["pages"] = [_said(row) for row in measure_pages(url, asked.sizes)]
    if asked.json:
        Path(asked.json).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    load = report.get("load", {})
    return int(bool(load.get("lost") or load.get("twice") or load.get("errors")))


def _measure_load(asked: argparse.Namespace) -> dict[str, Any]:
    with empty_queue(asked.url) as url:
        load = run_load(
            url,
            seconds=asked.seconds,
            programs=asked.programs,
            threads=asked.threads,
            reviewers=asked.reviewers,
            pause_s=asked.pause,
        )
    found = {
        "seconds": round(load.seconds, 1),
        "submits_per_s": round(len(load.submitted) / load.seconds, 1),
        "resolves_per_s": round(len(load.judged) / load.seconds, 1),
        "submitted": len(load.submitted),
        "resolved": len(load.judged),
        "lost": load.lost,
        "twice": load.twice,
        "submit_median_ms": round(1000 * load.median_submit_s, 1),
        "submit_slowest_ms": round(1000 * load.slowest_submit_s, 1),
        "errors": load.errors,
    }
    _say(
        f"{found['submits_per_s']:g} submits/s and {found['resolves_per_s']:g} resolves/s by {asked.reviewers} "
        f"reviewers for {found['seconds']:g} s: {found['submitted']} items, {found['lost']} lost, "
        f"{found['twice']} judged twice; a submit took {found['submit_median_ms']:g} ms, "
        f"at most {found['submit_slowest_ms']:g} ms"
    )
    for error in load.errors:
        _say(f"failed: {error}")
    return found


def _said(row: dict[str, float]) -> dict[str, float]:
    shown = ", ".join(f"{name} {row[f'{name}_ms']:g} (at most {row[f'{name}_slowest_ms']:g})" for name in _LISTS)
    _say(f"{row['items']:>7} items, ms: {shown}")
    return row


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="review_load", description=__doc__)
    parser.add_argument(
        "--url",
        default="sqlite://",
        help="sqlite:// for a new file, or a PostgreSQL database, in which a schema is made and dropped again",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the load; 0 leaves it out")
    parser.add_argument("--programs", type=int, default=2, help="processes that submit")
    parser.add_argument("--threads", type=int, default=32, help="requests that each of them serves at one time")
    parser.add_argument("--reviewers", type=int, default=8, help="processes that claim and judge")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds for which a reviewer looks at an item")
    parser.add_argument("--sizes", type=_sizes, default=(1_000, 10_000, 100_000), help="queue sizes, e.g. 1000,100000")
    parser.add_argument("--json", help="file for the report")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(each) for each in text.split(",") if each))


if __name__ == "__main__":
    sys.exit(main())
