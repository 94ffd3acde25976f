"""The chat model that scores while it writes, on a tiny random model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import tool

from langchain_semgrad import SemGradChatModel, SemGradGuard
from semgrad_guard.errors import ModelSettingError
from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel, load_model
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.wire import score_from_fields
from tests.adapters.langchain.chains import PROMPT
from tests.fakes import guard_of
from tests.models_for_tests import fail_while_scoring, local_model, note_kept_states, refuse_to_score

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard


@pytest.fixture(name="local", scope="module")
def _local() -> LocalModel:
    return local_model("llama")


def chat(local: LocalModel, **settings: Any) -> SemGradChatModel:
    """Chat model of a few tokens."""
    return SemGradChatModel(model=local, **{"max_tokens": 12, **settings})


def test_an_answer_carries_its_score(local: LocalModel) -> None:
    """The single pass gives the numbers of the cold one, for the question that the prompt shows."""
    model = chat(local)
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("Capital?")])
    assert isinstance(answer, AIMessage)
    score = score_from_fields(answer.response_metadata["semgrad_score"])
    assert (score.path, score.proxy) == ("reused", False)
    written = local.generate(local_prompt(), max_new_tokens=12)
    cold = SemGradScorer(local).score(
        Exchange(
            prompt=local_prompt(),
            prompt_ids=written.prompt_ids,
            answer_ids=written.answer_ids,
            answer=written.text,
            question="Capital?",
            on_policy=True,
        )
    )
    assert answer.content == written.text
    assert dict(score.signals) == pytest.approx(dict(cold.signals), rel=2e-4)
    assert answer.usage_metadata == {
        "input_tokens": len(written.prompt_ids),
        "output_tokens": len(written.answer_ids),
        "total_tokens": len(written.prompt_ids) + len(written.answer_ids),
    }
    assert answer.response_metadata["finish_reason"] in {"stop", "length"}


def local_prompt() -> Any:
    """The same prompt in our words."""
    from semgrad_guard.flow import Message

    return (Message("system", "Be brief."), Message("user", "Capital?"))


def test_a_stream_gives_the_same_answer_and_score_in_pieces(local: LocalModel) -> None:
    """The score comes with the last piece."""
    model = chat(local)
    whole, pieces = model.invoke("Capital?"), list(model.stream("Capital?"))
    assert len(pieces) > 2
    assert "".join(p.text for p in pieces) == whole.text
    last = next(p for p in reversed(pieces) if p.response_metadata)
    assert last.response_metadata["semgrad_score"]["value"] == pytest.approx(
        whole.response_metadata["semgrad_score"]["value"]
    )
    assert sum(pieces[1:], pieces[0]).usage_metadata == whole.usage_metadata


async def test_asynchronous_calls_give_the_same(local: LocalModel) -> None:
    """In worker threads, so the loop is free."""
    model = chat(local)
    whole = model.invoke("Capital?")
    assert (await model.ainvoke("Capital?")).text == whole.text
    assert "".join([p.text async for p in model.astream("Capital?")]) == whole.text
    assert [m.text for m in await model.abatch(["Capital?", "Capital?"])] == [whole.text] * 2


def test_a_batch_gives_each_its_own_answer(local: LocalModel) -> None:
    """Threads share one model, one after the other."""
    model = chat(local)
    questions = [f"Question {i}?" for i in range(6)]
    assert [m.text for m in model.batch(questions)] == [model.invoke(q).text for q in questions]


def test_stop_sequences_end_the_answer(local: LocalModel) -> None:
    """They are not part of it."""
    model = chat(local)
    text = model.invoke("Capital?").text
    stop = text[3:5]
    cut = model.invoke("Capital?", stop=[stop])
    assert cut.text == text[: text.index(stop)]
    assert cut.response_metadata["finish_reason"] == "stop"
    assert chat(local, stop=[stop]).invoke("Capital?").text == cut.text


def test_sampling_can_be_repeated_and_set_for_a_call(local: LocalModel) -> None:
    """Settings of the object hold, those of a call come first."""
    model = chat(local, temperature=1.5, seed=7)
    assert model.invoke("Capital?").text == model.invoke("Capital?").text
    assert model.invoke("Capital?", seed=8).text != model.invoke("Capital?").text
    assert model.invoke("Capital?", temperature=0.0).text == chat(local).invoke("Capital?").text
    assert model.bind(max_tokens=2).invoke("Capital?").usage_metadata["output_tokens"] <= 2


def test_a_setting_out_of_range_is_refused(local: LocalModel) -> None:
    """With the setting's name."""
    with pytest.raises(ModelSettingError):
        chat(local).invoke("Capital?", temperature=-1.0)
    with pytest.raises(ValueError, match="max_tokens"):
        chat(local, max_tokens=0)


