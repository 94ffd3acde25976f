"""Guarded LlamaIndex engines in LangSmith: LlamaIndex makes no runs there, so the guard's record finds or makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.telemetry import LangSmithSink
from semgrad_guard.telemetry.langsmith import Timing
from tests.fakes import guard_of

langsmith = pytest.importorskip("langsmith")
instrumentation = pytest.importorskip("llama_index.core.instrumentation")
adapter = pytest.importorskip("llama_index_semgrad")
watcher = pytest.importorskip("llama_index_semgrad.watcher")
world = pytest.importorskip("tests.adapters.llama_index.index_and_llm")

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = "Marie Curie."
own_loop = world._own_loop


@pytest.fixture(name="server")
def _server() -> Iterator[LoopbackLangSmith]:
    """LangSmith on this machine."""
    with LoopbackLangSmith() as server:
        yield server


@pytest.fixture(name="client")
def _client(server: LoopbackLangSmith) -> Iterator[Any]:
    """The real client."""
    client = langsmith.Client(api_url=server.url, api_key="key")
    yield client
    client.close(timeout=0)


@pytest.fixture(name="sink")
def _sink(client: Any) -> Iterator[LangSmithSink]:
    """A sink on that client; it sends when it is closed, and by then the runs are there."""
    sink = LangSmithSink(client=client, project="shop", timing=Timing(first_s=3600.0))
    yield sink
    sink.close(0)


def engine(sink: LangSmithSink) -> Any:
    """Return a guarded engine that logs there."""
    return adapter.SemGradGuard(guard=guard_of(scores={GOOD: 0.1}, sink=sink)).wrap(
        world.index().as_query_engine(llm=world.llm(GOOD))
    )


def check(server: LoopbackLangSmith, client: Any, sink: LangSmithSink) -> None:
    """Check that one run says the confidence, and that feedback was posted on it."""
    client.flush()
    sink.close(20)
    assert (sink.dropped, sink.failed) == (0, 0)
    (run,) = server.runs.values()
    said = run["extra"]["metadata"]
    assert (said["semgrad_status"], said["semgrad_rule"]) == ("answered", "accept")
    assert said["semgrad_confidence"] == pytest.approx(0.9)
    (feedback,) = server.feedback.values()
    assert (feedback["run_id"], feedback["key"]) == (run["id"], "semgrad_confidence")


def test_a_query_inside_a_traced_function(server: LoopbackLangSmith, client: Any, sink: LangSmithSink) -> None:
    """The function's run says how sure the guard was."""
    guarded = engine(sink)

    @langsmith.traceable(client=client, project_name="shop")
    def ask(question: str) -> str:
        return str(guarded.query(question))

    with langsmith.tracing_context(enabled=True):
        assert ask(world.QUESTION) == GOOD
    check(server, client, sink)


async def test_an_async_query_inside_a_traced_function(
    server: LoopbackLangSmith, client: Any, sink: LangSmithSink
) -> None:
    """The guard works in another thread, and the run is still found."""
    guarded = engine(sink)

    @langsmith.traceable(client=client, project_name="shop")
    async def ask(question: str) -> str:
        return str(await guarded.aquery(question))

    with langsmith.tracing_context(enabled=True):
        assert await ask(world.QUESTION) == GOOD
    check(server, client, sink)


def test_a_query_without_a_traced_function(server: LoopbackLangSmith, client: Any, sink: LangSmithSink) -> None:
    """With tracing on, the record is a run of its own."""
    with langsmith.tracing_context(enabled=True):
        assert str(engine(sink).query(world.QUESTION)) == GOOD
    client.flush()
    sink.close(20)
    assert (sink.dropped, sink.failed) == (0, 0)
    (run,) = server.runs.values()
    assert run["extra"]["metadata"]["semgrad_confidence"] == pytest.approx(0.9)


def test_an_observed_answer(server: LoopbackLangSmith, client: Any, sink: LangSmithSink) -> None:
    """Who only listens has the confidence in the same place."""
    root, listening = instrumentation.get_dispatcher(), watcher.WATCHER.listeners
    before, listeners = list(root.event_handlers), list(listening)
    root.add_event_handler(adapter.SemGradEventHandler(guard=guard_of(scores={GOOD: 0.1}, sink=sink)))
    plain = world.index().as_query_engine(llm=world.llm(GOOD))

    @langsmith.traceable(client=client, project_name="shop")
    def ask(question: str) -> str:
        return str(plain.query(question))

    try:
        with langsmith.tracing_context(enabled=True):
            assert ask(world.QUESTION) == GOOD
    finally:
        root.event_handlers[:] = before
        listening[:] = listeners
    check(server, client, sink)


def test_a_server_that_is_down_delays_no_answer(server: LoopbackLangSmith, client: Any, sink: LangSmithSink) -> None:
    """Logging must not cost the caller the answer."""
    server.hanging = True
    guarded = engine(sink)

    @langsmith.traceable(client=client, project_name="shop")
    def ask(question: str) -> str:
        return str(guarded.query(question))

    with langsmith.tracing_context(enabled=True):
        assert ask(world.QUESTION) == GOOD
    server.hanging = False
    server.release()
    client.flush()
