"""Records emitted inside LangChain runs that LangChain's own tracer sends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.flow import RUN_KEY
from semgrad_guard.telemetry import LangSmithSink
from semgrad_guard.telemetry.langsmith_sink import Timing
from tests.records import make_attempt, make_record

langsmith = pytest.importorskip("langsmith")
fake_chat_models = pytest.importorskip("langchain_core.language_models.fake_chat_models")
runnables = pytest.importorskip("langchain_core.runnables")
tracers = pytest.importorskip("langchain_core.tracers")

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.messages import AIMessage
    from langchain_core.runnables import Runnable, RunnableConfig


def guarded(sink: LangSmithSink) -> Runnable[str, AIMessage]:
    """Chain of a model and of a step that emits a record as a guard does."""

    def guard(answer: AIMessage) -> AIMessage:
        run_id = str(answer.id).removeprefix("lc_run--")[:36]
        attempt = make_attempt(run_id)
        exchange = replace(attempt.exchange, metadata={RUN_KEY: {"run_id": run_id}})
        sink.emit(make_record(replace(attempt, exchange=exchange)))
        return answer

    async def aguard(answer: AIMessage) -> AIMessage:
        return await asyncio.to_thread(guard, answer)

    return fake_chat_models.FakeListChatModel(responses=["Paris"]) | runnables.RunnableLambda(
        guard, aguard, name="guard"
    )


async def stream(chain: Runnable[str, AIMessage], config: RunnableConfig) -> list[Any]:
    """Everything that the chain streams."""
    return [chunk async for chunk in chain.astream("q", config)]


USES: dict[str, Callable[[Runnable[str, AIMessage], RunnableConfig], Any]] = {
    "invoke": lambda chain, config: chain.invoke("q", config),
    "batch": lambda chain, config: chain.batch(["q", "r", "s"], config),
    "stream": lambda chain, config: list(chain.stream("q", config)),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke("q", config)),
    "abatch": lambda chain, config: asyncio.run(chain.abatch(["q", "r", "s"], config)),
    "astream": lambda chain, config: asyncio.run(stream(chain, config)),
}


@pytest.mark.parametrize("use", USES)
def test_guard_and_model_runs_say_the_confidence_however_the_chain_is_called(use: str) -> None:
    """Traces of asynchronous and streaming chains are read as well."""
    with LoopbackLangSmith() as server:
        client = langsmith.Client(api_url=server.url, api_key="key")
        sink = LangSmithSink(timing=Timing(first_s=0.0, again_s=0.05))
        USES[use](guarded(sink), {"callbacks": [tracers.LangChainTracer(client=client, project_name="shop")]})
        client.flush()
        assert sink.drain(20)
        runs = list(server.runs.values())
        guards = [run for run in runs if run["name"] == "guard"]
        models = {run["id"]: run for run in runs if run["name"] == "FakeListChatModel"}
        assert guards
        assert all(run["extra"]["metadata"]["semgrad_confidence"] == 0.9 for run in guards)
        assert all("semgrad:accept" in run["tags"] for run in guards)
        assert {f["run_id"] for f in server.feedback.values()} == models.keys()
        for feedback in server.feedback.values():
            assert feedback["trace_id"] == models[feedback["run_id"]]["trace_id"]
            assert feedback["session_id"] == server.session_id("shop")
        sink.close(0)
        client.close(timeout=0)
