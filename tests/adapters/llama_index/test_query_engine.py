"""Guarded query engines: what the caller gets, and what never gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import QueryBundle
from pydantic import BaseModel
from typing_extensions import override

from llama_index_semgrad import GuardedQueryEngine, SemGradGuard
from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.flow import AnswerWithWarning, FallbackModel
from tests.adapters.llama_index.index_and_llm import QUESTION, ScriptedLLM, index, llm
from tests.fakes import LadderDecider, MemorySink, guard_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.guard import Guard

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
SCORES = {GOOD: 0.1, BAD: 0.9}


def engine_of(text: str, guard: Guard | None = None, *, stream: Any = "buffer", **options: Any) -> GuardedQueryEngine:
    """Return a guarded engine over a real index whose model always writes one text."""
    engine = index().as_query_engine(llm=llm(text), similarity_top_k=2, **options)
    return SemGradGuard(guard=guard or guard_of(scores=SCORES), stream=stream).wrap(engine)


def test_a_confident_answer_comes_out_as_it_went_in() -> None:
    """Nothing may change where nothing is doubted, except that the metadata says so."""
    response = engine_of(GOOD).query(QUESTION)
    assert type(response) is Response
    assert response.response == GOOD
    assert len(response.source_nodes) == 2
    found = response.metadata["semgrad"]
    assert found["confidence"] == pytest.approx(0.9)
    assert (found["action"], found["rule"], found["status"]) == ("accept", "accept", "answered")
    assert (found["n_attempts"], found["score"], found["withheld"]) == (1, pytest.approx(0.1), False)
    assert "node-0" in response.metadata


def test_a_withheld_answer_is_nowhere_in_the_response() -> None:
    """A caller that prints or stores the whole object must not print the answer."""
    response = engine_of(BAD).query(QUESTION)
    assert response.response == "I do not know."
    assert "Einstein" not in repr(vars(response))


async def test_the_async_twin_gives_the_same() -> None:
    """Services are async."""
    response = await engine_of(BAD).aquery(QUESTION)
    assert response.response == "I do not know."
    assert "Einstein" not in repr(vars(response))


def test_a_stream_keeps_its_type_and_its_pieces() -> None:
    """A confident answer streams as the model wrote it."""
    response = engine_of(GOOD, streaming=True).query(QUESTION)
    assert type(response) is StreamingResponse
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.9)
    assert list(response.response_gen) == ["Marie ", "Curie."]


def test_a_withheld_stream_gives_the_message() -> None:
    """Not one token of the answer may pass."""
    response = engine_of(BAD, streaming=True).query(QUESTION)
    assert response.response_txt is None
    assert "Einstein" not in repr(vars(response))
    assert str(response) == "I do not know."


async def test_an_async_stream_keeps_its_type() -> None:
    """The consumer's `async for` must go on working."""
    engine = engine_of(BAD, streaming=True, use_async=True)
    response = await engine.aquery(QUESTION)
    assert type(response) is AsyncStreamingResponse
    assert [piece async for piece in response.async_response_gen()] == ["I do not know."]
    good = await engine_of(GOOD, streaming=True, use_async=True).aquery(QUESTION)
    assert [piece async for piece in good.async_response_gen()] == ["Marie ", "Curie."]


def test_an_annotated_stream_passes_at_once_and_is_judged_at_its_end() -> None:
    """Who must stream live gets the confidence with the last token."""
    sink = MemorySink()
    response = engine_of(BAD, guard_of(scores=SCORES, sink=sink), stream="annotate", streaming=True).query(QUESTION)
    stream = response.response_gen
    assert next(stream) == "It "
    assert "semgrad" not in response.metadata
    assert "".join(stream) == "was Albert Einstein."
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.1)
    assert response.metadata["semgrad"]["status"] == "warned"
    assert [record.text for record in sink.records] == [BAD]


async def test_an_annotated_async_stream_is_judged_at_its_end() -> None:
    """Same promise."""
    engine = engine_of(BAD, stream="annotate", streaming=True, use_async=True)
    response = await engine.aquery(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == BAD
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.1)


class Discoverer(BaseModel):
    """A structured answer."""

    name: str


class TypedEngine(CustomQueryEngine):
    """Gives structured answers, as engines with `output_cls` do."""

    @override
    def custom_query(self, query_str: str) -> Any:
        return PydanticResponse(Discoverer(name="Marie Curie"), metadata=None)


def test_a_structured_answer_keeps_its_type() -> None:
    """Code that reads fields must go on working."""
    written = Discoverer(name="Marie Curie").model_dump_json()
    response = SemGradGuard(guard=guard_of(scores={written: 0.1})).wrap(TypedEngine()).query(QUESTION)
    assert type(response) is PydanticResponse
    assert response.response == Discoverer(name="Marie Curie")
    assert response.name == "Marie Curie"
    assert response.metadata["semgrad"]["status"] == "answered"


