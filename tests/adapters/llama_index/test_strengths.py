"""The three strengths around engines: measuring changes nothing, holding back fails closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from pydantic import BaseModel

from llama_index_semgrad import SemGradEvaluator, SemGradEventHandler, SemGradGuard, SemGradOutputParser
from semgrad_guard.errors import LowConfidenceError, OptionError
from tests.adapters.llama_index.index_and_llm import QUESTION, index, llm
from tests.fakes import ProfileScorer, TableScorer, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = "Marie Curie."
NAMED = '{"name": "Marie Curie"}'
REFUSAL = "I am not sure enough to answer that."
SCORERS: dict[str, Callable[[], TableScorer]] = {
    "fits": ProfileScorer,
    "no profile": TableScorer,
    "fails": lambda: TableScorer(dict.fromkeys((GOOD, NAMED), RuntimeError("no weights"))),
}
"""What may become of scoring: a confidence, none, or an error."""


class Discoverer(BaseModel):
    """A structured answer."""

    name: str


def asked(guard: SemGradGuard, how: str) -> tuple[str, dict[str, Any], list[str]]:
    """Return the answer of a guarded engine, the findings, and the pieces of its stream."""
    if how in {"chat", "stream_chat"}:
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)
        engine = ContextChatEngine.from_defaults(index().as_retriever(), llm=llm(GOOD, is_chat=True), memory=memory)
        chat = guard.wrap(engine)
        if how == "chat":
            reply = chat.chat(QUESTION)
            return reply.response, reply.metadata["semgrad"], []
        streamed = chat.stream_chat(QUESTION)
        pieces = list(streamed.response_gen)
        return "".join(pieces), streamed.metadata["semgrad"], pieces
    response = guard.wrap(index().as_query_engine(llm=llm(GOOD), streaming=how == "stream")).query(QUESTION)
    pieces = list(response.response_gen) if how == "stream" else []
    return "".join(pieces) or str(response), response.metadata["semgrad"], pieces


@pytest.mark.parametrize("how", ["query", "stream", "chat", "stream_chat"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_measuring_gives_every_answer_to_the_letter(how: str, scorer: str) -> None:
    """Streams pass piece by piece, and whatever fails is a finding."""
    text, found, pieces = asked(SemGradGuard(scorer=SCORERS[scorer]()), how)
    assert text == GOOD
    assert (len(pieces) > 1) is ("stream" in how)
    assert (found["confidence"] is not None) is (scorer == "fits")
    assert (found["withheld"], found["warning"]) == (False, None)
    assert (found["error"] == "RuntimeError: no weights") is (scorer == "fails")


@pytest.mark.parametrize("how", ["query", "stream", "chat", "stream_chat"])
@pytest.mark.parametrize("scorer", ["no profile", "fails"])
def test_holding_back_fails_closed(how: str, scorer: str) -> None:
    """What was not judged is no answer, and no piece of it passes."""
    text, found, _ = asked(SemGradGuard(accept=0.1, scorer=SCORERS[scorer]()), how)
    assert (text, found["withheld"]) == (REFUSAL, True)


@pytest.mark.parametrize("scorer", SCORERS)
def test_measuring_gives_objects_as_they_are(scorer: str) -> None:
    """Code that reads fields must go on working, whatever becomes of the scoring."""
    engine = index().as_query_engine(llm=llm(NAMED), output_cls=Discoverer)
    response = SemGradGuard(scorer=SCORERS[scorer]()).wrap(engine).query(QUESTION)
    assert response.response == Discoverer(name="Marie Curie")
    assert (response.metadata["semgrad"]["confidence"] is not None) is (scorer == "fits")


def test_an_answer_without_a_model_call_is_a_finding_at_the_end_of_a_stream_too() -> None:
    """The keys are those of every other answer."""
    engine = index(()).as_query_engine(llm=llm(GOOD), streaming=True)
    found = []
    for stream in ("annotate", "buffer"):
        response = SemGradGuard(scorer=TableScorer(), stream=stream).wrap(engine).query(QUESTION)
        list(getattr(response, "response_gen", ()))
        found.append(response.metadata["semgrad"])
    assert found[0].keys() == found[1].keys()
    assert found[0]["error_type"] == found[1]["error_type"] == "PromptNotFoundError"


@pytest.mark.parametrize("accept", [None, 0.7])
def test_no_file_appears_in_the_working_folder(
    accept: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for a queue or a log."""
    monkeypatch.chdir(tmp_path)
    asked(SemGradGuard(accept=accept, scorer=TableScorer()), "query")
    assert list(tmp_path.iterdir()) == []


def test_a_parser_and_observers_take_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accept=` means the same wherever a guard is made."""
    monkeypatch.setattr("semgrad_guard.guard.assembly.scorer_of", lambda *_, **__: TableScorer())

    def parsed(**options: Any) -> object:
        parser = SemGradOutputParser(PydanticOutputParser(Discoverer), **options)
        program = LLMTextCompletionProgram.from_defaults(
            output_parser=parser, output_cls=Discoverer, prompt_template_str="{question}", llm=llm(NAMED)
        )
        return program(question=QUESTION)

    assert parsed() == Discoverer(name="Marie Curie")
    with pytest.raises(LowConfidenceError):
        parsed(accept=0.9)
    for made in (SemGradEventHandler(accept=0.9), SemGradEvaluator(accept=0.9)):
        assert made.guard.can_change_answers
    for made in (SemGradEventHandler(), SemGradEvaluator()):
        assert made.guard.only_measures


@pytest.mark.parametrize("make", [SemGradGuard, SemGradEvaluator, SemGradEventHandler, SemGradOutputParser])
def test_a_threshold_beside_a_policy_or_a_guard_is_refused(make: Callable[..., object]) -> None:
    """One of the two would be ignored in silence."""
    for other in ({"policy": {"accept": 0.5}}, {"guard": guard_of()}):
        with pytest.raises(OptionError, match="one of them"):
            make(accept=0.7, **other)
