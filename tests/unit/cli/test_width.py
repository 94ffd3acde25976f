"""What commands print can be read in a terminal of 80 columns: nothing is cut, and no table is wider."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Accounts, Role, Scope, Tokens
from semgrad_guard.review.webhooks import add_webhook
from semgrad_guard.serving.keys import KeyFile
from semgrad_guard.telemetry import JsonlSink
from tests.pages import WIDTH, too_wide
from tests.records import make_attempt, make_record
from tests.review_queues import submit

if TYPE_CHECKING:
    from pathlib import Path

LONG = "supercalifragilisticexpialidociously " * 3


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands read: a queue, records, keys, labelled answers, each with long texts."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'review.db'}"
    monkeypatch.setenv("SEMGRAD_REVIEW_URL", url)
    queue = open_queue(url)
    for n in range(3):
        submit(queue, n, confidence=0.1 * n, question=LONG, answer=LONG)
    account = Accounts(queue.database).add("annabel.featherstonehaugh", "a good password", Role.ADMIN)
    Tokens(queue.database).issue("the guard in production", account, list(Scope), lifetime_s=86_400)
    add_webhook(
        queue, "chat", "https://chat.example.com/hooks/review/of/the/guard/in/production", ["verdict", "submit"]
    )
    queue.close()
    sink = JsonlSink(tmp_path / "guard.jsonl")
    sink.emit(make_record(make_attempt("a1", 0.9, text=LONG)))
    KeyFile(tmp_path / "keys.json").issue("the-rag-application-in-production")
    (tmp_path / "policy.yaml").write_text(
        "accept: 0.7\nescalate: [retry_retrieval, {fallback_model: {name: the-largest-model-there-is}}]\n"
    )
    rows = [
        {"question": str(n), "answer": LONG, "confidence": 0.9 - n / 20, "correct": n % 3 > 0, "seconds": 123.456}
        for n in range(12)
    ]
    rows += [
        {**row, "attempt": 2, "route": route}
        for row in rows[6:]
        for route in ("retry_retrieval", "fallback_model:the-largest-model-there-is")
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "signals",
        "models list",
        "doctor",
        "doctor --policy policy.yaml",
        "profile show proxy",
        "profile show smollm2-135m-demo",
        "profile status proxy",
        "keys list",
        "watch guard.jsonl --once",
        "policy simulate policy.yaml scored.jsonl",
        "review list",
        "review stats",
        "review user list",
        "review token list",
        "review webhook list",
    ],
)
def test_tables_fit_a_terminal(folder: Path, line: str) -> None:
    """A heading that is cut to `gener…` says nothing, and a table that the terminal wraps cannot be read."""
    done = CliRunner(env={"COLUMNS": WIDTH, "TERM": "dumb"}).invoke(app, line.split())
    assert done.exception is None, done.output
    assert done.stdout.strip()
    assert too_wide(done.stdout) == []