def test_it_asks_for_no_tools(local: LocalModel) -> None:
    """Better an error than a model that ignores them."""

    @tool
    def search(query: str) -> str:
        """Search."""
        return query

    with pytest.raises(NotImplementedError):
        chat(local).bind_tools([search])


def test_without_scoring_no_score_is_taken(local: LocalModel) -> None:
    """For fallback models and rewriters."""
    assert "semgrad_score" not in chat(local, scoring=False).invoke("Capital?").response_metadata


@pytest.mark.parametrize("ask", ["invoke", "stream"])
def test_the_states_that_scoring_needs_are_kept_while_writing(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """Scoring then begins at the band instead of walking to it."""
    kept = note_kept_states(monkeypatch)
    for scoring in (True, False):
        said = getattr(chat(local, scoring=scoring), ask)("Capital?")
        assert said if ask == "invoke" else list(said)
    assert kept == [SemGradScorer(local).band_blocks, ()]


def test_a_model_that_cannot_be_scored_answers_all_the_same(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer is made before the writing, and must not cost the answer."""
    refuse_to_score(monkeypatch)
    answer = chat(local).invoke("Capital?")
    assert answer.content
    assert "semgrad_score" not in answer.response_metadata


async def test_any_error_while_scoring_costs_the_score_only(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory on the device, say, is a RuntimeError."""
    model = chat(local)
    text = model.invoke("Capital?").text
    fail_while_scoring(monkeypatch)
    pieces = [list(model.stream("Capital?")), [p async for p in model.astream("Capital?")]]
    answers = [model.invoke("Capital?"), await model.ainvoke("Capital?"), *(sum(p[1:], p[0]) for p in pieces)]
    assert [answer.text for answer in answers] == [text] * 4
    assert not any("semgrad_score" in answer.response_metadata for answer in answers)


def test_a_copy_writes_by_its_own_settings(local: LocalModel) -> None:
    """It shares the model, not the settings."""
    model = chat(local)
    assert model.invoke("Capital?").usage_metadata["output_tokens"] > 2
    copied = model.model_copy(update={"max_tokens": 2})
    assert copied.invoke("Capital?").usage_metadata["output_tokens"] == 2
    assert copied.local_model is model.local_model


def test_an_abandoned_stream_ends_the_writing(local: LocalModel) -> None:
    """Nobody reads it any more, and the model is needed by others."""
    stream = chat(local, max_tokens=400).stream("Capital?")
    next(stream)
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "semgrad-guard stream":
            thread.join(20)
            assert not thread.is_alive()


def test_a_failure_in_the_middle_of_a_stream_reaches_the_reader(local: LocalModel) -> None:
    """A cut-off answer must not look whole."""
    with pytest.raises(Exception, match="context"):
        list(chat(local).stream("x" * 2_000))


def test_a_guard_uses_the_score_that_came_with_the_answer(local: LocalModel) -> None:
    """Nothing is read again; behind a parser the text is still known to be the model's."""
    guard = guard_of(default=0.1)
    model = chat(local)
    (PROMPT | model | SemGradGuard(guard=guard)).invoke({"question": "?"})
    (PROMPT | model | StrOutputParser() | SemGradGuard(guard=guard)).invoke({"question": "?"})
    list((PROMPT | model | SemGradGuard(guard=guard)).stream({"question": "?"}))
    from tests.adapters.langchain.chains import seen_by

    scores = [exchange.score for exchange in seen_by(guard)]
    assert [score.path for score in scores if score] == ["reused"] * 3


def test_the_score_of_a_changed_answer_is_not_used(local: LocalModel) -> None:
    """It belongs to other words."""
    from langchain_core.runnables import RunnableLambda

    from tests.adapters.langchain.chains import seen_by

    guard = guard_of(default=0.1)
    (PROMPT | chat(local) | RunnableLambda(lambda m: m.text + " indeed") | SemGradGuard(guard=guard)).invoke(
        {"question": "?"}
    )
    assert seen_by(guard)[0].score is None


def test_a_withheld_answer_loses_its_score_too(local: LocalModel) -> None:
    """Spans of a score tell where its sentences were."""
    guard: Guard = guard_of(default=0.9)
    answer = (PROMPT | chat(local) | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert "semgrad_score" not in answer.response_metadata


def test_the_model_inside_is_shared(local: LocalModel) -> None:
    """A second copy would take the memory twice."""
    model = chat(local)
    assert load_model(model).model is local.model
    assert isinstance(model.invoke("?"), AIMessage)
    assert isinstance(next(model.stream("?")), AIMessageChunk)
