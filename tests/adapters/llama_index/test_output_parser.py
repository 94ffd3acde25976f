"""The guard as an output parser."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import BaseOutputParser
from pydantic import BaseModel
from typing_extensions import override

from llama_index_semgrad import SemGradOutputParser
from semgrad_guard.errors import LowConfidenceError, OptionError
from semgrad_guard.flow import AnswerWithWarning
from tests.adapters.llama_index.index_and_llm import QUESTION, llm
from tests.fakes import LadderDecider, guard_of

GOOD, BAD = '{"name": "Marie Curie"}', '{"name": "Albert Einstein"}'
SCORES = {GOOD: 0.1, BAD: 0.9}


class Discoverer(BaseModel):
    """A structured answer."""

    name: str


def program(text: str) -> tuple[LLMTextCompletionProgram, SemGradOutputParser]:
    """Return a program whose parser is guarded."""
    parser = SemGradOutputParser(
        PydanticOutputParser(Discoverer),
        guard=guard_of(scores=SCORES),
    )
    made = LLMTextCompletionProgram.from_defaults(
        output_parser=parser, output_cls=Discoverer, prompt_template_str="{question}", llm=llm(text)
    )
    return made, parser


def test_a_confident_text_is_parsed_on() -> None:
    """The inner parser makes what it always made."""
    made, parser = program(GOOD)
    assert made(question=QUESTION) == Discoverer(name="Marie Curie")
    (exchange,) = parser.guard.parts.scorer.seen
    assert QUESTION in exchange.prompt
    assert '"name"' in exchange.prompt  # the inner parser's own instructions reached the model


def test_a_withheld_text_raises_where_a_message_could_not_be_parsed() -> None:
    """The caller learns why, and gets no half-made object."""
    made, _ = program(BAD)
    with pytest.raises(LowConfidenceError) as caught:
        made(question=QUESTION)
    assert caught.value.outcome is not None
    assert "Einstein" not in str(caught.value)


def test_the_exception_leaves_out_an_error_that_repeats_the_text() -> None:
    """A scorer of the user's may print its input."""
    guard = guard_of(scores={BAD: RuntimeError(f"bad input: {BAD}")})
    parser = SemGradOutputParser(PydanticOutputParser(Discoverer), guard=guard)
    text = llm(BAD).complete(QUESTION).text
    with pytest.raises(LowConfidenceError) as caught:
        parser.parse(text)
    assert "Einstein" not in f"{caught.value} {caught.value.decision}"


def test_a_warned_text_is_still_parsed() -> None:
    """A warning before JSON would break a parser that takes nothing else."""

    class Strict(BaseOutputParser):
        @override
        def parse(self, output: str) -> Any:
            return json.loads(output)

    guard = guard_of(scores=SCORES, decider=LadderDecider(otherwise=AnswerWithWarning(warning="Careful:")))
    parser = SemGradOutputParser(Strict(), guard=guard)
    assert parser.parse(llm(BAD).complete(QUESTION).text) == {"name": "Albert Einstein"}


def test_without_an_inner_parser_the_message_takes_the_place() -> None:
    """`LLM.predict` wants text."""
    model = llm(BAD)
    model.output_parser = SemGradOutputParser(guard=guard_of(scores=SCORES))
    assert model.predict(PromptTemplate("{question}"), question=QUESTION) == "I do not know."
    model.output_parser = SemGradOutputParser(guard=guard_of(scores=SCORES), on_withheld="raise")
    with pytest.raises(LowConfidenceError):
        model.predict(PromptTemplate("{question}"), question=QUESTION)


def test_a_text_that_no_model_wrote_here_takes_on_error() -> None:
    """Without its prompt it cannot be judged."""
    guard = guard_of(default=0.0)
    assert SemGradOutputParser(guard=guard).parse("from nowhere") == "I do not know."
    assert guard.parts.scorer.seen == []


async def test_tasks_at_the_same_time_find_their_own_prompt() -> None:
    """Both got the same text, from different prompts."""
    guard = guard_of(scores=SCORES)
    model = llm(GOOD, output_parser=SemGradOutputParser(guard=guard))
    template = PromptTemplate("{question}")
    await asyncio.gather(*(model.apredict(template, question=f"question {i}") for i in range(20)))
    assert sorted(str(e.prompt) for e in guard.parts.scorer.seen) == sorted(f"question {i}" for i in range(20))


def test_an_unknown_option_is_refused() -> None:
    """At once, with the allowed words."""
    with pytest.raises(OptionError, match="'message', 'raise'"):
        SemGradOutputParser(on_withheld="shout")  # type: ignore[arg-type]
