"""The LangChain adapter on the demo model inside `HuggingFacePipeline` and `ChatHuggingFace`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from langchain_semgrad import SemGradCallbackHandler, SemGradGuard
from semgrad_guard.models import LocalModel, load_model
from semgrad_guard.scoring import SemGradScorer

if TYPE_CHECKING:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    from semgrad_guard.flow import Record, Score

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]

POLICY: dict[str, Any] = {
    "version": 1,
    "scorer": {"model": "smollm2-135m"},
    "review": {"url": "sqlite:///:memory:"},
    "accept": 0.5,
    "otherwise": "answer_with_warning",
    "on_error": "abstain",
    "on_uncalibrated": "warn",
    "messages": {"unchecked": ""},
}
"""Everything passes and nothing needs a profile: only whether and how answers are scored matters here."""
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer in one word."), ("human", "{question}")])


@pytest.fixture(name="demo", scope="module")
def _demo() -> LocalModel:
    return load_model("smollm2-135m")


def pipeline_of(demo: LocalModel, **settings: Any) -> HuggingFacePipeline:
    """The demo model as people have it in LangChain."""
    from langchain_huggingface import HuggingFacePipeline
    from transformers import pipeline

    kwargs = {"max_new_tokens": 8, "do_sample": False, **settings}
    inner = pipeline("text-generation", model=demo.model, tokenizer=demo.tokenizer, **kwargs)
    return HuggingFacePipeline(pipeline=inner, model_id="smollm2-135m")


def chat_of(demo: LocalModel, **settings: Any) -> ChatHuggingFace:
    """The same as a chat model."""
    from langchain_huggingface import ChatHuggingFace

    return ChatHuggingFace(llm=pipeline_of(demo, **settings), tokenizer=demo.tokenizer, model_id="smollm2-135m")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Warnings of transformers' pipelines about their own settings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judged(record: Record) -> Score:
    """The score in a record."""
    score = record.attempts[0].decision.score
    assert score is not None, record.failures
    return score


@pytest.mark.parametrize("full", [False, True])
def test_a_chat_models_own_weights_score_its_answer(demo: LocalModel, full: bool) -> None:
    """Equal to scoring the exchange directly, whether the pipeline repeats the prompt or not."""
    llm = chat_of(demo, return_full_text=full)
    chain = PROMPT | llm | SemGradGuard(llm, policy=POLICY, output="result")
    result = chain.invoke({"question": "What is the capital of France?"})
    exchange, score = result.outcome.exchange, result.decision.score
    assert exchange.on_policy
    assert [m.role for m in exchange.prompt] == ["system", "user"]
    assert "Answer in one word" not in exchange.answer
    assert "<|im_start|>" not in exchange.answer
    assert score is not None
    assert not score.proxy
    direct = SemGradScorer(demo).score(exchange)
    assert dict(score.signals) == pytest.approx(dict(direct.signals), rel=2e-4)
    assert result.value.response_metadata["semgrad"]["score"] == score.value


def test_a_completion_pipeline_is_scored_without_its_prompt(demo: LocalModel) -> None:
    """Its text repeats the prompt by default."""
    llm = pipeline_of(demo)
    prompt = PromptTemplate.from_template("The capital of {country} is")
    result = (prompt | llm | SemGradGuard(llm, policy=POLICY, output="result")).invoke({"country": "France"})
    exchange = result.outcome.exchange
    assert exchange.on_policy
    assert exchange.prompt == "The capital of France is"
    assert not exchange.answer.startswith("The capital")
    assert result.value.startswith("The capital of France is")


def test_another_models_answers_are_scored_as_proxy(demo: LocalModel) -> None:
    """The guard's model did not write them."""
    llm = chat_of(demo, return_full_text=False)
    guard = SemGradGuard(model=demo, policy=POLICY, output="result")
    result = (PROMPT | llm | StrOutputParser() | guard).invoke({"question": "What is the capital of France?"})
    assert not result.outcome.exchange.on_policy
    assert result.decision.score is not None
    assert result.decision.score.proxy


def test_batches_and_streams_are_scored_too(demo: LocalModel) -> None:
    """One padded batch gives the numbers of one by one."""
    llm = chat_of(demo, return_full_text=False)
    guard = SemGradGuard(llm, policy=POLICY, output="result")
    questions = [{"question": f"What is the capital of {c}?"} for c in ("France", "Italy", "Norway")]
    together = (PROMPT | llm | guard).batch(questions, {"max_concurrency": 1})
    alone = [(PROMPT | llm | guard).invoke(q) for q in questions]
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        assert one.decision.score.value == pytest.approx(other.decision.score.value, rel=2e-4)
    (streamed,) = (PROMPT | llm | guard).stream(questions[0])
    assert streamed.decision.score.value == pytest.approx(alone[0].decision.score.value, rel=2e-4)


def test_observing_scores_in_the_background(demo: LocalModel) -> None:
    """The answer is given first."""
    llm = chat_of(demo, return_full_text=False)
    handler = SemGradCallbackHandler(llm, policy=POLICY)
    (PROMPT | llm).invoke({"question": "What is the capital of France?"}, {"callbacks": [handler]})
    assert handler.flush(60)
    (record,) = handler.records
    assert judged(record).model
    assert not judged(record).proxy
