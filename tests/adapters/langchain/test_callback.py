"""Observing: every answer is judged and logged, and nothing is changed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_semgrad import SemGradCallbackHandler
from semgrad_guard.adapter_kit import BackgroundJudge
from semgrad_guard.errors import EmptyAnswerError, UncalibratedError
from semgrad_guard.flow import HumanReview, Status
from tests.adapters.langchain.chains import LYON, PROMPT, asked, echo, model_of, seen_by
from tests.adapters.langchain.rag import Facts, Reader, rag
from tests.fakes import LadderDecider, MemoryQueue, MemorySink, TableScorer, guard_of

if TYPE_CHECKING:
    from semgrad_guard.flow import Record
    from semgrad_guard.guard import Guard


def observe(handler: SemGradCallbackHandler) -> Any:
    """Config that brings a handler into a call."""
    return {"callbacks": [handler], "tags": ["beta"], "metadata": {"tenant": 7}}


@pytest.mark.parametrize("background", [True, False])
def test_a_doubtful_answer_is_logged_and_given_as_it_is(guard: Guard, background: bool) -> None:
    """Observing comes first; enforcing may come later."""
    handler = SemGradCallbackHandler(guard=guard, background=background)
    answer = (PROMPT | model_of(LYON)).invoke({"question": "Capital?"}, observe(handler))
    assert handler.flush(5)
    (record,) = handler.records
    assert answer.content == LYON
    assert "semgrad" not in answer.response_metadata
    assert (record.status, record.text, record.attempts[0].decision.rule) == (Status.ANSWERED, LYON, "otherwise")
    exchange = record.attempts[0].exchange
    assert (asked(exchange), exchange.question) == ("Answer briefly. Capital?", "Capital?")
    assert exchange.tags == {"beta"}
    assert exchange.metadata["tenant"] == 7


@pytest.mark.parametrize("background", [True, False])
async def test_every_way_of_calling_is_observed(guard: Guard, background: bool) -> None:
    """Streams give chunks, batches many runs, async other threads: the record is always the same."""
    handler = SemGradCallbackHandler(guard=guard, background=background)
    chain, config = PROMPT | echo() | StrOutputParser(), observe(handler)
    chain.invoke({"question": "1"}, config)
    chain.batch([{"question": "2"}, {"question": "3"}], config)
    assert "".join(chain.stream({"question": "4"}, config)) == "re: Answer briefly. 4"
    await chain.ainvoke({"question": "5"}, config)
    await chain.abatch([{"question": "6"}, {"question": "7"}], config)
    assert "".join([c async for c in chain.astream({"question": "8"}, config)]) == "re: Answer briefly. 8"
    assert handler.flush(5)
    exchanges = [r.attempts[0].exchange for r in handler.records]
    assert sorted(e.answer for e in exchanges) == [f"re: Answer briefly. {i}" for i in range(1, 9)]
    assert all(e.answer == f"re: {asked(e)}" and asked(e) == f"Answer briefly. {e.question}" for e in exchanges)


def test_a_real_stream_is_judged_once_it_is_whole(guard: Guard) -> None:
    """Each token alone says nothing."""
    handler = SemGradCallbackHandler(guard=guard)
    model = GenericFakeChatModel(messages=iter([AIMessage("Paris is the capital")]))
    assert len(list((PROMPT | model).stream({"question": "?"}, observe(handler)))) > 1
    assert handler.flush(5)
    assert [r.text for r in handler.records] == ["Paris is the capital"]


def test_a_model_called_without_a_chain_is_observed_too(guard: Guard) -> None:
    """People also call models directly."""
    handler = SemGradCallbackHandler(guard=guard)
    model_of("Paris").invoke("Capital?", observe(handler))
    FakeListLLM(responses=["Rome"]).invoke("And Italy?", observe(handler))
    (PromptTemplate.from_template("{q}") | FakeListLLM(responses=["Oslo"])).invoke({"q": "Norway?"}, observe(handler))
    assert handler.flush(5)
    assert [(asked(s), s.answer) for s in seen_by(guard)] == [
        ("Capital?", "Paris"),
        ("And Italy?", "Rome"),
        ("Norway?", "Oslo"),
    ]


def test_what_the_chain_retrieved_goes_along(guard: Guard) -> None:
    """Grounding is judged by the passages."""
    handler = SemGradCallbackHandler(guard=guard)
    rag(Facts(), Reader()).invoke("How many?", observe(handler))
    assert handler.flush(5)
    assert [p.text for p in seen_by(guard)[0].passages] == ["Fact 0.", "Fact 1."]


def test_nothing_is_handed_to_a_person() -> None:
    """A queue full of answers that were given anyway would be work for nothing."""
    queue = MemoryQueue()
    guard = guard_of(default=0.9, decider=LadderDecider([HumanReview(message="Wait.")]), queue=queue)
    handler = SemGradCallbackHandler(guard=guard, background=False)
    model_of("Paris").invoke("?", observe(handler))
    assert handler.records[0].attempts[0].decision.rule == "escalate[0].human_review"
    assert queue.items == []


def test_records_reach_the_sink_and_the_hook() -> None:
    """The policy's telemetry works as everywhere."""
    sink, got = MemorySink(), list["Record"]()
    handler = SemGradCallbackHandler(guard=guard_of(sink=sink), background=False, on_record=got.append)
    model_of("Paris").invoke("?", observe(handler))
    assert sink.records == got == list(handler.records)


