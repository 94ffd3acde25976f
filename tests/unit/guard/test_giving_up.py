"""A question whose caller is gone ends where it is."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.flow import Exchange, Record
from semgrad_guard.guard import Guard, in_thread
from semgrad_guard.guard.assembly import LazyScorer
from semgrad_guard.scoring import SemGradScorer
from tests.fakes import LadderDecider, guard_of
from tests.models_for_tests import in_use, local_model

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


EXCHANGE = Exchange(prompt="p", answer="good")


class Seen:
    """A real scorer whose model another thread holds, and what becomes of its work."""

    def __init__(self) -> None:
        self.inner = SemGradScorer(local_model())
        self.begun, self.records = threading.Event(), list[Record]()
        self.name = "seen"

    def fingerprint(self, *, proxy: bool = False) -> Any:
        return self.inner.fingerprint(proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Any:
        self.begun.set()
        return self.inner.score(exchange, timeout_s=timeout_s, cancel=cancel)

    def score_batch(
        self, exchanges: Any, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Any:
        self.begun.set()
        return self.inner.score_batch(exchanges, timeout_s=timeout_s, cancel=cancel)

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


class Asked(LadderDecider):
    """A policy that notes whether it was asked."""

    asked = False

    def decide_failure(self, *args: Any) -> Any:
        self.asked = True
        return super().decide_failure(*args)


def guard_with(seen: Seen, decider: Asked) -> Guard:
    return Guard(replace(guard_of(decider=decider).parts, scorer=LazyScorer("seen", lambda: seen), sink=seen))


def in_langchain(guard: Guard) -> Coroutine[Any, Any, object]:
    """Ask a chain whose last link is the guard."""
    models = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    adapter = pytest.importorskip("langchain_semgrad")
    chain = models.FakeListChatModel(responses=["good"]) | adapter.SemGradGuard(guard=guard)
    called: Coroutine[Any, Any, object] = chain.ainvoke("p")
    return called


def in_llama_index(guard: Guard) -> Coroutine[Any, Any, object]:
    """Let the guard evaluate an answer."""
    adapter = pytest.importorskip("llama_index_semgrad")
    called: Coroutine[Any, Any, object] = adapter.SemGradEvaluator(guard=guard).aevaluate("p", "good", ["a passage"])
    return called


CALLS: dict[str, Callable[[Guard], Coroutine[Any, Any, object]]] = {
    "run": lambda guard: guard.arun(EXCHANGE),
    "judge": lambda guard: guard.ajudge(EXCHANGE),
    "batch": lambda guard: in_thread(lambda cancel: guard.run_batch([EXCHANGE] * 3, cancel=cancel)),
    "LangChain": in_langchain,
    "LlamaIndex": in_llama_index,
}


async def cancelled(call: Coroutine[Any, Any, object], begun: threading.Event) -> None:
    """Cancel a call whose scoring has begun."""
    task = asyncio.create_task(call)
    assert await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_cancelled_question_leaves_nothing_running_and_no_step_follows(
    call: Callable[[Guard], Coroutine[Any, Any, object]],
) -> None:
    """The model is free for those who still wait; nobody is asked to review what nobody reads."""
    seen, decider = Seen(), Asked()
    with in_use(seen.inner.model):
        asyncio.run(cancelled(call(guard_with(seen, decider)), seen.begun))  # returns when the threads have ended
    assert seen.records == []
    assert not decider.asked


@pytest.mark.timeout(60)
def test_a_question_that_somebody_waits_for_goes_on() -> None:
    """One caller's giving up is no other's business."""
    seen = Seen()
    guard = guard_with(seen, Asked())

    async def one_of_two() -> object:
        with in_use(seen.inner.model):
            other = asyncio.create_task(guard.arun(EXCHANGE))
            assert await asyncio.to_thread(seen.begun.wait, 20)
            seen.begun.clear()
            await cancelled(guard.arun(EXCHANGE), seen.begun)
        return await other

    assert asyncio.run(one_of_two()) is not None
    assert len(seen.records) == 1
