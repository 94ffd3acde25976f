"""A chat model at a scoring server keeps the score that came along, and the guard behind it uses that one."""

from __future__ import annotations

import pytest
from langchain_core.prompts import ChatPromptTemplate

from langchain_semgrad import ChatSemGradServer, SemGradGuard
from semgrad_guard.wire import score_from_fields
from tests.scoring_server import scoring_server

QUESTION = "Capital of France?"


@pytest.fixture(name="server", scope="module")
def _server():
    with scoring_server() as served:
        yield served


def model(server, **more) -> ChatSemGradServer:
    return ChatSemGradServer(model=server.model, base_url=f"{server.url}/v1", **more)


def check(message) -> None:
    """The findings are the server's, and the score is whole and of the single pass."""
    found, score = message.response_metadata["semgrad"], score_from_fields(message.response_metadata["semgrad_score"])
    assert found["score"] == score.value
    assert (score.path, score.proxy) == ("reused", False)
    assert message.usage_metadata["output_tokens"] == 8


def test_an_answer_keeps_its_score(server):
    """ChatOpenAI alone drops what is beside the choices."""
    check(model(server).invoke(QUESTION))


def test_a_streamed_answer_keeps_its_score(server):
    """The last piece carries it, and adding the pieces up does not double it."""
    pieces = list(model(server, stream_usage=True).stream(QUESTION))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    check(whole)
    assert whole.content == model(server).invoke(QUESTION).content


async def test_async_callers_keep_it_too(server):
    """Both ways go through the same conversion."""
    check(await model(server).ainvoke(QUESTION))
    found = [piece async for piece in model(server).astream(QUESTION)]
    assert sum("semgrad_score" in piece.response_metadata for piece in found) == 1


def test_the_confidence_alone_comes_without_the_score(server):
    """Signals are asked for."""
    metadata = model(server, signals=False).invoke(QUESTION).response_metadata
    assert "semgrad_score" not in metadata
    assert metadata["semgrad"]["method"] == "hybridgrad"


@pytest.mark.parametrize("stream", [False, True])
def test_the_guard_behind_it_does_not_score_again(server, stream):
    """The same backward pass would be paid twice."""
    guard = SemGradGuard(policy=server.policy, output="result")
    chain = ChatPromptTemplate.from_template("{question}") | model(server) | guard
    server.asked.clear()
    answer = list(chain.stream({"question": QUESTION}))[-1] if stream else chain.invoke({"question": QUESTION})
    assert server.asked["/v1/chat/completions"] == 1
    assert server.asked["/v1/score"] == 0
    (attempt,) = answer.outcome.attempts
    assert attempt.decision.score.path == "reused"


def test_a_score_of_another_text_is_not_used(server):
    """A step between model and guard changed the answer."""
    guard = SemGradGuard(policy=server.policy, output="result")
    chain = model(server) | (lambda message: message.content + " And more.") | guard
    server.asked.clear()
    chain.invoke(QUESTION)
    assert server.asked["/v1/score"] == 1


def test_defaults_are_those_of_a_server_on_this_machine():
    """One argument is enough to try it."""
    made = ChatSemGradServer(model="smollm2-135m", extra_body={"top_k": 5})
    assert str(made.openai_api_base) == "http://127.0.0.1:8788/v1"
    assert made.extra_body == {"top_k": 5, "semgrad": {"signals": True}}
