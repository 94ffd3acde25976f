"""LlamaIndex on the real demo model: shared weights, exact tokens, a retry that really reads more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("llama_index.llms.huggingface", reason="needs llama-index-llms-huggingface")

from llama_index.llms.huggingface import HuggingFaceLLM

from llama_index_semgrad import SemGradGuard, SemGradLLM
from semgrad_guard.flow import Exchange
from semgrad_guard.models import load_model
from semgrad_guard.scoring import SemGradScorer
from tests.adapters.llama_index.index_and_llm import QUESTION, _own_loop, index

if TYPE_CHECKING:
    from semgrad_guard.models import LocalModel

__all__ = ["_own_loop"]

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]

QUIET: dict[str, Any] = {"review": {"url": "sqlite:///:memory:"}, "telemetry": {"langsmith": False, "otel": False}}
SCORER = {"model": "smollm2-135m", "profile": "smollm2-135m-demo"}
GIVE = {"version": 1, "accept": 0.0, "scorer": SCORER, **QUIET}
RETRY = {**GIVE, "accept": 1.0, "escalate": [{"retry_retrieval": {"top_k": 4}}], "otherwise": "answer_with_warning"}


@pytest.fixture(name="demo", scope="module")
def _demo() -> LocalModel:
    """Return the demo model."""
    return load_model("smollm2-135m")


@pytest.fixture(name="hf", scope="module")
def _hf(demo: LocalModel) -> HuggingFaceLLM:
    """Return LlamaIndex' own LLM over the demo model."""
    return HuggingFaceLLM(
        model=demo.model,
        tokenizer=demo.tokenizer,
        context_window=2048,
        max_new_tokens=24,
        is_chat_model=True,
        generate_kwargs={"do_sample": False},
    )


def judged_by(engine: Any) -> list[Exchange]:
    """Return a list that gets every exchange that is scored."""
    scorer = engine.guard.parts.scorer
    judged: list[Exchange] = []
    score = scorer.score
    scorer.score = lambda exchange, **limits: judged.append(exchange) or score(exchange, **limits)
    return judged


def test_the_llm_scores_itself_from_its_own_tokens(hf: HuggingFaceLLM, demo: LocalModel) -> None:
    """One set of weights, and not a token guessed."""
    engine = SemGradGuard(policy=GIVE).wrap(index().as_query_engine(llm=hf, similarity_top_k=2))
    judged = judged_by(engine)
    response = engine.query(QUESTION)
    (exchange,) = judged
    assert "Curie" in response.response
    assert exchange.on_policy
    assert exchange.prompt_ids == demo.encode_prompt(exchange.prompt)
    assert exchange.answer_ids[-1] in demo.end_ids
    found = response.metadata["semgrad"]
    assert (found["proxy"], found["status"]) == (False, "answered")
    assert 0 < found["confidence"] < 1
    assert found["score"] == pytest.approx(SemGradScorer(demo).score(exchange).value, rel=2e-4)


def test_a_retry_reads_more_and_is_scored_again(hf: HuggingFaceLLM) -> None:
    """Both attempts are in the response's metadata; the longer prompt is what the second one read."""
    engine = SemGradGuard(policy=RETRY).wrap(index().as_query_engine(llm=hf, similarity_top_k=1))
    judged = judged_by(engine)
    response = engine.query(QUESTION)
    assert [len(exchange.passages) for exchange in judged] == [1, 4]
    assert len(judged[1].prompt_ids) > len(judged[0].prompt_ids)
    assert judged[0].answer not in judged[1].prompt
    assert response.metadata["semgrad"]["n_attempts"] == 2


async def test_the_single_pass_llm_works_in_an_async_engine(demo: LocalModel) -> None:
    """The score comes from the cache of the writing."""
    llm = SemGradLLM(model=demo, max_tokens=24)
    engine = SemGradGuard(policy=GIVE).wrap(index().as_query_engine(llm=llm, similarity_top_k=2, use_async=True))
    judged = judged_by(engine)
    response = await engine.aquery(QUESTION)
    assert "Curie" in response.response
    assert judged[0].score.path == "reused"
    again = Exchange(prompt_ids=judged[0].prompt_ids, answer_ids=judged[0].answer_ids, on_policy=True)
    cold = SemGradScorer(demo).score(again)
    assert response.metadata["semgrad"]["score"] == pytest.approx(cold.value, rel=2e-4)