@pytest.mark.parametrize("error", [EmptyAnswerError(), RuntimeError("CUDA is gone")])
def test_an_answer_that_cannot_be_judged_is_logged_as_such(error: Exception) -> None:
    """A failure is a fact about the answer."""
    handler = SemGradCallbackHandler(guard=guard_of(scores={"Paris": error}), background=False)
    assert model_of("Paris").invoke("?", observe(handler)).content == "Paris"
    assert handler.records[0].failures[0].type == type(error).__name__


def test_an_observer_that_fails_is_never_noticed(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    """Its hook, the policy's `error` mode and its own mistakes stay in the log."""

    def fail(_: object) -> None:
        msg = "no"
        raise UncalibratedError(msg)

    handler = SemGradCallbackHandler(guard=guard, background=False, on_record=fail)
    assert model_of("Paris").invoke("?", observe(handler)).content == "Paris"
    assert "UncalibratedError" in caplog.text


def test_requests_for_tools_are_left_out(guard: Guard) -> None:
    """They are no answers."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    handler = SemGradCallbackHandler(guard=guard, background=False)
    GenericFakeChatModel(messages=iter([call])).invoke("?", observe(handler))
    assert list(handler.records) == []


def test_answers_never_wait_for_the_judging() -> None:
    """A slow scorer must not be felt; what is too much is dropped and counted."""
    release, judging = threading.Event(), threading.Event()

    class Slow(TableScorer):
        def score(self, exchange: Any, **limits: Any) -> Any:
            judging.set()
            release.wait(10)
            return super().score(exchange, **limits)

    guard = guard_of()
    object.__setattr__(guard.parts, "scorer", Slow())
    handler = SemGradCallbackHandler(guard=guard)
    handler._background = BackgroundJudge(2, "test observer")
    model_of("1").invoke("?", observe(handler))
    judging.wait(5)
    for i in range(2, 6):
        model_of(str(i)).invoke("?", observe(handler))
    assert (len(handler.records), handler.dropped) == (0, 2)
    assert not handler.flush(0.01)
    release.set()
    assert handler.flush(5)
    assert [r.text for r in handler.records] == ["1", "2", "3"]


def test_a_model_that_fails_leaves_no_prompt_behind(guard: Guard) -> None:
    """A leak would grow with every error."""
    handler = SemGradCallbackHandler(guard=guard)
    with pytest.raises(IndexError):
        (PROMPT | model_of()).invoke({"question": "?"}, observe(handler))
    assert not handler._calls
