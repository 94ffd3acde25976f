"""Records in LangSmith: the real client against a server on this machine."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from urllib3 import Retry

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.flow import RUN_KEY, ExchangeId, Record, ReviewId, Ruling, Verdict, utc_now
from semgrad_guard.telemetry import LangSmithSink, RunRef, annotate_current_run, judged_within, post_verdict_feedback
from semgrad_guard.telemetry.langsmith import TRIES, Timing
from tests.records import make_attempt, make_record

if TYPE_CHECKING:
    from collections.abc import Iterator

langsmith = pytest.importorskip("langsmith")

AT_ONCE = Timing(first_s=0.0, again_s=0.001)
WHEN_CLOSED = Timing(first_s=3600.0)
"""For feedback on runs that the client sends in its own time: they are there when the sink is closed."""
NO_RETRY = Retry(0, raise_on_status=False)
HANDSHAKE = ("GET", "/info", b"")
"""What a client asks by itself when it is made: it says nothing."""
SECRET = "Xyzzy"  # noqa: S105 - a text to be looked for


@pytest.fixture(name="server")
def _server() -> Iterator[LoopbackLangSmith]:
    """LangSmith on this machine."""
    with LoopbackLangSmith() as server:
        yield server


@pytest.fixture(name="client")
def _client(server: LoopbackLangSmith) -> Iterator[langsmith.Client]:
    """The real client, which gives up at once where the server says no."""
    client = langsmith.Client(api_url=server.url, api_key="key", retry_config=NO_RETRY, timeout_ms=20_000)
    yield client
    client.close(timeout=0)


@pytest.fixture(name="sink")
def _sink(client: langsmith.Client) -> Iterator[LangSmithSink]:
    """A sink that waits for nothing."""
    sink = LangSmithSink(client, timing=AT_ONCE)
    yield sink
    sink.close(0.0)


@pytest.fixture(name="late_sink")
def _late_sink(client: langsmith.Client) -> Iterator[LangSmithSink]:
    """A sink that sends when it is closed."""
    sink = LangSmithSink(client, timing=WHEN_CLOSED)
    yield sink
    sink.close(0.0)


def record_of(run: object, name: str = "a1") -> Record:
    """Record of one attempt whose metadata says this about its run."""
    attempt = make_attempt(name, text=SECRET)
    metadata = {RUN_KEY: run} if run else {}
    return make_record(replace(attempt, exchange=replace(attempt.exchange, metadata=metadata)), text=SECRET)


def traced(
    server: LoopbackLangSmith, client: langsmith.Client, sink: LangSmithSink, name: str = "a1"
) -> tuple[str, str]:
    """Emit a record inside a guard's run beside an answer's run; return the ids of both."""
    with langsmith.tracing_context(enabled=True), langsmith.trace("chain", client=client, project_name="shop"):
        with langsmith.trace("answer", "llm") as answer:
            pass
        with langsmith.trace("guard") as guard:
            guard.add_tags(["mine", "semgrad:stale"])
            sink.emit(record_of({"run_id": str(answer.id)}, name))
    client.flush()
    assert server.wait_for(lambda: {str(answer.id), str(guard.id)} <= server.runs.keys())
    return str(answer.id), str(guard.id)


def test_the_guards_run_carries_decision_and_raw_scores(
    server: LoopbackLangSmith, client: langsmith.Client, late_sink: LangSmithSink
) -> None:
    """People read traces before they read logs."""
    _, guard = traced(server, client, late_sink)
    said = server.runs[guard]["extra"]["metadata"]
    assert said["semgrad_confidence"] == 0.9
    assert said["semgrad_action"] == "accept"
    assert said["semgrad_rule"] == "accept"
    assert said["semgrad_n_attempts"] == 1
    assert said["semgrad_profile"] == "rag"
    assert len([key for key in said if key.startswith("semgrad_")]) <= 8
    assert server.runs[guard]["tags"] == ["mine", "semgrad:abstained", "semgrad:accept"]


def test_the_answers_run_gets_the_confidence_as_feedback(
    server: LoopbackLangSmith, client: langsmith.Client, late_sink: LangSmithSink
) -> None:
    """The confidence belongs to the model call, where its evaluations are."""
    answer, guard = traced(server, client, late_sink)
    late_sink.close(20)
    (said,) = server.feedback.values()
    assert (said["key"], said["score"], said["run_id"]) == ("semgrad_confidence", 0.9, answer)
    assert said["trace_id"] == server.runs[answer]["trace_id"] != answer
    assert said["session_id"] == server.session_id("shop")
    assert said["feedback_source"]["type"] == "model"
    details = said["feedback_source"]["metadata"]
    assert details["__run"] == {"run_id": guard}
    assert details["signals"]["semgrad"] == 1.5e-7
    assert said["extend_trace_retention"] is False


def test_a_record_sent_twice_is_one_feedback(
    server: LoopbackLangSmith, client: langsmith.Client, sink: LangSmithSink
) -> None:
    """A retried post must not count an answer twice."""
    record = record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"})
    server.runs["x"] = {"session_name": "shop"}
    sink.emit(record)
    sink.emit(record)
    assert sink.drain(20)
    assert len([p for _, p, _ in server.requests if p == "/feedback"]) == 2
    assert len(server.feedback) == 1


def test_each_attempts_run_gets_its_own_confidence(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """After a retry two model calls were judged."""
    runs = [str(uuid.uuid4()), str(uuid.uuid4())]
    attempts = [
        replace(a, exchange=replace(a.exchange, metadata={RUN_KEY: {"run_id": run, "session_name": "shop"}}))
        for run, a in zip(runs, make_record().attempts, strict=True)
    ]
    server.runs["x"] = {"session_name": "shop"}
    sink.emit(make_record(*attempts))
    assert sink.drain(20)
    assert {f["run_id"]: f["score"] for f in server.feedback.values()} == dict(zip(runs, [0.4, 0.2], strict=True))


def test_without_a_run_under_way_the_record_becomes_a_run(server: LoopbackLangSmith, client: langsmith.Client) -> None:
    """LlamaIndex and plain Python have no LangSmith runs, but the same people look there."""
    sink = LangSmithSink(client, project="shop", timing=AT_ONCE)
    with langsmith.tracing_context(enabled=True):
        sink.emit(record_of(None))
        sink.emit(record_of(None))
    assert sink.drain(20)
    sink.close(0)
    (run,) = server.runs.values()
    assert (run["name"], run["session_name"]) == ("semgrad_guard", "shop")
    assert run["inputs"] == {"question": f"question {SECRET}"}
    assert run["extra"]["metadata"]["semgrad_n_attempts"] == 1
    (said,) = server.feedback.values()
    assert (said["run_id"], said["score"]) == (run["id"], 0.9)


def test_where_tracing_is_off_nothing_is_sent(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """An adapter knows run ids even when nobody records the runs."""
    with langsmith.tracing_context(enabled=False):
        sink.emit(record_of({"run_id": str(uuid.uuid4())}))
        sink.emit(record_of(None))
    assert sink.drain(20)
    assert [request for request in server.requests if request != HANDSHAKE] == []


def test_without_log_text_no_request_holds_the_text(server: LoopbackLangSmith, client: langsmith.Client) -> None:
    """`log_text: false` holds for everything that this package sends."""
    sink = LangSmithSink(client, log_text=False, timing=WHEN_CLOSED)
    traced(server, client, sink)
    with langsmith.tracing_context(enabled=True):
        sink.emit(replace(record_of(None, "b"), id=ExchangeId("b")))
    exchange = record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}).attempts[0].exchange
    sink.emit_verdict(_ruling(Verdict.EDITED), exchange)
    sink.close(20)
    assert len(server.feedback) == 3
    assert not [body for _, _, body in server.requests if SECRET.encode() in body]


@pytest.mark.parametrize("refused", [1, TRIES - 1])
def test_an_unknown_run_is_tried_again(refused: int) -> None:
    """Runs arrive in batches, often after the feedback on them."""

    class Late(LoopbackLangSmith):
        left = refused

        def answer(self, method: str, path: str, *sent: Any) -> tuple[int, object]:
            if path != "/feedback":
                return super().answer(method, path, *sent)
            self.status, self.left = (404, self.left - 1) if self.left else (200, 0)
            return super().answer(method, path, *sent)

    with Late() as server:
        server.runs["x"] = {"session_name": "shop"}
        client = langsmith.Client(api_url=server.url, api_key="key", retry_config=NO_RETRY)
        sink = LangSmithSink(client, timing=AT_ONCE)
        sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
        assert sink.drain(20)
        sink.close(0)
        client.close(timeout=0)
    assert (len(server.feedback), sink.failed, server.left) == (1, 0, 0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_says_no_costs_the_feedback_only(
    server: LoopbackLangSmith, sink: LangSmithSink, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of LangSmith must be no outage of the application, nor flood its log."""
    server.status = status
    for n in range(3):
        sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}, f"a{n}"))
    assert sink.drain(20)
    assert sink.failed == 3
    assert len([p for _, p, _ in server.requests if p.startswith("/sessions")]) == 3 * TRIES
    ours = [r for r in caplog.records if r.name == "semgrad_guard"]
    assert len(ours) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_refused_posts_leave_no_tracebacks_in_the_log(
    server: LoopbackLangSmith, sink: LangSmithSink, caplog: pytest.LogCaptureFixture
) -> None:
    """The client logs one for each failed post."""
    server.runs["x"] = {"session_name": "shop"}
    sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
    assert sink.drain(20)
    server.status = 500
    sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
    assert sink.drain(20)
    assert sink.failed == 1
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_refused_feedback_is_not_tried_again(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """A wrong key stays wrong."""
    server.status = 401
    sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
    assert sink.drain(20)
    assert (sink.failed, len([p for _, p, _ in server.requests if p.startswith("/sessions")])) == (1, 1)


def test_a_server_that_is_down_costs_the_feedback_only() -> None:
    """Nobody listens at all."""
    client = langsmith.Client(api_url="http://127.0.0.1:9", api_key="key", retry_config=NO_RETRY)
    sink = LangSmithSink(client, timing=AT_ONCE)
    start = time.monotonic()
    sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
    assert time.monotonic() - start < 1
    assert sink.drain(20)
    assert sink.failed == 1
    sink.close()
    client.close(timeout=0)


def test_a_server_that_hangs_delays_neither_answers_nor_the_end(
    server: LoopbackLangSmith, client: langsmith.Client
) -> None:
    """The feedback waits, nobody else."""
    server.hanging = True
    sink = LangSmithSink(client, capacity=10, timing=AT_ONCE)
    took = []
    for n in range(100):
        record = record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}, f"a{n}")
        start = time.monotonic()
        sink.emit(record)
        took.append(time.monotonic() - start)
    assert median(took) < 0.05  # a single one may be longer where the machine is busy
    assert max(took) < 2
    start = time.monotonic()
    sink.close(0.1)
    assert time.monotonic() - start < 1.0
    assert sink.dropped >= 98
    server.release()


