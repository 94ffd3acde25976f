"""`semgrad-guard review`: list, show and judge the answers that wait for review."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import click
import typer

from semgrad_guard.cli.review import access, upkeep
from semgrad_guard.cli.review.options import AsJson, By, ItemId, ItemIds, PolicyFile, Url, queue_at, reviewer
from semgrad_guard.cli.terminal import examples
from semgrad_guard.errors import ReviewError, SemGradGuardError

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.flow import ReviewId
    from semgrad_guard.review import Item, SqlReviewQueue

_EXAMPLES = examples(
    "semgrad-guard review list --url sqlite:///review.db",
    "semgrad-guard review show 3f9c",
    "semgrad-guard review approve 3f9c",
    'semgrad-guard review edit 3f9c "Gold has the symbol Au."',
    'semgrad-guard review reject 3f9c --reason "the passages say otherwise"',
    more="""
    Ids may be shortened to their first four or more characters. `SEMGRAD_REVIEW_URL` saves typing `--url`.
    """,
)

app = typer.Typer(
    help="List, show and judge the answers that wait for review.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=_EXAMPLES,
)


class StateChoice(StrEnum):
    """Values of `--state`."""

    OPEN = "open"
    PENDING = "pending"
    CLAIMED = "claimed"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALL = "all"


class SortChoice(StrEnum):
    """Values of `--sort`."""

    RISK = "risk"
    NEWEST = "newest"
    OLDEST = "oldest"
    DEADLINE = "deadline"


@app.command(
    "list",
    epilog=examples(
        "semgrad-guard review list", 'semgrad-guard review list --tag medical --search "dose" --sort oldest'
    ),
)
def list_items(
    url: Url = None,
    policy: PolicyFile = None,
    state: Annotated[StateChoice, typer.Option(help="Only items in this state.")] = StateChoice.OPEN,
    tag: Annotated[list[str] | None, typer.Option(help="Only items with this tag; repeat for several.")] = None,
    assignee: Annotated[str | None, typer.Option(help="Only items assigned to this reviewer.")] = None,
    search: Annotated[str, typer.Option(help="Only items whose texts contain all these words.")] = "",
    sort: Annotated[SortChoice, typer.Option(help="Order of the list.")] = SortChoice.RISK,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Items per page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue after an earlier page.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the answers in the queue, riskiest first."""
    from semgrad_guard.cli.review.views import print_page
    from semgrad_guard.review import OPEN, Filters, Sort, State

    named = {StateChoice.OPEN: OPEN, StateChoice.ALL: frozenset[State]()}
    filters = Filters(
        states=named[state] if state in named else frozenset({State(state)}),
        tags=frozenset(tag or ()),
        assignee=assignee,
        text=search,
    )
    queue = queue_at(url, policy)
    page = queue.list(filters, sort=Sort(sort), cursor=cursor, limit=limit)
    print_page(page, queue.url, as_json=as_json)


