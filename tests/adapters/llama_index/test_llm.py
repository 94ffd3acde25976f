"""The local LLM that scores while it writes, on a tiny random model."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate

from llama_index_semgrad import SemGradGuard, SemGradLLM
from llama_index_semgrad.convert import SCORE_KEY
from llama_index_semgrad.watcher import capturing
from semgrad_guard.errors import NonFiniteScoreError
from semgrad_guard.flow import Exchange, Score
from semgrad_guard.guard import Guard, Parts
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.wire import score_from_fields
from tests.adapters.llama_index.index_and_llm import QUESTION, index
from tests.fakes import LadderDecider, MemorySink, OneMinusScore
from tests.models_for_tests import fail_while_scoring, note_kept_states, refuse_to_score
from tests.unit.models.conftest import make_model, make_tokenizer

USER = [ChatMessage(role="user", content="the question")]


@pytest.fixture(name="local", scope="module")
def _local() -> LocalModel:
    """Return a tiny chat model."""
    return LocalModel(make_model(max_position_embeddings=1024), make_tokenizer(), "tiny")


@pytest.fixture(name="llm")
def _llm(local: LocalModel) -> SemGradLLM:
    """Return an LLM over it."""
    return SemGradLLM(model=local, max_tokens=8)


def score_of(response: Any) -> Score:
    """Return the score that a response carries."""
    return score_from_fields(response.additional_kwargs[SCORE_KEY])


def test_an_answer_carries_the_score_of_the_cold_path(llm: SemGradLLM, local: LocalModel) -> None:
    """The single pass must give the same number as reading everything again."""
    response = llm.chat(USER)
    cold = SemGradScorer(local).score(
        Exchange(
            prompt_ids=tuple(response.raw["prompt_ids"]), answer_ids=tuple(response.raw["answer_ids"]), on_policy=True
        )
    )
    score = score_of(response)
    assert score.path == "reused"
    assert score.fingerprint == cold.fingerprint
    assert math.isclose(score.value, cold.value, rel_tol=2e-4)


async def test_every_way_of_asking_gives_the_same_text_and_score(llm: SemGradLLM) -> None:
    """Sync, async and streaming are one model."""
    want = llm.chat(USER)
    asked = [
        await llm.achat(USER),
        list(llm.stream_chat(USER))[-1],
        [r async for r in await llm.astream_chat(USER)][-1],
    ]
    for response in asked:
        assert response.message.content == want.message.content
        assert score_of(response).value == pytest.approx(score_of(want).value, rel=2e-4)
    completed = llm.complete("the question")
    for other in (
        await llm.acomplete("the question"),
        list(llm.stream_complete("the question"))[-1],
        [r async for r in await llm.astream_complete("the question")][-1],
    ):
        assert other.text == completed.text == want.message.content
        assert score_of(other).value == pytest.approx(score_of(want).value, rel=2e-4)


def test_a_stream_comes_in_pieces(llm: SemGradLLM) -> None:
    """What has been written is there before the rest."""
    deltas = [r.delta for r in llm.stream_complete("the question")]
    assert len(deltas) > 2
    assert "".join(deltas) == llm.complete("the question").text


def test_formatted_text_is_read_as_it_stands(llm: SemGradLLM, local: LocalModel) -> None:
    """A prompt that a template has rendered must not be rendered again."""
    rendered = "<|start|>user\nthe question<|end|>\n<|start|>assistant\n"
    assert llm.complete(rendered, formatted=True).raw["prompt_ids"] == llm.chat(USER).raw["prompt_ids"]
    assert llm.predict(PromptTemplate("the {x}"), x="question") == llm.chat(USER).message.content
    assert llm.metadata.is_chat_model
    assert (llm.metadata.context_window, llm.metadata.model_name) == (1024, "tiny")


def test_settings_reach_the_model(llm: SemGradLLM) -> None:
    """For one call, or for all."""
    assert len(llm.complete("the question", max_tokens=2).raw["answer_ids"]) == 2
    text = llm.complete("the question").text
    stop = text[3:5]
    assert llm.complete("the question", stop=[stop]).text == text.partition(stop)[0]


def test_scoring_can_be_switched_off_and_a_failed_score_does_not_cost_the_answer(
    llm: SemGradLLM, local: LocalModel, monkeypatch: Any
) -> None:
    """The answer is worth more than its score."""
    plain = SemGradLLM(model=local, max_tokens=8, scoring=False)
    assert SCORE_KEY not in plain.complete("the question").additional_kwargs

    def broken(*_: object) -> None:
        raise NonFiniteScoreError("logits")

    monkeypatch.setattr(SemGradScorer, "score_generated", broken)
    response = llm.complete("the question")
    assert response.text == plain.complete("the question").text
    assert SCORE_KEY not in response.additional_kwargs


def test_a_guard_uses_the_score_of_the_writing(llm: SemGradLLM, local: LocalModel) -> None:
    """Reading prompt and answer again would cost a second prefill."""
    sink = MemorySink()
    parts = Parts(
        scorer=SemGradScorer(local),
        calibrator=OneMinusScore(),
        decider=LadderDecider(accept=-1.0),
        sink=sink,
        abstain_message="no",
    )
    engine = SemGradGuard(llm, guard=Guard(parts)).wrap(index().as_query_engine(llm=llm, similarity_top_k=1))
    response = engine.query(QUESTION)
    (attempt,) = sink.records[0].attempts
    assert attempt.exchange.on_policy
    assert attempt.decision.score.path == "reused"
    assert attempt.exchange.answer_ids
    assert response.metadata["semgrad"]["proxy"] is False


def test_ids_travel_with_a_streamed_answer_too(llm: SemGradLLM) -> None:
    """LlamaIndex' own local LLM loses them when it streams."""
    with capturing() as calls:
        text = "".join(r.delta or "" for r in llm.stream_chat(USER))
    (call,) = calls
    assert call.text == text
    assert call.ids() is not None
    assert call.score is not None
    assert call.author == "tiny"


