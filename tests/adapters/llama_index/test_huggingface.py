"""LlamaIndex' own local LLM: its weights score its answers, from the very tokens that it read and wrote."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.instrumentation.events.llm import LLMCompletionEndEvent
from llama_index.llms.huggingface import HuggingFaceLLM

from llama_index_semgrad import SemGradGuard
from llama_index_semgrad.calls import call_of
from llama_index_semgrad.watcher import capturing
from semgrad_guard import models
from semgrad_guard.errors import OptionError
from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from tests.adapters.llama_index.world import QUESTION, index, llm
from tests.fakes import guard_of
from tests.unit.models.conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m"},
    "accept": 0.5,
    "otherwise": "answer_with_warning",
    "on_uncalibrated": "warn",
    "on_error": "abstain",
    "messages": {"warning": "", "unchecked": ""},
    "review": {"url": "sqlite:///:memory:"},
    "telemetry": {"langsmith": False, "otel": False},
}


@pytest.fixture(name="make", scope="module")
def _make() -> Callable[..., HuggingFaceLLM]:
    """Return a way to make LLMs over one tiny live model."""
    model, tokenizer = make_model(max_position_embeddings=2048), make_tokenizer()
    model.generation_config.pad_token_id = 0

    def make(**options: Any) -> HuggingFaceLLM:
        return HuggingFaceLLM(
            model=model,
            tokenizer=tokenizer,
            context_window=2048,
            max_new_tokens=6,
            generate_kwargs={"do_sample": False},
            **options,
        )

    return make


def outcome_of(hf: HuggingFaceLLM, **options: Any) -> tuple[Exchange, dict[str, Any]]:
    """Return what was judged about one question, and what the response says."""
    guard = SemGradGuard(policy=POLICY)
    engine = guard.wrap(index().as_query_engine(llm=hf, similarity_top_k=1, **options))
    judged: list[Exchange] = []
    parts = engine.guard.parts
    judge = parts.scorer.score
    parts.scorer.score = lambda exchange, **limits: judged.append(exchange) or judge(exchange, **limits)
    response = engine.query(QUESTION)
    str(response)
    return judged[0], response.metadata["semgrad"]


@pytest.mark.parametrize("is_chat", [False, True])
def test_the_model_is_shared_and_its_own_tokens_are_scored(make: Any, is_chat: bool, monkeypatch: Any) -> None:
    """A second copy of the weights may not fit, and other tokens would be another answer."""
    monkeypatch.setattr(models.load, "_from_files", lambda *_: pytest.fail("a model was loaded"))
    hf = make(is_chat_model=is_chat)
    exchange, found = outcome_of(hf)
    assert exchange.on_policy
    assert found["proxy"] is False
    assert isinstance(exchange.prompt, str)
    assert exchange.prompt_ids == tuple(hf._tokenizer(exchange.prompt)["input_ids"])
    assert 1 <= len(exchange.answer_ids) <= 6
    assert hf._tokenizer.decode(exchange.answer_ids, skip_special_tokens=True) == exchange.answer
    want = SemGradScorer(LocalModel(hf._model, hf._tokenizer, "tiny")).score(exchange)
    assert math.isclose(found["score"], want.value, rel_tol=2e-4)


def test_a_streamed_answer_is_on_policy_too(make: Any) -> None:
    """Its ids are not given when streaming, but the text that the model read is."""
    exchange, _ = outcome_of(make(), streaming=True)
    assert exchange.on_policy
    assert exchange.prompt_ids is None
    assert QUESTION in exchange.prompt


def test_an_answer_of_another_model_is_a_proxy(make: Any) -> None:
    """The scoring model did not write it."""
    exchange_author = "scripted"
    guard = SemGradGuard(make(), policy=POLICY)
    response = guard.wrap(index().as_query_engine(llm=llm("Marie Curie."), similarity_top_k=1)).query(QUESTION)
    assert response.metadata["semgrad"]["proxy"] is True
    assert response.metadata["semgrad"]["author"] == exchange_author


def test_a_ready_guard_is_not_taken_to_score_with_the_engines_model(make: Any) -> None:
    """Another model's tokens in its place would be scored as if they were its own."""
    hf = make()
    for chosen, on_policy in ((SemGradGuard(guard=guard_of(default=0.1)), False), (None, True)):
        guard = chosen or SemGradGuard(hf, guard=guard_of(default=0.1))
        guard.wrap(index().as_query_engine(llm=hf, similarity_top_k=1)).query(QUESTION)
        (exchange,) = guard.guard.parts.scorer.seen
        assert exchange.on_policy is on_policy
        assert (exchange.prompt_ids is not None) is on_policy


def test_only_one_thing_names_the_scoring_model(make: Any) -> None:
    """Two would leave it open whose answer is whose."""
    with pytest.raises(OptionError, match="each names the scoring model"):
        SemGradGuard(make(), model="smollm2-135m")
    with pytest.raises(OptionError, match="alone or with llm"):
        SemGradGuard(guard=guard_of(), policy=POLICY)
    with pytest.raises(OptionError, match="'buffer', 'annotate'"):
        SemGradGuard(stream="live")  # type: ignore[arg-type]


def test_a_prompt_that_the_llm_wraps_is_found_in_its_tokens(make: Any) -> None:
    """`complete` puts the wrapper prompt around a text that is not formatted, and the event does not say so."""
    hf = make(query_wrapper_prompt="the passage: {query_str} the answer:")
    with capturing() as calls:
        text = hf.complete("the question").text
    (call,) = calls
    prompt_ids, answer_ids = call.ids()
    assert hf._tokenizer.decode(answer_ids, skip_special_tokens=True) == text
    assert "the passage" in hf._tokenizer.decode(prompt_ids)


def test_tokens_that_do_not_fit_the_text_are_not_used(make: Any) -> None:
    """Better to tokenise again than to score something else."""
    response = CompletionResponse(text="another text", raw={"model_output": "not token ids"})
    assert call_of(LLMCompletionEndEvent(prompt="the question", response=response), make()).ids() is None


def test_writing_and_scoring_at_the_same_time_do_not_disturb_each_other(make: Any) -> None:
    """One thread writes with the model that another one is scoring with."""
    hf = make()
    scorer = SemGradScorer(LocalModel(hf._model, hf._tokenizer, "tiny"))
    exchange = Exchange(prompt="the question " * 20, answer="the answer is in the passage", on_policy=True)
    prompts = [f"the passage {i} about colours" for i in range(8)]
    texts, score = [hf.complete(p).text for p in prompts], scorer.score(exchange).value
    with ThreadPoolExecutor(6) as pool:
        written = [pool.submit(lambda p: hf.complete(p).text, p) for _ in range(6) for p in prompts]
        scored = [pool.submit(scorer.score, exchange) for _ in range(48)]
        assert [f.result() for f in written] == texts * 6
        assert [f.result().value for f in scored] == pytest.approx([score] * 48, rel=2e-4)
