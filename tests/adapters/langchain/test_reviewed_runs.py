"""A person's verdict in the review queue lets the graph go on that stopped for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from langchain_semgrad import ReviewedRuns
from semgrad_guard.flow import HumanReview
from semgrad_guard.review import QueueSettings, open_queue
from tests.adapters.langchain.agents import agent_of, ask, says
from tests.adapters.langchain.chains import LYON, REFUSAL
from tests.fakes import LadderDecider, guard_of
from tests.review_queues import FakeClock, submit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from langgraph.checkpoint.sqlite import SqliteSaver

    from semgrad_guard.review import SqlReviewQueue


@pytest.fixture(name="clock")
def _clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(name="queue")
def _queue(tmp_path: Path, clock: FakeClock) -> Iterator[SqlReviewQueue]:
    """A real queue."""
    settings = QueueSettings(deadline_s=3600)
    queue = open_queue(f"sqlite:///{tmp_path}/review.db", settings=settings, clock=clock, sleep=clock.sleep)
    yield queue
    queue.close()


def thread(name: str) -> Any:
    """Return the configuration of one conversation."""
    return {"configurable": {"thread_id": name}}


def agent(queue: SqlReviewQueue, saver: SqliteSaver) -> Any:
    """Return an agent whose answers all stop for a person; made again in every process."""
    guard = guard_of(default=0.9, decider=LadderDecider([HumanReview(message="Wait.")]), queue=queue)
    return agent_of(says(LYON), guard, checkpointer=saver, review="both")


def last(graph: Any, name: str) -> str:
    """Return the last message of a conversation."""
    return graph.get_state(thread(name)).values["messages"][-1].content


def test_each_run_goes_on_with_its_own_verdict(queue: SqlReviewQueue, saver: SqliteSaver, clock: FakeClock) -> None:
    """Also in a process that knows nothing but graph, checkpointer and queue."""
    first = agent(queue, saver)
    items = {}
    for name in ("a", "b", "c", "d"):
        before = {item.id for item in queue.list().items}
        ask(first, config=thread(name))
        (items[name],) = {item.id for item in queue.list().items} - before
    queue.edit(items["a"], "ann", "Paris")
    queue.reject(items["b"], "ann", "wrong")
    queue.approve(items["c"], "ann")
    queue.approve(submit(queue, 7), "ann")
    graph = agent(queue, saver)
    runs = ReviewedRuns(graph, queue)
    assert runs.resume_due() == 0, "a verdict can be undone for a minute"
    clock.advance(61)
    assert runs.resume_due() == 4
    assert [last(graph, name) for name in "abc"] == ["Paris", REFUSAL, LYON]
    assert [bool(graph.get_state(thread(name)).next) for name in "abcd"] == [False, False, False, True]
    assert runs.resume_due() == 0
    clock.advance(3600)
    queue.expire_deadlines()
    assert runs.resume_due() == 1
    assert last(graph, "d") == REFUSAL
    assert queue.ruling(items["a"]).by == "ann"


def test_a_run_that_fails_is_resumed_again(
    queue: SqlReviewQueue, saver: SqliteSaver, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model behind the graph may be down for a while."""
    graph = agent(queue, saver)
    ask(graph, config=thread("a"))
    runs = ReviewedRuns(graph, queue)
    queue.edit(queue.list().items[0].id, "ann", "Paris")
    clock.advance(61)
    with monkeypatch.context() as patched:
        patched.setattr(type(graph), "invoke", lambda *_: (_ for _ in ()).throw(ConnectionError("down")))
        assert runs.resume_due() == 0
    assert runs.resume_due() == 0, "not at once"
    clock.advance(10)
    assert runs.resume_due() == 1
    assert last(graph, "a") == "Paris"


def test_a_run_that_somebody_else_resumed_is_left_alone(
    queue: SqlReviewQueue, saver: SqliteSaver, clock: FakeClock
) -> None:
    """The conversation may have gone on long ago, and stand at another question."""
    graph = agent(queue, saver)
    ask(graph, config=thread("a"))
    runs = ReviewedRuns(graph, queue)
    item = queue.list().items[0].id
    queue.approve(item, "ann")
    from langgraph.types import Command

    graph.invoke(Command(resume="approve"), thread("a"))
    ask(graph, config=thread("a"))
    clock.advance(61)
    assert runs.resume_due() == 1
    assert graph.get_state(thread("a")).next, "the second answer still waits"


def test_it_works_beside_the_program(queue: SqlReviewQueue, saver: SqliteSaver, clock: FakeClock) -> None:
    """In a thread, until told to stop."""
    graph = agent(queue, saver)
    ask(graph, config=thread("a"))
    runs, stop = ReviewedRuns(graph, queue), threading.Event()
    queue.edit(queue.list().items[0].id, "ann", "Paris")
    clock.advance(61)
    working = threading.Thread(target=runs.resume_until, args=(stop,), kwargs={"every_s": 0.01})
    working.start()
    for _ in range(1000):
        if not graph.get_state(thread("a")).next:
            break
        stop.wait(0.02)
    stop.set()
    working.join(10)
    assert last(graph, "a") == "Paris"
