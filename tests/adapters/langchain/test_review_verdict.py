"""What follows when a graph that stopped for a person is resumed: the record and the queue's item."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from langchain_semgrad import SemGradGraphState, SemGradNode, resume_with
from semgrad_guard.flow import HumanReview, ReviewId, Ruling, Verdict, utc_now
from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Scope
from semgrad_guard.review.store.items import Event, State
from tests.adapters.langchain.agents import THREAD, agent_of, ask, says
from tests.adapters.langchain.chains import LYON, REFUSAL
from tests.fakes import LadderDecider, MemoryQueue, MemorySink, guard_of
from tests.review_site import serving, site_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from langgraph.checkpoint.sqlite import SqliteSaver

    from semgrad_guard.guard import Guard
    from semgrad_guard.review.client import ReviewClient
    from semgrad_guard.review.queue import SqlReviewQueue

REVIEW = LadderDecider([HumanReview(message="Wait.")])
EDIT = {"type": "edit", "answer": "Paris", "by": "ann"}
REJECT = {"type": "reject", "message": "wrong", "by": "ann"}
APPROVE = {"type": "approve", "by": "ann"}
VERDICTS = [
    (APPROVE, Verdict.APPROVED, LYON, LYON),
    (EDIT, Verdict.EDITED, "Paris", "Paris"),
    (REJECT, Verdict.REJECTED, "wrong", REFUSAL),
]


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Iterator[SqlReviewQueue]:
    """A real queue."""
    queue = open_queue(f"sqlite:///{tmp_path}/review.db")
    yield queue
    queue.close()


def doubting(**parts: Any) -> Guard:
    """Guard that hands every answer to a person."""
    return guard_of(default=0.9, decider=REVIEW, **parts)


@pytest.mark.parametrize(("said", "verdict", "text", "given"), VERDICTS)
def test_the_verdict_is_a_record_that_follows_the_answers(
    saver: SqliteSaver, said: Any, verdict: Verdict, text: str, given: str
) -> None:
    """The log would otherwise end with `pending` for ever."""
    sink = MemorySink()
    agent = agent_of(says(LYON), doubting(sink=sink), checkpointer=saver)
    ask(agent, config=THREAD)
    (first,) = sink.records
    agent.invoke(Command(resume=said), THREAD)
    last = sink.records[-1]
    assert (len(sink.records), first.follows, last.follows) == (2, None, first.id)
    assert (last.review_id, last.answer_id, last.text) == (first.review_id, first.answer_id, given)
    assert last.ruling is not None
    assert (last.ruling.verdict, last.ruling.by, last.ruling.text) == (verdict, "ann", text)
    assert last.status == ("abstained" if verdict is Verdict.REJECTED else "reviewed")
    assert last.seconds >= first.seconds
    assert (last.attempts, last.id == first.id) == ((), False)


def test_the_record_of_a_node_that_ran_twice_is_the_same() -> None:
    """A crash between logging and the next checkpoint repeats the node."""
    ids = set()
    sink = MemorySink()
    agent = agent_of(says(LYON), doubting(sink=sink), checkpointer=InMemorySaver())
    ask(agent, config=THREAD)
    stopped = agent.get_state(THREAD).config
    for _ in range(2):
        agent.invoke(Command(resume="approve"), stopped)
        ids.add(sink.records[-1].id)
    assert len(sink.records) == 3
    assert len(ids) == 1


def test_a_graphs_own_review_node_logs_and_settles_too(queue: SqlReviewQueue, saver: SqliteSaver) -> None:
    """Hand-built graphs have the same promises."""

    class GraphState(MessagesState, SemGradGraphState):
        pass

    sink = MemorySink()
    node = SemGradNode(guard=doubting(sink=sink, queue=queue), review="both")
    builder = StateGraph(GraphState)
    builder.add_node("model", lambda state: {"messages": [says(LYON).invoke(state["messages"])]})
    builder.add_node("guard", node)
    builder.add_node("review", node.review)
    for start, end in ((START, "model"), ("model", "guard"), ("guard", "review"), ("review", END)):
        builder.add_edge(start, end)
    graph = builder.compile(checkpointer=saver)
    ask(graph, config=THREAD)
    assert graph.invoke(Command(resume=EDIT), THREAD)["messages"][-1].content == "Paris"
    assert sink.records[-1].follows == sink.records[0].id
    assert queue.item(ReviewId(str(sink.records[0].review_id))).state is State.EDITED


@pytest.mark.parametrize("case", VERDICTS, ids=str)
@pytest.mark.parametrize("claimed", [False, True])
def test_resuming_the_graph_settles_the_queues_item(
    queue: SqlReviewQueue, saver: SqliteSaver, case: tuple[Any, ...], claimed: bool
) -> None:
    """Nobody should judge what is decided, not even who has it open."""
    said, verdict, text, given = case
    agent = agent_of(says(LYON), doubting(queue=queue), review="both", checkpointer=saver)
    review_id = ask(agent, config=THREAD)["semgrad"]["review_id"]
    if claimed:
        queue.claim_item(review_id, "bob")
    assert agent.invoke(Command(resume=said), THREAD)["messages"][-1].content == given
    ruling = queue.ruling(review_id)
    assert ruling is not None
    assert (queue.item(review_id).state.value, ruling.verdict, ruling.by, ruling.text) == (
        verdict.value,
        verdict,
        "ann",
        text,
    )


@contextmanager
def site_queue(queue: SqlReviewQueue, account: str) -> Iterator[ReviewClient]:
    """Serve the queue on a port; give it as a program with a token of the account reaches it."""
    app = site_of(queue)
    desk = app.state.desk
    _, secret = desk.tokens.issue("guard", desk.accounts.get(account), [Scope.SUBMIT, Scope.JUDGE])
    with serving(app) as url, closing(open_queue(url, token=secret)) as client:
        yield client


@pytest.mark.parametrize("case", VERDICTS, ids=str)
@pytest.mark.parametrize("claimed", [False, True])
def test_resuming_the_graph_settles_the_item_of_a_review_site(
    queue: SqlReviewQueue, saver: SqliteSaver, case: tuple[Any, ...], claimed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The same where the queue is on another machine; its trail says which token acted, and for whom."""
    said, verdict, text, given = case
    with site_queue(queue, "root") as client:
        agent = agent_of(says(LYON), doubting(queue=client), review="both", checkpointer=saver)
        review_id = ask(agent, config=THREAD)["semgrad"]["review_id"]
        if claimed:
            queue.claim_item(review_id, "bob")
        assert agent.invoke(Command(resume=said), THREAD)["messages"][-1].content == given
    ruling = queue.ruling(review_id)
    assert ruling is not None
    assert (queue.item(review_id).state.value, ruling.verdict, ruling.by, ruling.text) == (
        verdict.value,
        verdict,
        "root/guard",
        text,
    )
    rows = [row for row in queue.audit(review_id) if row.event not in {Event.SUBMIT, Event.CLAIM}]
    assert {(row.by, row.detail["on_behalf_of"]) for row in rows} == {("root/guard", "ann")}
    assert caplog.records == []