def test_a_doubtful_structured_answer_stays_what_it_is() -> None:
    """A warning in it would be no JSON any more; the findings hold it."""
    decider = LadderDecider(otherwise=AnswerWithWarning(warning="Careful:"))
    response = SemGradGuard(guard=guard_of(default=0.9, decider=decider)).wrap(TypedEngine()).query(QUESTION)
    assert response.response == Discoverer(name="Marie Curie")
    assert response.metadata["semgrad"]["status"] == "warned"
    assert response.metadata["semgrad"]["warning"] == "Careful:"


def typed_engine(stream: Any = None) -> GuardedQueryEngine:
    """Return an engine whose structured answer is held back."""
    engine = index().as_query_engine(llm=llm('{"name": "Marie Curie"}'), output_cls=Discoverer)
    return SemGradGuard(guard=guard_of(default=0.9), stream=stream).wrap(engine)


@pytest.mark.parametrize("stream", [None, "buffer", "annotate"])
def test_a_withheld_structured_answer_raises(stream: Any) -> None:
    """A message is no answer of the type asked for, and `None` would be taken for one."""
    engine, bundle = typed_engine(stream), QueryBundle(QUESTION)
    for ask in (lambda: engine.query(QUESTION), lambda: engine.synthesize(bundle, engine.retrieve(bundle))):
        with pytest.raises(LowConfidenceError) as raised:
            ask()
        assert raised.value.outcome is not None
        assert "Marie" not in str(raised.value)


async def test_a_withheld_structured_answer_raises_for_async_callers_too() -> None:
    """The same promise."""
    engine, bundle = typed_engine(), QueryBundle(QUESTION)
    with pytest.raises(LowConfidenceError):
        await engine.aquery(QUESTION)
    with pytest.raises(LowConfidenceError):
        await engine.asynthesize(bundle, engine.retrieve(bundle))


def test_a_text_that_is_no_object_cannot_take_its_place() -> None:
    """A fallback model that writes prose has not answered in the type asked for."""
    decider = LadderDecider([FallbackModel(name="big")])
    guard = guard_of(scores={"Prose.": 0.1}, default=0.9, decider=decider)
    engine = SemGradGuard(guard=guard).wrap(TypedEngine(), fallbacks={"big": llm("Prose.")})
    with pytest.raises(LowConfidenceError) as raised:
        engine.query(QUESTION)
    assert raised.value.__notes__ == ["the text to give in the object's place is none of that type"]


def test_the_judged_prompt_is_what_the_model_read() -> None:
    """A score of another text would be a score of nothing."""
    model = llm(GOOD)
    guard = guard_of(scores=SCORES)
    engine = SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=model, similarity_top_k=2))
    engine.query(QUESTION)
    (exchange,) = guard.parts.scorer.seen
    assert exchange.prompt == model.prompts[0]
    assert exchange.question == QUESTION
    assert [p.source for p in exchange.passages] == ["doc-0", "doc-5"]
    assert (exchange.author, exchange.on_policy) == ("scripted", False)
    assert exchange.metadata == {"prompt": "captured", "model_calls": 1, "judged_call": 1}


def test_a_chat_model_is_judged_by_its_messages() -> None:
    """The scoring model puts them into its own template."""
    guard = guard_of(scores=SCORES)
    engine = index().as_query_engine(llm=llm(GOOD, is_chat=True), similarity_top_k=2)
    SemGradGuard(guard=guard).wrap(engine).query(QUESTION)
    (exchange,) = guard.parts.scorer.seen
    assert [m.role for m in exchange.prompt] == ["system", "user"]
    assert QUESTION in exchange.prompt[1].content
    assert exchange.metadata["model_calls"] == 1


def test_of_several_calls_the_one_that_wrote_the_answer_is_judged() -> None:
    """A refining synthesizer asks the model once a passage; only the last text is the answer."""
    model = llm(lambda prompt: GOOD if "refine" in prompt.lower() else BAD)
    guard = guard_of(scores=SCORES)
    engine = index().as_query_engine(llm=model, similarity_top_k=2, response_mode="refine")
    response = SemGradGuard(guard=guard).wrap(engine).query(QUESTION)
    (exchange,) = guard.parts.scorer.seen
    assert response.response == GOOD
    assert exchange.prompt == model.prompts[-1]
    assert exchange.metadata == {"prompt": "captured", "model_calls": 2, "judged_call": 2}


