"""The guard as the last parser of a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticToolsParser, StrOutputParser
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from langchain_semgrad import SemGradOutputParser
from semgrad_guard.errors import LowConfidenceError, OptionError, PromptNotFoundError
from semgrad_guard.flow import AnswerWithWarning
from tests.adapters.langchain.chains import PROMPT, REFUSAL, asked, model_of, seen_by
from tests.fakes import LadderDecider, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

GOOD, BAD = '{"city": "Paris", "sure": true}', '{"city": "Lyon", "sure": true}'


class City(BaseModel):
    """A city."""

    city: str
    sure: bool


@pytest.fixture(name="strict")
def _strict() -> Guard:
    return guard_of(scores={BAD: 0.9}, default=0.1)


def test_a_good_answer_is_parsed_into_its_type(strict: Guard) -> None:
    """The chain ends in an object, as before."""
    chain = PROMPT | model_of(GOOD) | SemGradOutputParser(City, guard=strict)
    assert chain.invoke({"question": "Capital?"}) == City(city="Paris", sure=True)
    (seen,) = seen_by(strict)
    assert (asked(seen), seen.answer, seen.question) == ("Answer briefly. Capital?", GOOD, "Capital?")


def test_a_withheld_answer_raises(strict: Guard) -> None:
    """An object cannot say that it is not an answer."""
    with pytest.raises(LowConfidenceError) as raised:
        (PROMPT | model_of(BAD) | SemGradOutputParser(City, guard=strict)).invoke({"question": "?"})
    assert raised.value.outcome is not None


def test_a_value_can_be_given_in_its_place(strict: Guard) -> None:
    """Some callers have a word for not knowing."""
    chain = PROMPT | model_of(BAD) | SemGradOutputParser(City, guard=strict, withheld=None)
    assert chain.invoke({"question": "?"}) is None


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_every_way_of_calling_is_guarded(strict: Guard, how: str) -> None:
    """The prompt is found in all of them."""
    chain = PROMPT | model_of(GOOD) | SemGradOutputParser(City, guard=strict)
    question: Any = {"question": "Capital?"}
    if how in {"invoke", "batch", "stream"}:
        given = {"invoke": lambda: [chain.invoke(question)], "batch": lambda: chain.batch([question]),
                 "stream": lambda: list(chain.stream(question))}[how]()  # fmt: skip
    elif how == "astream":
        given = [c async for c in chain.astream(question)]
    else:
        given = [await chain.ainvoke(question)] if how == "ainvoke" else await chain.abatch([question])
    assert given == [City(city="Paris", sure=True)]
    assert asked(seen_by(strict)[0]) == "Answer briefly. Capital?"


def test_any_parser_can_be_inside(strict: Guard) -> None:
    """Also behind a text parser."""
    inner = SemGradOutputParser(parser=JsonOutputParser(), guard=strict)
    assert (PROMPT | model_of(GOOD) | StrOutputParser() | inner).invoke({"question": "?"}) == {
        "city": "Paris",
        "sure": True,
    }
    assert inner.get_format_instructions() == JsonOutputParser().get_format_instructions()


def test_a_structured_answer_in_a_tool_call_is_judged(strict: Guard) -> None:
    """Models give structured answers as calls of tools; they are no less wrong."""
    call = AIMessage("", tool_calls=[{"name": "City", "args": {"city": "Paris", "sure": True}, "id": "1"}])
    parser = SemGradOutputParser(parser=PydanticToolsParser(tools=[City], first_tool_only=True), guard=strict)
    chain = PROMPT | GenericFakeChatModel(messages=iter([call])) | parser
    assert chain.invoke({"question": "?"}) == City(city="Paris", sure=True)
    assert '"city": "Paris"' in seen_by(strict)[0].answer


def test_a_warning_is_not_parsed() -> None:
    """It stands before the answer's text, which would no longer be JSON."""
    guard = guard_of(default=0.9, decider=LadderDecider(otherwise=AnswerWithWarning(warning="Doubtful:")))
    chain = PROMPT | model_of(GOOD) | SemGradOutputParser(City, guard=guard)
    assert chain.invoke({"question": "?"}) == City(city="Paris", sure=True)


def test_without_a_parser_text_is_given(strict: Guard) -> None:
    """Then the policy's message has a place."""
    chain = PROMPT | model_of(GOOD, BAD) | SemGradOutputParser(guard=strict)
    assert [chain.invoke({"question": "?"}) for _ in range(2)] == [GOOD, REFUSAL]


def test_an_answer_that_cannot_be_parsed_says_so(strict: Guard) -> None:
    """The inner parser's error is the caller's business."""
    with pytest.raises(OutputParserException):
        (PROMPT | model_of("Paris") | SemGradOutputParser(City, guard=strict)).invoke({"question": "?"})


@pytest.mark.parametrize(("how", "value"), [("parse", GOOD), ("invoke", GOOD), ("invoke", AIMessage(GOOD))], ids=str)
def test_outside_of_a_chain_it_fails_closed(strict: Guard, how: str, value: Any) -> None:
    """Without a prompt nothing can be judged."""
    with pytest.raises(LowConfidenceError) as raised:
        getattr(SemGradOutputParser(City, guard=strict), how)(value)
    assert raised.value.decision.failure is not None
    assert raised.value.decision.failure.type == PromptNotFoundError.__name__


def test_type_and_parser_exclude_each_other(strict: Guard) -> None:
    """One of them would be ignored."""
    with pytest.raises(OptionError):
        SemGradOutputParser(City, parser=JsonOutputParser(), guard=strict)


def test_a_lambda_may_stand_between(strict: Guard) -> None:
    """Chains clean the text first."""
    chain = (
        PROMPT
        | model_of(f"```json\n{GOOD}\n```")
        | RunnableLambda(lambda m: m.text.strip("`json\n"))
        | SemGradOutputParser(City, guard=strict)
    )
    assert chain.invoke({"question": "?"}).city == "Paris"
