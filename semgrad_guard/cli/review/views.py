"""Print review items. Answers are untrusted input: no control character in them may reach the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from semgrad_guard.cli.terminal import plain_table
from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import utc_now
from semgrad_guard.review.store.document import reveal
from semgrad_guard.review.views import AuditView, DetailView, ItemView, PageView
from semgrad_guard.suspicious import gives_orders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from pydantic import BaseModel

    from semgrad_guard.flow import ReviewId
    from semgrad_guard.review import AuditRow, Document, Item, ItemDetail, Page

SHORT_ID = 8
_SHOWN = 20_000
"""Characters of a text that `show` prints; `--json` prints all."""
_DOUBT = ((0.35, "bold red"), (0.6, "yellow"), (0.8, "bright_yellow"))
"""Upper bound of a confidence, and its style."""


def print_page(page: Page, url: str, *, as_json: bool) -> None:
    """Print one page of a list."""
    if as_json:
        _print_json(PageView.of(page))
        return
    console = Console()
    if not page.items:
        console.print(f"no matching items in {escape(url)}")
        return
    table = plain_table()
    for name, style in (("id", "bold"), ("state", ""), ("conf.", ""), ("age", "dim"), ("question", ""), ("answer", "")):
        table.add_column(name, style=style, no_wrap=name not in {"question", "answer"}, overflow="fold")
    for item in page.items:
        table.add_row(
            item.id[:SHORT_ID],
            _state(item),
            doubt(item.confidence),
            age(item.created_at),
            Text(reveal(item.title)),
            Text(reveal(item.preview)),
        )
    console.print(table)
    if page.next_cursor:
        console.print(f"[dim]more: --cursor {page.next_cursor}[/dim]", soft_wrap=True)


def print_detail(detail: ItemDetail, trail: Iterable[AuditRow], *, as_json: bool) -> None:
    """Print one item with everything that a reviewer needs."""
    rows = tuple(trail)
    if as_json:
        shown = DetailView.of(detail).model_dump(mode="json")
        if rows:
            shown["audit"] = [AuditView.of(row).model_dump(mode="json") for row in rows]
        print(json.dumps(shown, ensure_ascii=False))
        return
    console = Console()
    item = detail.item
    facts = [f"state {_state(item)}", f"waiting {age(item.created_at)}", f"rule {item.rule}"]
    facts += [f"tags {', '.join(item.tags)}"] if item.tags else []
    facts += [f"deadline {item.deadline_at:%Y-%m-%d %H:%M} UTC"] if item.deadline_at else []
    console.print(Text(item.id, style="bold"), Text(" · ".join(facts), style="dim"))
    if detail.document is None:
        console.print("its texts were erased")
    else:
        _print_document(console, detail.document)
    for comment in detail.comments:
        console.print(Text(f"{comment.by}, {age(comment.at)} ago: {reveal(comment.text)}"))
    if detail.ruling is not None:
        ruling = detail.ruling
        text = f"{ruling.verdict} by {ruling.by}: {reveal(_cut(ruling.text))}"
        console.print(Panel(Text(text), title="verdict", border_style="green"))
    for row in rows:
        moved = f"{row.from_state or '-'} -> {row.to_state}" if row.to_state else ""
        person = row.detail.get("on_behalf_of")
        by = row.by if person is None else f"{row.by} for {reveal(str(person))}"
        console.print(Text(f"{row.at:%Y-%m-%d %H:%M:%S}  {row.event:<8} {by:<12} {moved}", style="dim"))


def print_results(results: Mapping[ReviewId, Item | SemGradGuardError], *, as_json: bool) -> None:
    """Print the result of an action for each item."""
    if as_json:
        shown = [
            {"id": review_id, "error": str(result)}
            if isinstance(result, SemGradGuardError)
            else ItemView.of(result).model_dump(mode="json")
            for review_id, result in results.items()
        ]
        print(json.dumps(shown, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for review_id, result in results.items():
        if isinstance(result, SemGradGuardError):
            console.print(Text(f"{review_id[:SHORT_ID]} {result}", style="red"))
        else:
            console.print(Text(f"{review_id[:SHORT_ID]} {result.state}"))


def doubt(confidence: float | None) -> Text:
    """Return a confidence, coloured by how low it is."""
    if confidence is None:
        return Text("-", style="dim")
    return Text(f"{confidence:.2f}", style=_style(confidence))


def age(moment: datetime) -> str:
    """Return how long ago a moment was, in its largest unit."""
    seconds = max(0.0, (utc_now() - moment).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print_document(console: Console, document: Document) -> None:
    console.print(Panel(Text(reveal(_cut(document.title))), title="question", border_style="cyan"))
    console.print(Panel(_marked(document), title="answer"))
    for number, passage in enumerate(document.passages, start=1):
        title = f"passage {number}" + (f": {escape(reveal(passage.source))}" if passage.source else "")
        if gives_orders(passage.text):
            title += " [red]gives orders to the model: it supports nothing[/red]"
        console.print(Panel(Text(reveal(_cut(passage.text, 2_000))), title=title, border_style="dim"))
    lines = [Text(reveal(f"{document.rule}: {document.why}"))]
    lines += [Text(f"{c.weight:+.2f}  {reveal(c.text or c.signal)}") for c in document.contributions]
    lines += [Text(reveal(f"earlier attempt: {_cut(e.answer, 300)} ({e.why})")) for e in document.earlier]
    lines += [Text(f"trace: {reveal(document.trace_url)}")] if document.trace_url else []
    console.print(Panel(Group(*lines), title="why it needs review"))


def _marked(document: Document) -> Text:
    """Return the answer with its uncertain parts coloured."""
    answer = _cut(document.answer)
    marked, end = Text(), 0
    for span in sorted(document.score.spans if document.score else (), key=lambda span: span.start):
        if span.start < end or span.confidence is None:
            continue
        marked.append(reveal(answer[end : span.start]))
        marked.append(reveal(answer[span.start : span.end]), style=_style(span.confidence))
        end = span.end
    return marked.append(reveal(answer[end:]))


def _style(confidence: float) -> str:
    return next((style for bound, style in _DOUBT if confidence < bound), "")


def _state(item: Item) -> str:
    return f"{item.state} ({item.holder})" if item.holder else str(item.state)


def _cut(text: str, limit: int = _SHOWN) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


def _print_json(view: BaseModel) -> None:
    print(view.model_dump_json())