async def test_a_cancelled_reader_ends_the_writing(local: LocalModel, monkeypatch: Any) -> None:
    """A user who left must not keep the model busy."""
    ended: list[str] = []
    generate = LocalModel.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        written = generate(*args, **kwargs)
        ended.append(written.finish_reason)
        return written

    monkeypatch.setattr(LocalModel, "generate", watched)
    llm = SemGradLLM(model=local, max_tokens=900)
    stream = await llm.astream_complete("the question")
    await anext(stream)
    await stream.aclose()
    for thread in threading.enumerate():
        if thread.name == "semgrad-guard stream":
            await asyncio.to_thread(thread.join, 20)  # the loop goes on: it closes the streams inside the stream
    assert ended == ["cancelled"]


@pytest.mark.parametrize("ask", ["complete", "stream_complete"])
def test_the_states_that_scoring_needs_are_kept_while_writing(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """Scoring then begins at the band instead of walking to it."""
    kept = note_kept_states(monkeypatch)
    for scoring in (True, False):
        said = getattr(SemGradLLM(model=local, max_tokens=3, scoring=scoring), ask)("the question")
        assert said if ask == "complete" else list(said)
    assert kept == [SemGradScorer(local).band_blocks, ()]


def test_a_model_that_cannot_be_scored_answers_all_the_same(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer is made before the writing, and must not cost the answer."""
    refuse_to_score(monkeypatch)
    response = SemGradLLM(model=local, max_tokens=3).complete("the question")
    assert response.text
    assert SCORE_KEY not in response.additional_kwargs


async def test_any_error_while_scoring_costs_the_score_only(llm: SemGradLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory on the device, say, is a RuntimeError."""
    text = llm.complete("the question").text
    fail_while_scoring(monkeypatch)
    completed = [
        llm.complete("the question"),
        await llm.acomplete("the question"),
        list(llm.stream_complete("the question"))[-1],
        [r async for r in await llm.astream_complete("the question")][-1],
    ]
    chatted = [
        llm.chat(USER),
        await llm.achat(USER),
        list(llm.stream_chat(USER))[-1],
        [r async for r in await llm.astream_chat(USER)][-1],
    ]
    assert [r.text for r in completed] == [text] * 4
    assert [r.message.content for r in chatted] == [text] * 4
    assert not any(SCORE_KEY in r.additional_kwargs for r in (*completed, *chatted))


def test_a_copy_writes_by_its_own_settings(llm: SemGradLLM) -> None:
    """It shares the model, not the settings."""
    assert len(llm.complete("the question").raw["answer_ids"]) > 2
    copied = llm.model_copy(update={"max_tokens": 2})
    assert len(copied.complete("the question").raw["answer_ids"]) == 2
    assert copied.local_model is llm.local_model


def test_an_error_while_writing_reaches_the_reader(llm: SemGradLLM) -> None:
    """Not a stream that ends too soon."""
    with pytest.raises(Exception, match="max_new_tokens"):
        list(llm.stream_complete("the question", max_tokens=-1))