@app.command(epilog=examples("semgrad-guard review show 3f9c", "semgrad-guard review show 3f9c --audit"))
def show(
    item: ItemId,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    audit: Annotated[bool, typer.Option("--audit", help="Also show the item's history.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one answer with its passages, and why the guard doubted it."""
    from semgrad_guard.cli.review.views import print_detail

    queue = queue_at(url, policy)
    review_id = queue.find_id(item)
    detail = queue.get(review_id, viewer=reviewer(by))
    print_detail(detail, queue.audit(review_id) if audit else (), as_json=as_json)


@app.command(epilog=examples("semgrad-guard review approve 3f9c", "semgrad-guard review approve 3f9c 77ab --by ann"))
def approve(items: ItemIds, url: Url = None, policy: PolicyFile = None, by: By = None, as_json: AsJson = False) -> None:
    """Approve answers as they are."""
    queue, who = queue_at(url, policy), reviewer(by)
    _act(queue, items, lambda review_id: queue.approve(review_id, who), as_json=as_json)


@app.command(
    epilog=examples(
        'semgrad-guard review edit 3f9c "Gold has the symbol Au."',
        "semgrad-guard review edit 3f9c --file answer.txt --was-correct",
    )
)
def edit(
    item: ItemId,
    text: Annotated[str | None, typer.Argument(help="The new answer; without it, your editor opens.")] = None,
    file: Annotated[
        typer.FileText | None, typer.Option("--file", help="Read the new answer from a file; `-` is standard input.")
    ] = None,
    was_correct: Annotated[
        bool, typer.Option("--was-correct", help="The model's answer was right; only its wording changes.")
    ] = False,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Replace an answer with your own text."""
    queue, who = queue_at(url, policy), reviewer(by)
    review_id = queue.find_id(item)
    if text is None:
        text = file.read() if file is not None else _in_editor(queue, review_id)
    _act(queue, [review_id], lambda item_id: queue.edit(item_id, who, text, was_correct=was_correct), as_json=as_json)


@app.command(
    epilog=examples(
        "semgrad-guard review reject 3f9c", 'semgrad-guard review reject 3f9c --reason "the passages say otherwise"'
    )
)
def reject(
    items: ItemIds,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; the user who asked reads it.")] = "",
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Reject answers, so that they are never returned."""
    queue, who = queue_at(url, policy), reviewer(by)
    _act(queue, items, lambda review_id: queue.reject(review_id, who, reason), as_json=as_json)


@app.command(epilog=examples("semgrad-guard review undo 3f9c", "semgrad-guard review undo 3f9c 77ab"))
def undo(items: ItemIds, url: Url = None, policy: PolicyFile = None, by: By = None, as_json: AsJson = False) -> None:
    """Undo your verdicts, within a minute and before they are delivered."""
    queue, who = queue_at(url, policy), reviewer(by)
    _act(queue, items, lambda review_id: queue.undo(review_id, who), as_json=as_json)


@app.command(epilog=examples("semgrad-guard review claim --by ann", "semgrad-guard review claim 3f9c"))
def claim(
    items: Annotated[
        list[str] | None, typer.Argument(help="Ids of the items; without any, the riskiest unclaimed item.")
    ] = None,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Claim items for a while, so that no other reviewer judges them."""
    queue, who = queue_at(url, policy), reviewer(by)
    if items:
        _act(queue, items, lambda review_id: queue.claim_item(review_id, who), as_json=as_json)
        return
    item = queue.claim(who)
    if item is None:
        msg = f"no unclaimed item for {who} in {queue.url}"
        raise ReviewError(msg)
    _act(queue, [item.id], lambda _: item, as_json=as_json)


@app.command(epilog=examples("semgrad-guard review release 3f9c", "semgrad-guard review release 3f9c --force"))
def release(
    items: ItemIds,
    force: Annotated[bool, typer.Option("--force", help="Also put back items that someone else holds.")] = False,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Put claimed items back."""
    queue, who = queue_at(url, policy), reviewer(by)
    _act(queue, items, lambda review_id: queue.release(review_id, who, force=force), as_json=as_json)


@app.command(epilog=examples("semgrad-guard review assign 3f9c --to ann", "semgrad-guard review assign 3f9c"))
def assign(
    items: ItemIds,
    to: Annotated[str | None, typer.Option("--to", help="The reviewer's name; by default anyone may judge.")] = None,
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Assign items to a reviewer."""
    queue, who = queue_at(url, policy), reviewer(by)
    _act(queue, items, lambda review_id: queue.assign(review_id, who, to), as_json=as_json)


@app.command(
    epilog=examples(
        'semgrad-guard review comment 3f9c "check the source"',
        'semgrad-guard review comment 3f9c "the source is old" --by ann',
    )
)
def comment(
    item: ItemId,
    text: Annotated[str, typer.Argument(help="The comment.")],
    url: Url = None,
    policy: PolicyFile = None,
    by: By = None,
) -> None:
    """Add a comment to an item."""
    queue = queue_at(url, policy)
    queue.comment(queue.find_id(item), reviewer(by), text)


app.command("serve", epilog=access.SERVE_EXAMPLES)(access.serve)
app.add_typer(access.user_app, name="user")
app.add_typer(access.token_app, name="token")
app.add_typer(access.webhook_app, name="webhook")
app.command("export", epilog=upkeep.EXPORT_EXAMPLES)(upkeep.export)
app.command("import", epilog=upkeep.IMPORT_EXAMPLES)(upkeep.import_items)
app.command("erase", epilog=upkeep.ERASE_EXAMPLES)(upkeep.erase)
app.command("consume", epilog=upkeep.CONSUME_EXAMPLES)(upkeep.consume)
app.command("migrate", epilog=upkeep.MIGRATE_EXAMPLES)(upkeep.migrate)
app.command("stats", epilog=upkeep.STATS_EXAMPLES)(upkeep.stats)


def _act(queue: SqlReviewQueue, items: list[str], action: Callable[[ReviewId], Item], *, as_json: bool) -> None:
    """Apply an action to each item and print the results; if there is only one item, its error is raised."""
    from semgrad_guard.cli.review.views import print_results

    ids = [queue.find_id(item) for item in items]
    results = queue.each(ids, action)
    errors = [result for result in results.values() if isinstance(result, SemGradGuardError)]
    if len(results) == 1 and errors:
        raise errors[0]
    print_results(results, as_json=as_json)
    if errors:
        msg = f"{len(errors)} of {len(results)} items were not changed"
        raise ReviewError(msg)


def _in_editor(queue: SqlReviewQueue, review_id: ReviewId) -> str:
    document = queue.get(review_id).document
    answer = document.answer if document else ""
    try:
        edited = click.edit(answer)
    except click.ClickException as error:
        msg = f"{error.message}: give the new answer as an argument or with --file"
        raise ReviewError(msg) from error
    if edited is None:
        msg = "nothing was saved in the editor, so the item was not changed"
        raise ReviewError(msg)
    return edited.rstrip("\n")
