"""What LiteLLM's proxy asks a generic guardrail, in the form of its release 1.108."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from semgrad_guard.guard import Guard
from semgrad_guard.serving import Limits, ServerSettings, create_app
from semgrad_guard.serving.litellm_guardrail import AskedPrompts
from tests.fakes import OneMinusScore, TableScorer

PATH = "/beta/litellm_basic_guardrail_api"
MESSAGES = [{"role": "user", "content": "Capital of France?"}]
AROUND = {
    "litellm_trace_id": "t", "images": None, "tools": None, "request_data": {"user_api_key_alias": "a"},
    "request_headers": {"host": "x"}, "litellm_version": "1.108.7", "tool_calls": None, "model": "gpt",
}  # fmt: skip
"""What LiteLLM sends beside."""


@contextmanager
def litellm(scores=None, default=0.1, **settings):
    """Give functions that ask as LiteLLM does before and after the model's call, and the scorer."""
    scorer = TableScorer(scores or {}, default)
    app = create_app(ServerSettings(limits=Limits(window_s=0.0), **settings), scorer=scorer)
    backend = app.state.backend
    backend.guard = Guard(replace(backend.guard.parts, calibrator=OneMinusScore()))
    with TestClient(app) as client:

        def before(call_id="1", messages=MESSAGES):
            texts = [message["content"] for message in messages]
            body = {**AROUND, "input_type": "request", "litellm_call_id": call_id, "texts": texts}
            return client.post(PATH, json={**body, "structured_messages": messages}).json()

        def after(*texts, call_id="1", **more):
            body = {**AROUND, "input_type": "response", "litellm_call_id": call_id, "texts": texts}
            answer = client.post(PATH, json={**body, "structured_messages": None, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield before, after, scorer


def test_the_prompt_of_the_first_call_is_what_the_answer_is_judged_by():
    """The second call says nothing of it."""
    with litellm(accept=0.7) as (before, after, scorer):
        assert before()["action"] == "NONE"
        reply = after("Paris")
    assert reply["action"] == "NONE"
    assert reply["semgrad"][0]["confidence"] == pytest.approx(0.9)
    (exchange,) = scorer.seen
    assert (exchange.prompt[0].content, exchange.answer, exchange.author) == ("Capital of France?", "Paris", "gpt")


def test_a_doubtful_answer_is_blocked_with_the_policys_message():
    """Blocking is what LiteLLM carries out in streams too."""
    with litellm({"Lyon": 0.9}, accept=0.7) as (before, after, _):
        before()
        reply = after("Lyon")
    assert (reply["action"], reply["blocked_reason"]) == ("BLOCKED", "I am not sure enough to answer that.")
    assert reply["texts"] is None


def test_the_message_takes_the_answers_place_on_request():
    """For chats that must not end in an error."""
    options = {"additional_provider_specific_params": {"on_withheld": "message", "vendor": 1}}
    with litellm({"Lyon": 0.9}, accept=0.7) as (before, after, _):
        before()
        reply = after("Paris", "Lyon", "", **options)
    assert reply["action"] == "GUARDRAIL_INTERVENED"
    assert reply["texts"] == ["Paris", "I am not sure enough to answer that.", ""]


def test_a_warning_is_put_before_the_answer():
    """The answer is given, and marked."""
    policy = {"accept": 0.7, "otherwise": "answer_with_warning", "messages": {"warning": "Check this."}}
    with litellm(default=0.9, policy=policy) as (before, after, _):
        before()
        reply = after("Lyon")
    assert reply["action"] == "GUARDRAIL_INTERVENED"
    assert reply["texts"][0].startswith("Check this.")


def test_without_a_policy_nothing_is_changed():
    """Measuring alone must not break a gateway."""
    with litellm(default=0.9) as (before, after, _):
        before()
        assert after("Lyon")["action"] == "NONE"
        assert after("Lyon", call_id="unknown")["action"] == "NONE"


def test_an_answer_whose_prompt_was_never_seen_is_blocked_under_a_policy():
    """Fail closed, and say how LiteLLM is configured right."""
    with litellm(accept=0.7) as (_, after, scorer):
        reply = after("Paris", call_id="unknown")
    assert reply["action"] == "BLOCKED"
    assert "pre_call" in reply["semgrad"][0]["error"]
    assert scorer.seen == []


def test_calls_of_tools_pass():
    """There is no answer yet."""
    with litellm(default=0.9, accept=0.7) as (before, after, _):
        before()
        assert after(tool_calls=[{"id": "1"}])["action"] == "NONE"


def test_prompts_are_forgotten_in_time_and_number():
    """Answers that never come must not fill the memory."""
    now = [0.0]
    asked = AskedPrompts(most=2, keep_s=10, clock=lambda: now[0])
    for call_id in "abc":
        asked.keep(call_id, MESSAGES, 1)
    assert asked.find("a") is None
    assert asked.find("c") == MESSAGES
    now[0] = 11.0
    assert asked.find("c") is None
    asked.keep("d", MESSAGES, 1)
    assert list(asked._kept) == ["d"]


def test_prompts_are_forgotten_where_they_are_large():
    """Ten thousand of the largest requests would be more memory than most machines have."""
    asked = AskedPrompts(most_bytes=100)
    for call_id in "abc":
        asked.keep(call_id, MESSAGES, 40)
    assert list(asked._kept) == ["b", "c"]
    asked.keep("c", MESSAGES, 90)
    assert list(asked._kept) == ["c"]
    asked.keep("d", MESSAGES, 1000)
    assert (list(asked._kept), asked._n_bytes) == ([], 0)
