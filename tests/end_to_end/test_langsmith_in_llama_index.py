"""Records of guarded LlamaIndex engines in LangSmith, which knows nothing of LlamaIndex' own runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.telemetry import LangSmithSink
from semgrad_guard.telemetry.langsmith_sink import Timing
from tests.fakes import guard_of

langsmith = pytest.importorskip("langsmith")
adapter = pytest.importorskip("llama_index_semgrad")
world = pytest.importorskip("tests.adapters.llama_index.world")

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = "Marie Curie."


@pytest.fixture(name="server")
def _server() -> Iterator[LoopbackLangSmith]:
    """LangSmith on this machine."""
    with LoopbackLangSmith() as server:
        yield server


@pytest.fixture(name="client")
def _client(server: LoopbackLangSmith) -> Iterator[langsmith.Client]:
    """The real client."""
    client = langsmith.Client(api_url=server.url, api_key="key")
    yield client
    client.close(timeout=0)


def test_a_guarded_query_is_a_run_of_its_own(server: LoopbackLangSmith, client: langsmith.Client) -> None:
    """Nothing traces LlamaIndex, so the guard's record makes the run."""
    sink = LangSmithSink(client, project="shop", timing=Timing(first_s=0.0, again_s=0.01))
    engine = world.index().as_query_engine(llm=world.llm(GOOD))
    guarded = adapter.SemGradGuard(guard=guard_of(scores={GOOD: 0.1}, sink=sink)).wrap(engine)
    with langsmith.tracing_context(enabled=True):
        guarded.query(world.QUESTION)
    assert sink.drain(20)
    sink.close(0)
    (run,) = server.runs.values()
    (feedback,) = server.feedback.values()
    assert (run["name"], run["inputs"], run["outputs"]) == (
        "semgrad_guard",
        {"question": world.QUESTION},
        {"output": GOOD},
    )
    assert (feedback["run_id"], feedback["score"]) == (run["id"], 0.9)


def test_a_guarded_query_in_a_traced_function_is_told_on_its_run(
    server: LoopbackLangSmith, client: langsmith.Client
) -> None:
    """`traceable` is how people trace what LangSmith does not know."""
    sink = LangSmithSink(timing=Timing(first_s=0.0, again_s=0.01))
    engine = world.index().as_query_engine(llm=world.llm(GOOD))
    guarded = adapter.SemGradGuard(guard=guard_of(scores={GOOD: 0.1}, sink=sink)).wrap(engine)

    @langsmith.traceable(client=client, project_name="shop")
    def ask(question: str) -> str:
        return str(guarded.query(question))

    with langsmith.tracing_context(enabled=True):
        assert ask(world.QUESTION) == GOOD
    client.flush()
    assert sink.drain(20)
    sink.close(0)
    (run,) = server.runs.values()
    (feedback,) = server.feedback.values()
    assert (run["name"], run["extra"]["metadata"]["semgrad_confidence"]) == ("ask", 0.9)
    assert (feedback["run_id"], feedback["session_id"]) == (run["id"], server.session_id("shop"))
