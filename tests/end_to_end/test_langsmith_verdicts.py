"""Verdicts of the review queue reach LangSmith by themselves: the real client against a server on this machine."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.cli.app import app
from semgrad_guard.flow import RUN_KEY
from semgrad_guard.guard import verdict_loop
from semgrad_guard.guard.assembly import parts_of
from semgrad_guard.guard.verdict_loop import VerdictLoop
from semgrad_guard.policy import parse_policy
from semgrad_guard.review import QueueSettings, open_queue
from tests.fakes import TableScorer
from tests.review_queues import FakeClock, doubtful, exchange, submit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from semgrad_guard.review import SqlReviewQueue

langsmith = pytest.importorskip("langsmith")
run_trees = pytest.importorskip("langsmith.run_trees")

RUN = "0195f6a0-0000-7000-8000-000000000001"
OTHER = "0195f6a0-0000-7000-8000-000000000002"


@pytest.fixture(name="server")
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackLangSmith]:
    """LangSmith on this machine, where the client that tracing uses finds it."""
    with LoopbackLangSmith() as server:
        monkeypatch.setenv("LANGSMITH_ENDPOINT", server.url)
        monkeypatch.setenv("LANGSMITH_API_KEY", "key")
        monkeypatch.setattr(run_trees, "_CLIENT", None)
        with langsmith.tracing_context(enabled=True), langsmith.trace("chain", project_name="shop"):
            pass  # the project exists from its first run on
        run_trees.get_cached_client().flush()
        assert server.wait_for(lambda: server.runs)
        yield server


@pytest.fixture(name="clock")
def _clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(name="queue")
def _queue(tmp_path: Path, clock: FakeClock) -> Iterator[SqlReviewQueue]:
    with closing(open_queue(f"sqlite:///{tmp_path}/r.db", clock=clock, sleep=clock.sleep)) as queue:
        yield queue


def about(run: str) -> dict[str, object]:
    """Return the metadata of an answer that a traced run wrote."""
    return {RUN_KEY: {"run_id": run, "trace_id": run, "session_name": "shop"}}


def test_each_verdict_is_posted_once_on_the_run_that_wrote_the_answer(
    server: LoopbackLangSmith, queue: SqlReviewQueue, clock: FakeClock
) -> None:
    """Whoever evaluates runs sees what people said of them."""
    loops = [VerdictLoop(queue, langsmith=True, log_text=True) for _ in range(2)]
    for loop in loops:
        loop.prepare()
    queue.approve(submit(queue, 1, metadata=about(RUN)), "ann")
    queue.edit(submit(queue, 2, metadata=about(OTHER)), "ann", "It is gold.")
    queue.approve(submit(queue, 3), "ann")  # no run is known
    assert [loop.look() for loop in loops] == [0, 0]
    clock.advance(61)
    assert sum(loop.look() for loop in loops) == 3
    assert sum(loop.look() for loop in loops) == 0
    said = {each["run_id"]: each for each in server.feedback.values()}
    assert {run: (each["key"], each["score"], each["value"]) for run, each in said.items()} == {
        RUN: ("semgrad_verdict", 1.0, "approved"),
        OTHER: ("semgrad_verdict", 0.0, "edited"),
    }
    assert said[OTHER]["correction"] == {"answer": "It is gold."}


def test_a_verdict_that_langsmith_did_not_take_is_posted_later(
    server: LoopbackLangSmith, queue: SqlReviewQueue, clock: FakeClock
) -> None:
    """A bad hour there loses nothing."""
    loop = VerdictLoop(queue, langsmith=True)
    loop.prepare()
    queue.approve(submit(queue, 1, metadata=about(RUN)), "ann")
    clock.advance(61)
    server.status = 422
    assert loop.look() == 0
    server.status = 200
    clock.advance(10)
    assert loop.look() == 1
    assert [each["run_id"] for each in server.feedback.values()] == [RUN]


def test_a_guard_with_langsmith_posts_verdicts_by_itself(
    server: LoopbackLangSmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to set up beside `telemetry: {langsmith: true}`."""
    monkeypatch.setattr(verdict_loop.VerdictLoop, "every_s", 0.05)
    monkeypatch.setattr("semgrad_guard.guard.assembly.queue_settings", lambda _: QueueSettings(undo_s=0))
    policy = parse_policy(f"accept: 0.7\nreview: {{url: 'sqlite:///{tmp_path}/r.db'}}\ntelemetry: {{langsmith: true}}")
    parts = parts_of(policy, TableScorer({}))
    asked = exchange(1, metadata=about(RUN))
    review_id = parts.queue.submit(asked, doubtful(asked))
    parts.queue.approve(review_id, "ann")
    assert server.wait_for(lambda: any(each["run_id"] == RUN for each in server.feedback.values()))
    parts.verdicts.close()
    parts.sink.close()
    assert "semgrad-verdicts" not in {thread.name for thread in threading.enumerate()}


def test_the_command_posts_what_is_new(server: LoopbackLangSmith, tmp_path: Path) -> None:
    """For a queue whose guards are short-lived."""
    url = f"sqlite:///{tmp_path}/r.db"
    clock = FakeClock()
    with closing(open_queue(url, clock=clock, sleep=clock.sleep)) as queue:
        VerdictLoop(queue, langsmith=True).prepare()
        queue.approve(submit(queue, 1, metadata=about(RUN)), "ann")
    file = tmp_path / "policy.yaml"
    file.write_text(f"accept: 0.7\nreview: {{url: '{url}'}}\ntelemetry: {{langsmith: true}}\n")
    done = CliRunner().invoke(app, ["review", "consume", "--policy", str(file), "--once"])
    assert (done.exit_code, done.stderr) == (0, "1 verdicts posted\n")
    assert [each["run_id"] for each in server.feedback.values()] == [RUN]
    file.write_text(f"accept: 0.7\nreview: {{url: '{url}'}}\n")
    refused = CliRunner().invoke(app, ["review", "consume", "--policy", str(file), "--once"])
    assert "telemetry: {langsmith: true}" in str(refused.exception)