def test_a_client_that_breaks_costs_the_feedback_only(caplog: pytest.LogCaptureFixture) -> None:
    """Not even an error in the client's code may reach the chain."""

    class Broken:
        api_url = "http://127.0.0.1:9"

        def read_project(self, **_: object) -> None:
            raise KeyError("project")

    sink = LangSmithSink(Broken(), timing=AT_ONCE)  # type: ignore[arg-type]
    sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}))
    assert sink.drain(20)
    sink.emit(None)  # type: ignore[arg-type]
    sink.close()
    assert sink.failed == 1
    assert len(caplog.records) == 2


def test_several_questions_of_one_call_are_told_apart(
    server: LoopbackLangSmith, client: langsmith.Client, late_sink: LangSmithSink
) -> None:
    """A batch is judged in one go, but each of its inputs has a run of its own."""
    trees = {
        ExchangeId(name): langsmith.RunTree(name=name, inputs={}, ls_client=client, session_name="shop")
        for name in "ab"
    }
    for tree in trees.values():
        tree.post()
    with judged_within(trees):
        for name in "ab":
            late_sink.emit(record_of(None, name))
    for tree in trees.values():
        tree.end()
        tree.patch()
    client.flush()
    late_sink.close(20)
    assert {f["run_id"] for f in server.feedback.values()} == {str(tree.id) for tree in trees.values()}
    assert [server.runs[str(t.id)]["extra"]["metadata"]["semgrad_confidence"] for t in trees.values()] == [0.9, 0.9]


