"""The official client against the server: what its users read, whole and streamed, and the errors that they catch."""

from __future__ import annotations

import openai
import pytest

from semgrad_guard import Exchange, Guard
from semgrad_guard.wire import served_score
from tests.scoring_server import scoring_server

ASK = {"messages": [{"role": "user", "content": "Capital of France?"}]}
SIGNALS = {"semgrad": {"signals": True}}


@pytest.fixture(name="server", scope="module")
def _server():
    with scoring_server() as served:
        yield served


@pytest.fixture(name="client")
def _client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_whole_answers_carry_the_score(server, client):
    """`response.semgrad` needs no subclass."""
    response = client.chat.completions.create(model=server.model, extra_body=SIGNALS, **ASK)
    score = served_score(response)
    assert response.semgrad["score"] == score.value
    assert response.usage.semgrad["decision"] is None
    raw = client.completions.create(model=server.model, prompt="Capital of France?", extra_body=SIGNALS)
    assert served_score(raw).path == "reused"


def test_streams_carry_it_in_the_last_piece(server, client):
    """And the pieces are what the client expects."""
    with client.chat.completions.create(model=server.model, stream=True, extra_body=SIGNALS, **ASK) as stream:
        pieces = list(stream)
    assert served_score(pieces[-1]).path == "reused"
    assert all(served_score(piece) is None for piece in pieces[:-1])


def test_a_guard_takes_the_score_that_came_along(server, client):
    """Without any framework."""
    response = client.chat.completions.create(model=server.model, extra_body=SIGNALS, **ASK)
    guard = Guard.from_yaml(server.policy)
    server.asked.clear()
    text = response.choices[0].message.content
    decision = guard.judge(Exchange(prompt="Capital of France?", answer=text, score=served_score(response)))
    assert decision.score.value == response.semgrad["score"]
    assert server.asked["/v1/score"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_that_its_users_catch(server, client, stream):
    """By type and by code."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", stream=stream, **ASK)
    assert missing.value.code == "model_not_found"
    long = [{"role": "user", "content": "x" * 3000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=server.model, messages=long, stream=stream)
    assert too_long.value.code == "context_length_exceeded"
