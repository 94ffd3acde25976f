"""`semgrad-guard review` as a reviewer at a terminal uses it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.review.app import app
from semgrad_guard.errors import IllegalMoveError, ItemNotFoundError, ReviewError
from semgrad_guard.flow import Fingerprint, Score, SpanScore
from semgrad_guard.review import State, open_queue
from tests.review_queues import submit


@pytest.fixture(name="url")
def _url(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMGRAD_REVIEW_URL", f"sqlite:///{tmp_path / 'review.db'}")
    monkeypatch.setenv("SEMGRAD_REVIEWER", "ann")
    monkeypatch.setenv("COLUMNS", "80")
    return f"sqlite:///{tmp_path / 'review.db'}"


@pytest.fixture(name="queue")
def _queue(url):
    queue = open_queue(url)
    yield queue
    queue.close()


def run(*arguments: str, stdin: str | None = None) -> str:
    """Return what a command prints; its error is raised."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_what_waits_riskiest_first(queue):
    """The first line is the next answer to judge."""
    sure, unsure = submit(queue, 1, confidence=0.6), submit(queue, 2, confidence=0.1)
    shown = run("list")
    assert shown.index(unsure[:8]) < shown.index(sure[:8])
    assert "What is element 2?" in shown


def test_list_as_json_can_be_paged_by_a_program(queue):
    """Scripts read JSON, not tables."""
    ids = [submit(queue, n, confidence=0.1 * n) for n in range(3)]
    first = json.loads(run("list", "--json", "--limit", "2"))
    rest = json.loads(run("list", "--json", "--limit", "2", "--cursor", first["next_cursor"]))
    assert [item["id"] for item in first["items"] + rest["items"]] == ids
    assert rest["next_cursor"] is None


def test_an_empty_list_says_so(url):
    """Silence would look like a failure."""
    assert "no matching items" in run("list", "--state", "rejected", "--search", "gold")


def test_show_prints_all_a_reviewer_needs_and_is_put_on_record(queue):
    """Question, answer, passages, reason; and who looked."""
    review_id = submit(queue, 7, tags=("medical",))
    queue.comment(review_id, "bob", "hm")
    shown = run("show", review_id[:6], "--audit")
    for part in (
        "What is element 7?",
        "Element 7 is a metal.",
        "elements.txt",
        "confidence is below 0.35",
        "medical",
        "bob",
        "submit",
    ):
        assert part in shown
    assert [row.by for row in queue.audit(review_id)][-1] == "ann"
    assert json.loads(run("show", review_id, "--json"))["document"]["answer"].startswith("Element 7")


def test_show_says_for_whom_a_program_acted(queue):
    """With what would act on the terminal written out."""
    review_id = submit(queue)
    queue.approve(review_id, "bob/guard", on_behalf_of="carol\x1b[2J")
    assert "bob/guard for carol⟨U+001B⟩[2J" in run("show", review_id, "--audit")


def test_nothing_in_an_answer_acts_on_the_terminal(queue, monkeypatch):
    """Answers are hostile input: neither escape codes nor markup may pass."""
    fingerprint = Fingerprint(model="m", dtype="d", template="t", settings="s")
    score = Score(
        method="x", value=1, signals={}, fingerprint=fingerprint, model="m", spans=(SpanScore(0, 5, {}, 0.1),)
    )
    review_id = submit(
        queue, answer="\x1b]0;owned\x07[bold]hi[/bold] [/nope]", question="\x1b[2J[link=x]q[/link]", score=score
    )
    monkeypatch.setenv("COLUMNS", "160")  # so that no line ends within what is looked for
    for shown in (run("show", review_id), run("list")):
        assert "\x1b]0" not in shown
        assert "\x1b[2J" not in shown
        assert "\x07" not in shown
        assert "⟨U+001B⟩" in shown
        assert "[bold]hi[/bold] [/nope]" in shown


def test_approve_edit_reject_and_undo_change_the_item(queue):
    """The four things a reviewer does."""
    ids = [submit(queue, n) for n in range(4)]
    run("approve", ids[0][:8], ids[1])
    run("edit", ids[2], "It is a gas.")
    run("reject", ids[3], "--reason", "wrong")
    states = [queue.get(each).item.state for each in ids]
    assert states == [State.APPROVED, State.APPROVED, State.EDITED, State.REJECTED]
    assert queue.ruling(ids[2]).text == "It is a gas."
    assert queue.ruling(ids[3]).text == "wrong"
    assert queue.ruling(ids[0]).by == "ann"
    run("undo", ids[0], "--json")
    assert queue.get(ids[0]).item.state is State.CLAIMED


def test_an_edit_can_come_from_a_pipe(queue):
    """Long answers are written in an editor or a program."""
    review_id = submit(queue)
    run("edit", review_id, "--file", "-", "--was-correct", stdin="A new\nanswer")
    assert queue.ruling(review_id).text == "A new\nanswer"


def test_the_queue_of_a_policy_file_is_found(queue, tmp_path, url, monkeypatch):
    """The reviewer need not copy the URL."""
    monkeypatch.delenv("SEMGRAD_REVIEW_URL")
    review_id = submit(queue)
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"version: 1\naccept: 0.7\nreview: {{url: '{url}'}}\n")
    assert review_id[:8] in run("list", "--policy", str(policy))
    with pytest.raises(ReviewError, match="give one of them"):
        run("list", "--policy", str(policy), "--url", "sqlite:///other.db")