def test_annotating_outside_a_run_says_so() -> None:
    """A caller may want to log elsewhere then."""
    assert not annotate_current_run(make_record())


def test_uncalibrated_answers_get_feedback_without_a_number(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """A raw score is no probability and must not look like one."""
    attempt = make_attempt("a1", None)
    server.runs["x"] = {"session_name": "p"}
    sink.emit(make_record(attempt))
    assert sink.drain(20)
    (said,) = server.feedback.values()
    assert said.get("score") is None
    assert said["feedback_source"]["metadata"]["score"] == 0.25


@pytest.mark.parametrize(
    ("verdict", "score", "correction", "comment"),
    [
        (Verdict.APPROVED, 1.0, None, None),
        (Verdict.EDITED, 0.0, {"answer": f"text {SECRET}"}, None),
        (Verdict.REJECTED, 0.0, None, f"text {SECRET}"),
    ],
)
def test_a_verdict_is_feedback_on_the_original_run(
    server: LoopbackLangSmith,
    client: langsmith.Client,
    verdict: Verdict,
    score: float,
    correction: object,
    comment: object,
) -> None:
    """What people decided is the label that LangSmith's own tools learn from."""
    run = str(uuid.uuid4())
    exchange = record_of({"run_id": run, "trace_id": run, "session_name": "shop"}).attempts[0].exchange
    server.runs["x"] = {"session_name": "shop"}
    assert post_verdict_feedback(_ruling(verdict), exchange, client=client)
    assert post_verdict_feedback(_ruling(verdict), exchange, client=client)
    (said,) = server.feedback.values()
    assert (said["key"], said["run_id"], said["score"], said["value"]) == ("semgrad_verdict", run, score, verdict.value)
    assert (said.get("correction"), said.get("comment")) == (correction, comment)
    assert said["session_id"] == server.session_id("shop")


def test_no_verdict_no_feedback(server: LoopbackLangSmith, client: langsmith.Client) -> None:
    """Nobody decided, or nobody knows where."""
    known = record_of({"run_id": str(uuid.uuid4())}).attempts[0].exchange
    unknown = record_of(None).attempts[0].exchange
    assert not post_verdict_feedback(_ruling(Verdict.EXPIRED), known, client=client)
    assert not post_verdict_feedback(_ruling(Verdict.APPROVED), unknown, client=client)
    assert [request for request in server.requests if request != HANDSHAKE] == []


def test_a_verdict_that_langsmith_refuses_is_no_error(
    server: LoopbackLangSmith, client: langsmith.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The verdict stands, whether it is seen in LangSmith or not."""
    server.status = 403
    exchange = record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}).attempts[0].exchange
    assert not post_verdict_feedback(_ruling(Verdict.APPROVED), exchange, client=client)
    assert "was not posted" in caplog.text


def test_many_threads_share_one_sink(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """Requests end at the same time."""
    server.runs["x"] = {"session_name": "shop"}

    def emit(k: int) -> None:
        for n in range(5):
            sink.emit(record_of({"run_id": str(uuid.uuid4()), "session_name": "shop"}, f"{k}-{n}"))

    threads = [threading.Thread(target=emit, args=(k,)) for k in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sink.drain(20)
    assert len(server.feedback) == 40


def test_ids_that_are_no_ids_are_ignored() -> None:
    """`run` may be a word of the caller's own."""
    for said in ("x", {"run_id": "x"}, {"run_id": 7}, 3, None, []):
        assert RunRef.of(record_of(said).attempts[0].exchange) is None


def _ruling(verdict: Verdict) -> Ruling:
    return Ruling(review_id=ReviewId("r1"), verdict=verdict, text=f"text {SECRET}", by="ann", at=utc_now())
