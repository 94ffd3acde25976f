"""Form (a): what happens when the guard cannot judge, must raise, or is set up wrongly."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_semgrad import GuardedAnswer, SemGradGuard
from langchain_semgrad.capture import RunStore
from semgrad_guard.errors import (
    EmptyAnswerError,
    LowConfidenceError,
    NotGuardableError,
    OptionError,
    PromptNotFoundError,
)
from semgrad_guard.flow import AnswerWithWarning, HumanReview, Status
from semgrad_guard.guard import Guard
from semgrad_guard.policy import PolicyDecider, policy_from
from tests.adapters.langchain.chains import LYON, PROMPT, REFUSAL, asked, model_of, seen_by
from tests.fakes import LadderDecider, MemoryQueue, MemorySink, guard_of

# --- fail closed ------------------------------------------------------------------------------------------------------


def test_an_answer_without_a_known_prompt_takes_on_error_and_says_what_to_do(guard: Guard) -> None:
    """It was not judged, so it must not be given out."""
    answer = SemGradGuard(guard=guard).invoke(AIMessage("Paris"))
    assert answer.content == REFUSAL
    assert answer.response_metadata["semgrad"]["rule"] == "on_error"
    assert PromptNotFoundError.__name__ in answer.response_metadata["semgrad"]["error"]
    assert "prompt | llm | SemGradGuard()" in answer.response_metadata["semgrad"]["error"]
    assert seen_by(guard) == []


def test_a_model_called_in_a_foreign_thread_takes_on_error(guard: Guard) -> None:
    """A thread without LangChain's context hides the call from the chain."""

    def call(inputs: dict[str, str]) -> str:
        found: list[str] = []
        worker = threading.Thread(target=lambda: found.append(model_of("Paris").invoke(inputs["question"]).text))
        worker.start()
        worker.join()
        return found[0]

    assert (RunnableLambda(call) | SemGradGuard(guard=guard)).invoke({"question": "?"}) == REFUSAL


def test_an_empty_answer_takes_on_error() -> None:
    """Nothing was said, so there is nothing to be sure of."""
    guard = guard_of(scores={"": EmptyAnswerError()})
    assert (PROMPT | model_of("") | SemGradGuard(guard=guard)).invoke({"question": "?"}).content == REFUSAL