def test_errors_are_typed_and_left_to_the_program(queue):
    """The program turns them into one line and an exit code."""
    review_id = submit(queue)
    run("approve", review_id)
    with pytest.raises(IllegalMoveError):
        run("reject", review_id)
    with pytest.raises(ItemNotFoundError):
        run("show", "zzzz")
    other = submit(queue, 1)
    with pytest.raises(ReviewError, match="1 of 2 items"):
        run("approve", review_id, other)
    assert queue.get(other).item.state is State.APPROVED


def test_every_command_has_help_with_an_example():
    """A reviewer learns from examples."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert "semgrad-guard review" in run(name, "--help")


def test_claim_takes_the_riskiest_free_item(queue):
    """A reviewer at a terminal works through the queue."""
    first, second = submit(queue, 1, confidence=0.1), submit(queue, 2)
    assert first[:8] in run("claim")
    assert second[:8] in run("claim", second)
    with pytest.raises(ReviewError, match="no unclaimed item for ann"):
        run("claim")
    run("release", first)
    assert queue.get(first).item.state is State.PENDING


def test_assign_and_comment_are_kept(queue):
    """Work is handed on with a note."""
    review_id = submit(queue)
    run("assign", review_id, "--to", "bob")
    run("comment", review_id, "look at the source")
    detail = queue.get(review_id)
    assert detail.item.assignee == "bob"
    assert detail.comments[0].text == "look at the source"


def test_export_and_import_carry_a_queue_over(queue, tmp_path):
    """From a file to a server, say."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    file, other = tmp_path / "items.jsonl", f"sqlite:///{tmp_path / 'other.db'}"
    run("export", str(file))
    assert json.loads(run("export"))["item"]["id"] == review_id
    run("import", str(file), "--url", other)
    run("import", "-", "--url", other, stdin=file.read_text())
    assert review_id[:8] in run("list", "--state", "approved", "--url", other)


def test_erase_asks_first(queue):
    """What is erased can't be brought back."""
    review_id = submit(queue)
    refused = CliRunner().invoke(app, ["erase", review_id], input="n\n")
    assert refused.exit_code == 1
    assert queue.get(review_id).document is not None
    run("erase", review_id, "--yes")
    assert queue.get(review_id).document is None
    run("erase", "--older-than-days", "30", "--yes")
    for arguments in (["erase", "--yes"], ["erase", review_id, "--older-than-days", "3", "--yes"]):
        with pytest.raises(ReviewError, match="say what to erase"):
            run(*arguments)


def test_migrate_says_what_it_did(url):
    """A deployment log shows the revision."""
    assert "was set up" in run("migrate")
    assert "is up to date" in run("migrate")


def test_stats_show_agreement(queue):
    """How good is the guard?"""
    assert "the queue is empty" in run("stats")
    queue.approve(submit(queue, 1, confidence=0.65), "ann")
    submit(queue, 2)
    shown = run("stats")
    for part in ("1 pending", "1 approved", "0.6 to 0.7", "100%"):
        assert part in shown
    assert json.loads(run("stats", "--json"))["bands"][0]["n"] == 1


def test_accounts_are_made_and_changed(url):
    """Passwords come from a prompt or a pipe, never from the command line."""
    run("user", "add", "ann", "--role", "admin", "--password-stdin", stdin="correct horse battery\n")
    run("user", "add", "bob", stdin="correct horse battery\ncorrect horse battery\n")
    shown = run("user", "list")
    assert "ann" in shown
    assert "admin" in shown
    run("user", "role", "bob", "admin")
    run("user", "password", "bob", "--password-stdin", stdin="another long password\n")
    run("user", "close", "bob")
    assert "no" in run("user", "list")
    run("user", "reopen", "bob")
    with pytest.raises(ReviewError, match="12 to 1024"):
        run("user", "add", "cy", "--password-stdin", stdin="short\n")


def test_tokens_are_printed_once(url):
    """The list shows what a token may do, not the token."""
    run("user", "add", "ann", "--password-stdin", stdin="correct horse battery\n")
    result = CliRunner().invoke(app, ["token", "add", "guard", "--user", "ann", "--scope", "submit", "--days", "1"])
    secret = result.stdout.strip()
    assert secret.startswith("sgr_")
    shown = run("token", "list")
    assert secret not in shown
    assert "submit" in shown
    run("token", "revoke", next(line for line in shown.splitlines() if "guard" in line).split()[0])
    with pytest.raises(ReviewError, match="no account 'eve'"):
        run("token", "add", "x", "--user", "eve", "--scope", "read")


def test_webhooks_are_added_listed_and_removed(url):
    """The secret is printed once, the address without what may be secret in it."""
    result = CliRunner().invoke(app, ["webhook", "add", "chat", "https://example.com/h?k=v", "--event", "submit"])
    secret = result.stdout.strip()
    shown = run("webhook", "list")
    assert "https://example.com/h" in shown
    assert "k=v" not in shown
    assert secret not in shown
    run("webhook", "remove", "chat")
    assert "chat" not in run("webhook", "list")


def test_serving_in_the_clear_beyond_this_machine_is_refused(url):
    """Before anything is opened."""
    with pytest.raises(ReviewError, match="--tls-cert"):
        run("serve", "--host", "10.1.2.3")
