"""A person inside a workflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.workflow import Context, JsonSerializer
from pydantic import BaseModel

from llama_index_semgrad import (
    GuardedAnswerEvent,
    ReviewNeededEvent,
    ReviewWorkflow,
    SemGradGuard,
    VerdictEvent,
)
from semgrad_guard.flow import Abstain, HumanReview
from tests.adapters.llama_index.index_and_llm import QUESTION, ScriptedLLM, index, llm
from tests.fakes import LadderDecider, MemoryQueue, guard_of

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
WAIT = "A person will answer this."


class Discoverer(BaseModel):
    """A structured answer."""

    name: str


def workflow(model: ScriptedLLM, queue: MemoryQueue | None = None) -> ReviewWorkflow:
    """Return a workflow whose policy hands doubtful answers to a person."""
    decider = LadderDecider([HumanReview(message=WAIT)], otherwise=Abstain(message="no"))
    guard = guard_of(scores={GOOD: 0.1, BAD: 0.9}, decider=decider, queue=queue)
    return ReviewWorkflow(SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=model, similarity_top_k=2)))


def structured(*steps: Any) -> ReviewWorkflow:
    """Return a workflow around an engine that gives objects, all of them doubtful."""
    guard = guard_of(default=0.9, decider=LadderDecider(steps, otherwise=Abstain(message="no")))
    engine = index().as_query_engine(llm=llm('{"name": "Einstein"}'), output_cls=Discoverer)
    return ReviewWorkflow(SemGradGuard(guard=guard).wrap(engine))


async def until_review(handler: Any) -> ReviewNeededEvent:
    """Return the event that asks the person."""
    async for event in handler.stream_events():
        if isinstance(event, ReviewNeededEvent):
            return event
    pytest.fail("nobody was asked")


async def test_a_confident_answer_ends_the_workflow() -> None:
    """Nobody is asked."""
    result = await workflow(llm(GOOD)).run(question=QUESTION)
    assert isinstance(result, GuardedAnswerEvent)
    assert (result.text, result.status) == (GOOD, "answered")
    assert result.semgrad["confidence"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("verdict", "text", "expected", "status"),
    [
        ("approved", "", BAD, "reviewed"),
        ("edited", "Marie and Pierre Curie.", "Marie and Pierre Curie.", "reviewed"),
        ("rejected", "wrong", "I do not know.", "abstained"),
    ],
)
async def test_a_person_decides(verdict: Any, text: str, expected: str, status: str) -> None:
    """What the person says is what the user gets."""
    handler = workflow(llm(BAD)).run(question=QUESTION)
    asked = await until_review(handler)
    assert (asked.answer, asked.question, asked.message, len(asked.passages)) == (BAD, QUESTION, WAIT, 2)
    handler.ctx.send_event(VerdictEvent(review_id=asked.review_id, verdict=verdict, text=text, by="ada"))
    result = await handler
    assert (result.text, result.status, result.reviewed_by) == (expected, status, "ada")
    found = result.semgrad
    assert (found["status"], found["verdict"], found["withheld"]) == (status, verdict, verdict == "rejected")


async def test_it_sleeps_as_json_and_goes_on_without_writing_or_scoring_again() -> None:
    """A person may come tomorrow, to another process."""
    model = llm(BAD)
    first = workflow(model)
    handler = first.run(question=QUESTION)
    asked = await until_review(handler)
    asleep = json.dumps(handler.ctx.to_dict(serializer=JsonSerializer()))
    await handler.cancel_run()

    other = llm("never written")
    second = workflow(other)
    awake = second.run(ctx=Context.from_dict(second, json.loads(asleep), serializer=JsonSerializer()))
    awake.ctx.send_event(VerdictEvent(review_id=asked.review_id, verdict="approved"))
    assert (await awake).text == BAD
    assert len(model.prompts) == 1
    assert other.prompts == []


async def test_a_verdict_on_something_else_is_passed_over() -> None:
    """A late click must not release another answer."""
    handler = workflow(llm(BAD)).run(question=QUESTION)
    asked = await until_review(handler)
    handler.ctx.send_event(VerdictEvent(review_id="another", verdict="approved"))
    handler.ctx.send_event(VerdictEvent(review_id=asked.review_id, verdict="rejected"))
    assert (await handler).text == "I do not know."


async def test_the_person_is_asked_in_one_place() -> None:
    """An item in the queue as well would wait there for ever."""
    queue = MemoryQueue()
    handler = workflow(llm(BAD), queue).run(question=QUESTION)
    asked = await until_review(handler)
    handler.ctx.send_event(VerdictEvent(review_id=asked.review_id, verdict="approved"))
    await handler
    assert queue.items == []


async def test_an_object_that_is_held_back_ends_the_workflow_with_the_message() -> None:
    """The engine raises, because the message has no place in an object; the workflow's own event has one."""
    result = await structured().run(question=QUESTION)
    assert (result.text, result.status, result.semgrad["withheld"]) == ("no", "abstained", True)


async def test_a_person_is_asked_about_an_object_by_its_text() -> None:
    """What is approved is what the model wrote."""
    handler = structured(HumanReview(message=WAIT)).run(question=QUESTION)
    asked = await until_review(handler)
    assert (asked.message, asked.answer) == (WAIT, '{"name": "Einstein"}')
    handler.ctx.send_event(VerdictEvent(review_id=asked.review_id, verdict="approved"))
    assert (await handler).text == '{"name": "Einstein"}'
