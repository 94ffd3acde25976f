"""LlamaIndex' `OpenAILike` at a scoring server: the score stays in the raw response, and the guard uses it."""

from __future__ import annotations

import pytest
from llama_index.llms.openai_like import OpenAILike

from llama_index_semgrad import SemGradGuard
from semgrad_guard.wire import served_findings, served_score
from tests.adapters.llama_index.index_and_llm import index
from tests.scoring_server import scoring_server


@pytest.fixture(name="server", scope="module")
def _server():
    with scoring_server() as served:
        yield served


@pytest.fixture(name="llm", params=[True, False], ids=["chat", "text"])
def _llm(server, request) -> OpenAILike:
    body = {"extra_body": {"semgrad": {"signals": True}}}
    return OpenAILike(
        model=server.model,
        api_base=f"{server.url}/v1",
        api_key="none",
        is_chat_model=request.param,
        additional_kwargs=body,
        max_tokens=6,
        context_window=2000,
    )


def test_whole_and_streamed_answers_keep_their_score(llm):
    """The raw response of the client holds it."""
    whole = llm.complete("Capital of France?")
    *_, last = llm.stream_complete("Capital of France?")
    for response in (whole, last):
        score = served_score(response.raw)
        assert score is not None
        assert score.path == "reused"
        assert served_findings(response.raw)["score"] == score.value


@pytest.mark.parametrize("streaming", [False, True])
def test_the_guard_around_an_engine_does_not_score_again(server, llm, streaming):
    """The same backward pass would be paid twice."""
    engine = index().as_query_engine(llm=llm, similarity_top_k=1, streaming=streaming, response_mode="simple_summarize")
    guarded = SemGradGuard(policy=server.policy).wrap(engine)
    server.asked.clear()
    response = guarded.query("Who won?")
    str(response)
    assert server.asked["/v1/chat/completions"] + server.asked["/v1/completions"] == 1
    assert server.asked["/v1/score"] == 0
    assert response.metadata["semgrad"]["score"] is not None