def test_a_site_leaves_an_item_to_who_holds_it_unless_the_token_may_take_it(
    queue: SqlReviewQueue, saver: SqliteSaver, caplog: pytest.LogCaptureFixture
) -> None:
    """A reviewer's token has no right to what another reviewer holds; the answer goes out, and the log says so."""
    with site_queue(queue, "ann") as client:
        agent = agent_of(says(LYON), doubting(queue=client), review="both", checkpointer=saver)
        review_id = ask(agent, config=THREAD)["semgrad"]["review_id"]
        queue.claim_item(review_id, "bob")
        assert agent.invoke(Command(resume=EDIT), THREAD)["messages"][-1].content == "Paris"
    assert queue.item(review_id).holder == "bob"
    assert "only administrators" in caplog.text


def test_the_queues_item_stays_open_when_the_resume_is_no_verdict(queue: SqlReviewQueue, saver: SqliteSaver) -> None:
    """A typo decides nothing."""
    agent = agent_of(says(LYON), doubting(queue=queue), review="both", checkpointer=saver)
    review_id = ask(agent, config=THREAD)["semgrad"]["review_id"]
    with pytest.raises(ValueError, match="type"):
        agent.invoke(Command(resume={"type": "maybe"}), THREAD)
    assert queue.item(review_id).is_open