def test_a_scorer_that_fails_takes_on_error(guard: Guard) -> None:
    """Whatever goes wrong inside, the chain goes on and the answer is held back."""
    guard = guard_of(scores={"Paris": RuntimeError("CUDA is gone")})
    answer = (PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert answer.content == REFUSAL
    assert "CUDA is gone" in answer.response_metadata["semgrad"]["error"]


def test_one_bad_answer_does_not_spoil_its_batch() -> None:
    """The others were judged."""
    guard = guard_of(scores={"": EmptyAnswerError()}, default=0.1)
    chain = PROMPT | model_of("Paris", "", "Rome") | SemGradGuard(guard=guard) | StrOutputParser()
    assert sorted(chain.batch([{"question": "?"}] * 3)) == sorted(["Paris", REFUSAL, "Rome"])


def test_a_value_that_cannot_be_read_takes_on_error(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a mistake of the adapter must not let an answer out or break the chain."""

    def broken(*_: object, **__: object) -> None:
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(RunStore, "find", broken)
    assert (PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "?"}).content == REFUSAL


def test_a_parsed_object_is_judged_by_the_models_text_and_raises_when_held_back(guard: Guard) -> None:
    """There is no place in a parsed object for a message of the policy."""
    chain = (
        PROMPT
        | model_of('{"n": 1}', LYON)
        | StrOutputParser()
        | RunnableLambda(lambda text: [len(text)])
        | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "?"}) == [8]
    with pytest.raises(LowConfidenceError) as raised:
        chain.invoke({"question": "?"})
    assert raised.value.outcome is not None
    assert raised.value.outcome.exchange.answer == LYON


def test_a_parsed_object_is_not_judged_by_a_request_for_tools(guard: Guard) -> None:
    """The last call of a model need not have written the answer."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    asking = GenericFakeChatModel(messages=iter([call]))
    chain = RunnablePassthrough.assign(a=PROMPT | model_of("Paris")).assign(b=PROMPT | asking) | RunnableLambda(
        lambda _: [1]
    )
    assert (chain | SemGradGuard(guard=guard)).invoke({"question": "?"}) == [1]
    assert seen_by(guard)[0].answer == "Paris"


def test_beyond_its_bound_the_store_forgets_the_oldest_call() -> None:
    """Calls that never end must not fill the memory; the forgotten one fails closed."""
    from uuid import uuid4

    store, roots = RunStore(max_trees=2), [uuid4() for _ in range(3)]
    for root in roots:
        store.start(root, None, "?")
        store.start(uuid4(), root)
    assert [store.find(root, None) is None for root in roots] == [True, False, False]
    assert len(store) == 4


# --- raising ----------------------------------------------------------------------------------------------------------


def test_raising_composes_with_fallbacks(guard: Guard) -> None:
    """LangChain falls back on exceptions only."""
    doubtful = PROMPT | model_of(LYON) | SemGradGuard(guard=guard, on_withheld="raise")
    other = PROMPT | model_of("Paris")
    chain = doubtful.with_fallbacks([other], exceptions_to_handle=(LowConfidenceError,))
    assert chain.invoke({"question": "?"}).content == "Paris"
    assert [m.content for m in chain.batch([{"question": "?"}] * 2)] == ["Paris"] * 2
    assert "".join(c.content for c in chain.stream({"question": "?"})) == "Paris"


def test_raising_in_a_batch_can_be_collected(guard: Guard) -> None:
    """The good answers of a batch must survive."""
    chain = PROMPT | model_of(LYON) | SemGradGuard(guard=guard, on_withheld="raise")
    (error,) = chain.batch([{"question": "?"}], return_exceptions=True)
    assert isinstance(error, LowConfidenceError)
    assert error.outcome is not None
    assert error.outcome.exchange.answer == LYON


def test_annotating_raises_at_the_end_when_asked_to(guard: Guard) -> None:
    """The tokens are gone, but the caller can still mark them."""
    stream = (PROMPT | model_of(LYON) | SemGradGuard(guard=guard, stream="annotate", on_withheld="raise")).stream(
        {"question": "?"}
    )
    got: list[str] = []
    with pytest.raises(LowConfidenceError):
        got.extend(chunk.content for chunk in stream)
    assert "".join(got) == LYON


# --- the other outcomes -----------------------------------------------------------------------------------------------


def test_a_warning_is_put_before_the_answer() -> None:
    """The reader must see it first."""
    guard = guard_of(default=0.9, decider=LadderDecider(otherwise=AnswerWithWarning(warning="Doubtful:")))
    answer = (PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert answer.content == "Doubtful:\n\nParis"
    assert answer.response_metadata["semgrad"]["status"] == "warned"


def test_an_answer_handed_to_a_person_is_pending() -> None:
    """The caller learns under which id."""
    queue = MemoryQueue()
    guard = guard_of(default=0.9, decider=LadderDecider([HumanReview(message="Wait.")]), queue=queue)
    answer = (PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert answer.content == "Wait."
    assert answer.response_metadata["semgrad"]["review_id"] == "item-1"
    assert queue.items[0].answer == "Paris"


def test_the_result_form_tells_everything(guard: Guard) -> None:
    """For callers who branch on it."""
    result = (PROMPT | model_of(LYON) | SemGradGuard(guard=guard, output="result")).invoke({"question": "?"})
    assert isinstance(result, GuardedAnswer)
    assert (result.text, str(result), result.status, result.withheld) == (REFUSAL, REFUSAL, Status.ABSTAINED, True)
    assert result.confidence == pytest.approx(0.1)
    assert result.value.content == REFUSAL
    assert [a.exchange.answer for a in result.attempts] == [LYON]
    assert (result.decision.rule, result.review_id) == ("otherwise", None)


def test_every_answer_is_logged_once() -> None:
    """Records are what people look at later."""
    sink = MemorySink()
    guard = guard_of(default=0.1, sink=sink)
    chain = PROMPT | model_of("Paris") | SemGradGuard(guard=guard)
    chain.invoke({"question": "one"})
    chain.batch([{"question": "two"}, {"question": "three"}])
    assert [r.text for r in sink.records] == ["Paris"] * 3


# --- what goes along --------------------------------------------------------------------------------------------------


def test_tags_and_metadata_of_the_call_reach_the_policy(guard: Guard) -> None:
    """`overrides` match on them."""
    chain = PROMPT | model_of("Paris") | SemGradGuard(guard=guard)
    chain.invoke({"question": "?"}, {"tags": ["medical"], "metadata": {"tenant": 7, "object": object()}})
    (seen,) = seen_by(guard)
    assert seen.tags == {"medical"}
    assert seen.metadata["tenant"] == 7
    assert set(seen.metadata) == {"tenant", "llm_run_id", "llm_run_name"}


def test_only_passages_that_the_prompt_shows_count(guard: Guard) -> None:
    """A retriever may find more than the chain uses."""
    from langchain_core.embeddings import DeterministicFakeEmbedding

    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(f"Fact {i}.", metadata={"source": f"s{i}", "score": i}) for i in range(4)])
    chain = (
        RunnablePassthrough.assign(docs=(lambda d: d["question"]) | store.as_retriever(search_kwargs={"k": 4}))
        | RunnableLambda(lambda d: {"question": d["docs"][0].page_content + " " + d["question"], "docs": d["docs"]})
        | PROMPT
        | model_of("Paris")
        | SemGradGuard(guard=guard)
    )
    chain.invoke({"question": "Capital?"})
    (seen,) = seen_by(guard)
    assert len(seen.passages) == 1
    assert seen.passages[0].text in asked(seen)
    assert seen.passages[0].source == f"s{seen.passages[0].text[5]}"


# --- setting up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"output": "both"}, {"stream": "all"}, {"on_withheld": "hide"}])
def test_an_unknown_option_is_refused_at_once(option: dict[str, Any], guard: Guard) -> None:
    """Not at the first answer in production."""
    with pytest.raises(OptionError) as raised:
        SemGradGuard(guard=guard, **option)
    assert raised.value.option in option


@pytest.mark.parametrize("extra", [{"policy": "policy.yaml"}, {"model": "smollm2-135m"}])
def test_a_ready_guard_excludes_its_own_parts(extra: dict[str, Any], guard: Guard) -> None:
    """One of the two would be ignored in silence."""
    with pytest.raises(OptionError):
        SemGradGuard(guard=guard, **extra)


def test_two_scoring_models_are_refused() -> None:
    """One of the two would be ignored in silence."""
    with pytest.raises(OptionError, match=r"model\+scorer"):
        SemGradGuard(model="smollm2-135m", scorer=guard_of().parts.scorer)


def test_a_model_behind_an_api_cannot_score_its_own_answers() -> None:
    """It has no weights here; the message says what to write instead."""
    with pytest.raises(NotGuardableError, match=r"SemGradGuard\(\)"):
        SemGradGuard(model_of("Paris"))


def test_a_stray_json_parser_is_fine(guard: Guard) -> None:
    """A guard may stand before any parser."""
    chain = PROMPT | model_of('{"a": 1}') | SemGradGuard(guard=guard) | JsonOutputParser()
    assert chain.invoke({"question": "?"}) == {"a": 1}


# --- how streams are treated by default -------------------------------------------------------------------------------

PASSING: dict[str, Any] = {
    "version": 1,
    "accept": 0.5,
    "otherwise": "answer_with_warning",
    "on_error": "answer_with_warning",
    "on_uncalibrated": "warn",
    "messages": {"warning": "", "unchecked": ""},
    "review": {"url": "interrupt"},
}
"""A policy by which every answer is given word by word."""


@pytest.mark.parametrize(
    ("changes", "buffered"),
    [
        ({}, False),
        ({"otherwise": "abstain"}, True),
        ({"on_error": "abstain"}, True),
        ({"on_uncalibrated": "error"}, True),
        ({"escalate": ["human_review"]}, True),
        ({"messages": {"warning": "Doubtful.", "unchecked": ""}}, True),
        ({"messages": {"warning": "Doubtful.", "unchecked": ""}, "otherwise": "give"}, False),
        ({"messages": {}, "otherwise": "give", "on_error": "give", "on_uncalibrated": "give"}, False),
        ({"overrides": [{"match": {"tags": ["medical"]}, "otherwise": "abstain"}]}, True),
        ({"overrides": [{"match": {"tags": ["medical"]}, "escalate": ["human_review"]}]}, True),
    ],
    ids=str,
)
def test_streams_are_buffered_whenever_the_policy_can_change_an_answer(changes: dict[str, Any], buffered: bool) -> None:
    """Nobody should have to think of it; a policy that only marks answers may let them pass."""
    decider = PolicyDecider(policy_from({**PASSING, **changes}))
    guard = Guard(replace(guard_of(default=0.1).parts, decider=decider))
    chunks = list((PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).stream({"question": "?"}))
    assert (len(chunks) == 1) is buffered
    assert sum(chunks[1:], chunks[0]).response_metadata["semgrad"]["status"] == "answered"


@pytest.mark.parametrize(
    ("changes", "at_the_end", "around"),
    [
        ({}, False, False),
        ({"on_error": "abstain"}, True, True),
        ({"messages": {"warning": "Doubtful.", "unchecked": ""}}, True, True),
    ],
    ids=str,
)
async def test_a_guard_around_a_chain_buffers_by_the_same_rule(
    changes: dict[str, Any],
    at_the_end: bool,
    around: bool,
) -> None:
    """The one difference is that it can answer again, and nobody reads two answers."""
    decider = PolicyDecider(policy_from({**PASSING, **changes}))
    guard = SemGradGuard(guard=Guard(replace(guard_of(default=0.1).parts, decider=decider)))
    for chain, buffered in (
        (PROMPT | model_of("Paris") | guard, at_the_end),
        (guard.wrap(PROMPT | model_of("Paris")), around),
    ):
        assert (len(list(chain.stream({"question": "?"}))) == 1) is buffered
        assert (len([chunk async for chunk in chain.astream({"question": "?"})]) == 1) is buffered


@pytest.mark.parametrize("is_override", [False, True])
async def test_a_guard_that_can_answer_again_buffers(is_override: bool) -> None:
    """Nobody reads two answers."""
    escalate = {"escalate": [{"fallback_model": "big"}]}
    changes = {"overrides": [{"match": {"tags": ["medical"]}, **escalate}]} if is_override else escalate
    decider = PolicyDecider(policy_from({**PASSING, **changes}))
    guard = SemGradGuard(guard=Guard(replace(guard_of(default=0.1).parts, decider=decider)))
    chain = guard.wrap(PROMPT | model_of("Paris"), fallbacks={"big": model_of("Lyon")})
    assert len(list(chain.stream({"question": "?"}))) == 1
    assert len([chunk async for chunk in chain.astream({"question": "?"})]) == 1


def test_a_stream_that_dies_halfway_gives_nothing(guard: Guard) -> None:
    """Half an answer cannot be judged."""

    class Dying(FakeListChatModel):
        def _stream(self, *_: Any, **__: Any) -> Any:
            yield ChatGenerationChunk(message=AIMessageChunk(content="Par"))
            msg = "connection lost"
            raise ConnectionError(msg)

    got: list[object] = []
    with pytest.raises(ConnectionError):
        got.extend((PROMPT | Dying(responses=[]) | SemGradGuard(guard=guard)).stream({"question": "?"}))
    assert got == []
    assert seen_by(guard) == []