def test_a_later_call_for_something_else_is_not_taken_for_the_answer() -> None:
    """An engine may go on asking, for keywords or a title, after it has its answer."""
    model = llm(lambda prompt: "radium, curie" if "keywords" in prompt else GOOD)

    class Wordy(CustomQueryEngine):
        @override
        def custom_query(self, query_str: str) -> str:
            text = model.complete(f"Answer: {query_str}").text
            model.complete("Give keywords.")
            return f"{text}\n"

    guard = guard_of(scores={f"{GOOD}\n": 0.1})
    assert SemGradGuard(guard=guard).wrap(Wordy()).query(QUESTION).response == f"{GOOD}\n"
    (exchange,) = guard.parts.scorer.seen
    assert exchange.prompt == f"Answer: {QUESTION}"
    assert exchange.metadata == {"prompt": "captured", "model_calls": 2, "judged_call": 1}


class ToolLLM(ScriptedLLM):
    """Asks for a tool in every chat."""

    message: dict[str, Any]

    @llm_chat_callback()
    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", **self.message))


@pytest.mark.parametrize(
    "message",
    [
        {"blocks": [ToolCallBlock(tool_name="search", tool_kwargs={"for": "radium"})]},
        {"content": "Let me see.", "additional_kwargs": {"tool_calls": [{"name": "search"}]}},
    ],
)
def test_a_request_for_tools_is_not_taken_for_the_answer(message: dict[str, Any]) -> None:
    """A text that no call wrote as it is was more likely made of an answer than of a request for tools."""
    model = ToolLLM(reply=lambda _: GOOD, message=message)

    class Agent(CustomQueryEngine):
        @override
        def custom_query(self, query_str: str) -> str:
            model.complete(f"Answer: {query_str}")
            model.chat([])
            return "It was discovered by M. Curie."

    guard = guard_of(default=0.1)
    SemGradGuard(guard=guard).wrap(Agent()).query(QUESTION)
    (exchange,) = guard.parts.scorer.seen
    assert exchange.prompt == f"Answer: {QUESTION}"
    assert exchange.metadata == {"prompt": "captured", "model_calls": 2, "judged_call": 1}


class PlainEngine(CustomQueryEngine):
    """Answers without any LlamaIndex model, so no event tells the prompt."""

    @override
    def custom_query(self, query_str: str) -> str:
        return GOOD


def test_an_engine_whose_model_calls_are_unseen_is_judged_by_a_rebuilt_prompt() -> None:
    """Custom engines work too, and the record says that the prompt was rebuilt."""
    guard = guard_of(scores=SCORES)
    response = SemGradGuard(guard=guard).wrap(PlainEngine()).query(QUESTION)
    assert response.response == GOOD
    (exchange,) = guard.parts.scorer.seen
    assert (exchange.prompt, exchange.metadata) == (QUESTION, {"prompt": "rebuilt"})


def test_a_warning_stands_before_the_answer() -> None:
    """The policy may prefer a marked answer to none."""
    guard = guard_of(scores=SCORES, decider=LadderDecider(otherwise=AnswerWithWarning(warning="Careful:")))
    response = engine_of(BAD, guard).query(QUESTION)
    assert response.response == f"Careful:\n\n{BAD}"
    assert response.metadata["semgrad"]["status"] == "warned"


def test_a_node_called_like_our_key_cannot_pass_for_a_judgement() -> None:
    """Metadata keys are ids of the caller's nodes: whoever can name a node must not switch the guard off."""

    class Sneaky(PlainEngine):
        @override
        def custom_query(self, query_str: str) -> Any:
            return Response(BAD, metadata={"semgrad": {"status": "answered", "confidence": 1.0}})

    response = SemGradGuard(guard=guard_of(scores=SCORES)).wrap(Sneaky()).query(QUESTION)
    assert response.response == "I do not know."
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.1)


def test_an_answer_is_judged_once_however_often_it_is_wrapped() -> None:
    """The inner guard has decided; its message is not an answer to judge."""
    inner, outer = guard_of(scores=SCORES), guard_of(scores=SCORES)
    once = SemGradGuard(guard=inner).wrap(index().as_query_engine(llm=llm(BAD)))
    response = SemGradGuard(guard=outer).wrap(once).query(QUESTION)
    assert response.response == "I do not know."
    assert not outer.parts.scorer.seen


def test_synthesizing_from_given_nodes_is_guarded_too() -> None:
    """Sub-question engines retrieve and synthesize in two steps."""
    engine = engine_of(BAD)
    bundle = QueryBundle(QUESTION)
    nodes = engine.retrieve(bundle)
    assert engine.synthesize(bundle, nodes).response == "I do not know."


def test_prompts_of_the_wrapped_engine_stay_within_reach() -> None:
    """Wrapping must not end prompt tuning."""
    inner = index().as_query_engine(llm=llm(GOOD))
    engine = SemGradGuard(guard=guard_of()).wrap(inner)
    assert engine.get_prompts().keys() == inner.get_prompts().keys()
    key = "response_synthesizer:text_qa_template"
    prompt = inner.get_prompts()[key]
    engine.update_prompts({key: prompt.partial_format(query_str="x")})
    assert isinstance(inner, RetrieverQueryEngine)