@pytest.mark.parametrize("verdict", [Verdict.APPROVED, Verdict.EDITED, Verdict.REJECTED])
def test_a_verdict_of_the_queue_resumes_the_graph(
    queue: SqlReviewQueue, saver: SqliteSaver, verdict: Verdict, caplog: pytest.LogCaptureFixture
) -> None:
    """The other way round: the queue tells which thread waits, and nothing is decided twice."""
    agent = agent_of(says(LYON), doubting(queue=queue), review="both", checkpointer=saver)
    ask(agent, config=THREAD)
    (item,) = queue.list().items
    decide = {
        Verdict.APPROVED: lambda: queue.approve(item.id, "bob"),
        Verdict.EDITED: lambda: queue.edit(item.id, "bob", "Paris"),
        Verdict.REJECTED: lambda: queue.reject(item.id, "bob", "no"),
    }
    decide[verdict]()
    ruling = queue.wait(item.id, 0)
    assert ruling is not None
    document = queue.get(item.id).document
    assert document is not None
    thread: Any = {"configurable": {"thread_id": document.metadata["thread_id"]}}
    state = agent.invoke(Command(resume=resume_with(ruling)), thread)
    wanted = {Verdict.APPROVED: LYON, Verdict.EDITED: "Paris", Verdict.REJECTED: REFUSAL}[verdict]
    assert state["messages"][-1].content == wanted
    assert caplog.records == []


def test_an_expired_item_resumes_as_rejected() -> None:
    """Nobody said that the answer may go out."""
    ruling = Ruling(review_id=ReviewId("r"), verdict=Verdict.EXPIRED, text="", by="clock", at=utc_now())
    assert resume_with(ruling) == {"type": "reject", "message": "", "by": "clock"}


def test_who_resumes_the_graph_has_decided(
    queue: SqlReviewQueue, saver: SqliteSaver, caplog: pytest.LogCaptureFixture
) -> None:
    """Two people disagree: the graph gives what it was told, the queue keeps what it was told, the log says so."""
    agent = agent_of(says(LYON), doubting(queue=queue), review="both", checkpointer=saver)
    review_id = ask(agent, config=THREAD)["semgrad"]["review_id"]
    queue.reject(review_id, "bob", "no")
    assert agent.invoke(Command(resume=APPROVE), THREAD)["messages"][-1].content == LYON
    assert queue.item(review_id).state is State.REJECTED
    assert "did not take the verdict 'approved'" in caplog.text


def test_a_queue_that_takes_no_verdicts_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A queue of the user's own need only submit and wait."""
    agent = agent_of(says(LYON), doubting(queue=MemoryQueue()), review="both", checkpointer=InMemorySaver())
    ask(agent, config=THREAD)
    assert agent.invoke(Command(resume=EDIT), THREAD)["messages"][-1].content == "Paris"
    assert "item-1 stays open" in caplog.text


def test_a_verdict_by_interrupt_alone_leaves_the_queue_alone(queue: SqlReviewQueue, saver: SqliteSaver) -> None:
    """The policy's queue was not asked."""
    agent = agent_of(says(LYON), doubting(queue=queue), review="interrupt", checkpointer=saver)
    ask(agent, config=THREAD)
    agent.invoke(Command(resume=APPROVE), THREAD)
    assert queue.counts().get(State.APPROVED, 0) == 0
