"""Scored answers as one page: each with its uncertain sentences marked, the strongest mark for the least sure."""

from __future__ import annotations

import bisect
import json
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --dim: #5d5d66; --paper: #fff; --line: #d9d9e0; --mark: 214 69 40; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --dim: #a0a0ab; --paper: #17171b; --line: #34343c; --mark: 255 122 89; }
}
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; font: 1rem/1.6 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .4rem; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.numbers, footer { color: var(--dim); font-size: .875rem; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
mark { color: inherit; background: rgb(var(--mark) / calc(var(--doubt) * 0.6)); border-radius: .2rem;
       border-bottom: 2px solid rgb(var(--mark) / var(--doubt)); }
"""


def write_answers(scored: Path, page: Path) -> None:
    """Write the page of a file that `score` wrote.

    A sentence's mark is one minus its confidence; without a profile, the share of all sentences that are surer.

    Args:
        scored: the JSONL file.
        page: the HTML file to write; it needs nothing beside itself.
    """
    rows = [json.loads(line) for line in scored.read_text(encoding="utf-8").splitlines()]
    values = sorted(value for row in rows for value in _span_values(row))
    articles = "\n".join(_article(row, values) for row in rows)
    legend = (
        "The stronger the mark, the less sure the model: one minus the sentence's confidence where a profile fits, "
        "else its rank among all sentences of this page."
    )
    page.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Scored answers</title><style>{_STYLE}</style></head>\n<body><main><h1>Scored answers</h1>\n"
        f"{articles}\n</main><footer><p>{legend}</p></footer></body></html>\n",
        encoding="utf-8",
    )


def _article(row: dict[str, Any], values: Sequence[float]) -> str:
    asked = escape(str(row.get("question") or row.get("id") or ""))
    return (
        f"<article><h2>{asked}</h2>\n"
        f'<p class="answer">{"".join(_marked(row, values))}</p>\n'
        f'<p class="numbers">{escape(_numbers(row))}</p></article>'
    )


def _marked(row: dict[str, Any], values: Sequence[float]) -> Iterator[str]:
    answer, at = str(row.get("answer") or ""), 0
    for span in row.get("spans", []):
        start, end, doubt = span["start"], span["end"], _doubt(span, row, values)
        told = _told(span, row)
        yield escape(answer[at:start])
        yield f'<mark style="--doubt:{doubt:.2f}" title="{escape(told)}">{escape(answer[start:end])}</mark>'
        at = end
    yield escape(answer[at:])


def _doubt(span: dict[str, Any], row: dict[str, Any], values: Sequence[float]) -> float:
    if span.get("confidence") is not None:
        return 1.0 - float(span["confidence"])
    return bisect.bisect_left(values, span["signals"][row["method"]]) / max(1, len(values) - 1)


def _told(span: dict[str, Any], row: dict[str, Any]) -> str:
    score = f"{row['method']} {span['signals'][row['method']]:.3g}"
    return score if span.get("confidence") is None else f"confidence {span['confidence']:.2f}, {score}"


def _numbers(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    confidence = f"confidence {row['confidence']:.2f}, " if "confidence" in row else ""
    return f"{confidence}{row['method']} {row['score']:.3g}, model {row['model']}"


def _span_values(row: dict[str, Any]) -> list[float]:
    return [float(span["signals"][row["method"]]) for span in row.get("spans", [])]
