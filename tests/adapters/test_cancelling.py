"""Cancelling a task ends its scoring, by whatever door of an adapter the guard was asked."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from semgrad_guard.errors import ScoringError
from semgrad_guard.guard import Guard
from tests.fakes import MemorySink, TableScorer, guard_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from semgrad_guard.flow import Exchange, Score

    Asking = Coroutine[Any, Any, object]


@dataclass
class UntilCancelled(TableScorer):
    """Scores until it is told to stop."""

    begun: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    @override
    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        self.begun.set()
        if cancel is not None and cancel.wait(20):
            self.stopped.set()
        msg = "scoring stopped early"
        raise ScoringError(msg)

    @override
    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        return [self.score(exchange, cancel=cancel) for exchange in exchanges]


async def _read(pieces: AsyncIterator[Any]) -> None:
    async for _ in pieces:
        pass


def _langchain(door: str, guard: Guard) -> Asking:
    chains = pytest.importorskip("tests.adapters.langchain.chains")
    adapter = pytest.importorskip("langchain_semgrad")
    last = chains.echo() | adapter.SemGradGuard(guard=guard)
    annotating = adapter.SemGradGuard(guard=guard, stream="annotate")
    wrapped = adapter.SemGradGuard(guard=guard).wrap(chains.echo())
    doors: dict[str, Callable[[], Asking]] = {
        "invoke": lambda: last.ainvoke("p"),
        "batch": lambda: last.abatch(["p", "q"]),
        "stream": lambda: _read(last.astream("p")),
        "annotated stream": lambda: _read((chains.echo() | annotating).astream("p")),
        "wrapped invoke": lambda: wrapped.ainvoke("p"),
        "wrapped batch": lambda: wrapped.abatch(["p", "q"]),
        "wrapped annotated stream": lambda: _read(annotating.wrap(chains.echo()).astream("p")),
    }
    return doors[door]()


def _langgraph(door: str, guard: Guard) -> Asking:
    agents = pytest.importorskip("tests.adapters.langchain.agents")
    adapter = pytest.importorskip("langchain_semgrad")
    message = {"messages": [agents.HumanMessage("p")]}
    if door == "agent":
        return agents.agent_of(agents.says("good"), guard).ainvoke(message)
    answered = {"messages": [*message["messages"], agents.AIMessage("good", id="1")]}
    return adapter.SemGradNode(guard=guard).ainvoke(answered)


def _llama_index(door: str, guard: Guard) -> Asking:
    setup = pytest.importorskip("tests.adapters.llama_index.index_and_llm")
    adapter = pytest.importorskip("llama_index_semgrad")
    chats = pytest.importorskip("tests.adapters.llama_index.test_chat_engine")
    passing_on, holding = adapter.SemGradGuard(guard=guard, stream="annotate"), adapter.SemGradGuard(guard=guard)

    def query_engine(**how: Any) -> Any:
        return setup.index().as_query_engine(llm=setup.llm("good"), use_async=True, **how)

    def chat_engine() -> Any:
        return chats.context(setup.llm("good", is_chat=True))

    async def passing(asked: Asking) -> None:
        reply: Any = await asked
        await _read(reply.async_response_gen())

    doors: dict[str, Callable[[], Asking]] = {
        "query": lambda: holding.wrap(query_engine()).aquery("p"),
        "chat": lambda: holding.wrap(chat_engine()).achat("p"),
        "annotated query": lambda: passing(passing_on.wrap(query_engine(streaming=True)).aquery("p")),
        "annotated chat": lambda: passing(passing_on.wrap(chat_engine()).astream_chat("p")),
        "evaluator": lambda: adapter.SemGradEvaluator(guard=guard).aevaluate("p", "good", ["a passage"]),
    }
    return doors[door]()


LANGCHAIN = (
    "invoke",
    "batch",
    "stream",
    "annotated stream",
    "wrapped invoke",
    "wrapped batch",
    "wrapped annotated stream",
)
DOORS = [
    *((_langchain, door) for door in LANGCHAIN),
    *((_langgraph, door) for door in ("agent", "node")),
    *((_llama_index, door) for door in ("query", "chat", "annotated query", "annotated chat", "evaluator")),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("adapter", "door"), DOORS)
async def test_cancelling_a_task_stops_its_scoring(adapter: Callable[[str, Guard], Asking], door: str) -> None:
    """The event has a long way through an adapter, and each door hands it on itself."""
    scorer, sink = UntilCancelled(), MemorySink()
    guard = Guard(replace(guard_of(sink=sink).parts, scorer=scorer))
    task = asyncio.create_task(adapter(door, guard))
    assert await asyncio.to_thread(scorer.begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(scorer.stopped.wait, 20)
    assert sink.records == []
