"""Answers in OpenAI's form, of a local model and of a server behind, and what a policy makes of them."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from semgrad_guard.errors import QueueUnavailableError, ScoringError, StepUnavailableError
from semgrad_guard.guard import Guard
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.serving import KeyFile, Limits, ServerSettings, create_app
from semgrad_guard.wire import score_from_fields
from tests.fakes import MemoryQueue, MemorySink, OneMinusScore, TableScorer
from tests.models_for_tests import local_model
from tests.review_site import serving
from tests.unit.serving.upstreams import Scripted

ASK = {"model": "any", "messages": [{"role": "user", "content": "Capital of France?"}]}
LIMITS = Limits(window_s=0.0, shutdown_s=2.0)


class Desk:
    """Servers on this machine: a script that writes, and in front of it the server under test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.upstream, self.sink, self.queue = Scripted(), MemorySink(), MemoryQueue()

    def start(self, upstream: Scripted) -> str:
        return self._stack.enter_context(serving(upstream.app())) + "/v1"

    def serve(self, *, scores=None, default=0.1, keys=None, address=None, **settings) -> str:
        """Return the address of a server in front of the script; a score of 0.1 is a confidence of 0.9."""
        chosen = ServerSettings(upstream=address or self.start(self.upstream), **{"limits": LIMITS, **settings})
        app = create_app(chosen, scorer=TableScorer(scores or {}, default), keys=keys)
        backend = app.state.backend
        parts = replace(backend.guard.parts, calibrator=OneMinusScore(), sink=self.sink)
        backend.guard = Guard(replace(parts, queue=self.queue) if parts.queue is not None else parts)
        return self._stack.enter_context(serving(app)) + "/v1"


@pytest.fixture(name="desk")
def _desk():
    with ExitStack() as stack:
        yield Desk(stack)


def ask(url: str, path: str = "/chat/completions", **more) -> httpx.Response:
    return httpx.post(url + path, json={**ASK, **more}, timeout=30)


def events(answer: httpx.Response) -> list[dict]:
    """Return the pieces of a stream that came to its end."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(pieces: list[dict]) -> str:
    return "".join(c["delta"].get("content") or "" for piece in pieces for c in piece["choices"])


def told(pieces: list[dict]) -> dict:
    found = [piece["semgrad"] for piece in pieces if "semgrad" in piece]
    assert found == [found[0]] * len(found)
    return found[0]


# --- an upstream that writes ------------------------------------------------------------------------------------------


def test_the_answer_carries_its_confidence_in_three_places(desk):
    """Each client keeps another one of them."""
    answer = ask(desk.serve())
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "Paris"
    assert body["semgrad"]["confidence"] == pytest.approx(0.9)
    assert body["usage"]["semgrad"] == {"confidence": pytest.approx(0.9), "decision": None}
    assert body["usage"]["total_tokens"] == 8
    assert answer.headers["x-semgrad-confidence"] == "0.9000"
    assert "scored" not in body["semgrad"]


def test_unknown_fields_are_passed_on_and_the_servers_own_are_not(desk):
    """A gateway must not lose what only the servers at both ends know."""
    desk.upstream.more = {"vendor": {"x": 1}}
    body = ask(desk.serve(), top_k=5, semgrad={"signals": True, "question": "Capital?"}).json()
    assert desk.upstream.asked[0]["top_k"] == 5
    assert "semgrad" not in desk.upstream.asked[0]
    assert body["vendor"] == {"x": 1}
    assert score_from_fields(body["semgrad"]["scored"]).value == pytest.approx(0.1)
    assert body["semgrad"]["signals"] == {"fake": 0.1}


def test_a_mistake_in_the_servers_own_options_is_told(desk):
    """A misspelt option would silently have no effect."""
    answer = ask(desk.serve(), semgrad={"signal": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "semgrad.signal")
    assert desk.upstream.asked == []


def test_a_doubtful_answer_is_held_back_whole(desk):
    """Nothing of it may be left anywhere in the response."""
    desk.upstream.text = "SECRET answer"
    desk.upstream.choice = {"logprobs": {"content": [{"token": "SECRET"}]}}
    desk.upstream.more = {"reasoning": "SECRET"}
    url = desk.serve(accept=0.7, default=0.9)
    answer = ask(url)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "I am not sure enough to answer that."
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert (body["semgrad"]["decision"], body["semgrad"]["withheld"]) == ("abstain", True)
    assert answer.headers["x-semgrad-decision"] == "abstain"
    assert "SECRET" not in answer.text
    with_signals = ask(url, semgrad={"signals": True}).json()["semgrad"]
    assert with_signals["scored"] is None  # it is no score of the text that is given
    streamed = ask(url, stream=True)
    assert text_of(events(streamed)) == "I am not sure enough to answer that."
    assert "SECRET" not in streamed.text
    assert [record.status for record in desk.sink.records] == ["abstained"] * 3


def test_a_warning_stands_before_the_answer_but_not_in_json(desk):
    """A program that reads JSON gets it unbroken, and the warning beside it."""
    policy = {"accept": 0.7, "otherwise": "answer_with_warning", "messages": {"warning": "Check this."}}
    url = desk.serve(policy=policy, default=0.9)
    plain = ask(url).json()
    assert plain["choices"][0]["message"]["content"].startswith("Check this.")
    assert plain["choices"][0]["finish_reason"] == "stop"
    as_json = ask(url, response_format={"type": "json_object"}).json()
    assert as_json["choices"][0]["message"]["content"] == "Paris"
    assert as_json["semgrad"]["warning"] == "Check this."


def test_a_fallback_server_is_asked_and_its_answer_is_judged_too(desk):
    """The policy's `fallback_model` names a server."""
    bigger = Scripted(text="Lyon")
    url = desk.serve(
        policy={"accept": 0.7, "escalate": [{"fallback_model": {"name": "big"}}]},
        fallbacks=(("big", f"{desk.start(bigger)}#bigger"),),
        scores={"Paris": 0.9, "Lyon": 0.2},
    )
    body = ask(url, temperature=0.5).json()
    assert body["choices"][0]["message"]["content"] == "Lyon"
    assert body["semgrad"]["confidence"] == pytest.approx(0.8)
    assert (body["model"], body["semgrad"]["n_attempts"]) == ("scripted", 2)
    assert (bigger.asked[0]["model"], bigger.asked[0]["temperature"]) == ("bigger", 0.5)


def test_a_fallback_that_nobody_gave_is_said_at_the_start(desk):
    """Not at the first doubtful answer."""
    with pytest.raises(StepUnavailableError, match="--fallback"):
        desk.serve(policy={"accept": 0.7, "escalate": [{"fallback_model": {"name": "big"}}]})


def test_an_answer_that_waits_for_a_person_is_pending(desk):
    """And where the queue cannot take it, it is held back."""
    policy = {"accept": 0.7, "escalate": ["human_review"], "review": {"url": "sqlite://"}}
    url = desk.serve(policy=policy, default=0.9)
    body = ask(url).json()
    assert body["choices"][0]["message"]["content"] == "A person will answer this."
    assert (body["semgrad"]["status"], body["semgrad"]["review_id"]) == ("pending", "item-1")
    desk.queue.fault = QueueUnavailableError("disk full")
    broken = ask(url).json()
    assert broken["choices"][0]["message"]["content"] == "I am not sure enough to answer that."
    assert "disk full" in broken["semgrad"]["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_judged_takes_on_error(desk, stream):
    """Nothing unjudged is let through under a policy; without one it passes and says why."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    free, held = (ask(desk.serve(**given), messages=messages, stream=stream) for given in ({}, {"accept": 0.5}))
    if stream:
        assert text_of(events(free)).strip() == "Paris"
        assert "image_url" in told(events(free))["error"]
        assert text_of(events(held)) == "I am not sure enough to answer that."
    else:
        assert free.json()["choices"][0]["message"]["content"] == "Paris"
        assert "image_url" in free.json()["semgrad"]["error"]
        assert held.json()["choices"][0]["message"]["content"] == "I am not sure enough to answer that."


def test_each_of_several_choices_is_judged(desk):
    """A caller who samples gets a number for each."""
    body = ask(desk.serve(), n=3).json()
    assert [choice["semgrad"]["confidence"] for choice in body["choices"]] == [pytest.approx(0.9)] * 3
    assert body["semgrad"] == body["choices"][0]["semgrad"]


@pytest.mark.parametrize("content", [None, "SECRET thoughts"])
def test_calls_of_tools_pass_and_doubtful_text_beside_them_does_not(desk, content):
    """An agent must be able to go on; what it shows its user is judged."""
    calls = [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    desk.upstream.choice = {"message": message, "finish_reason": "tool_calls"}
    answer = ask(desk.serve(accept=0.7, default=0.9), tools=[{"type": "function"}])
    choice = answer.json()["choices"][0]
    assert (choice["message"]["tool_calls"], choice["finish_reason"]) == (calls, "tool_calls")
    assert "SECRET" not in answer.text


def test_streamed_words_come_as_they_are_and_the_last_piece_tells(desk):
    """A guard that only measures must not make readers wait."""
    desk.upstream.text = "Paris it is"
    pieces = events(ask(desk.serve(), stream=True, stream_options={"include_usage": True}))
    assert text_of(pieces) == "Paris it is "
    assert told(pieces)["confidence"] == pytest.approx(0.9)
    assert pieces[-1]["usage"]["semgrad"]["confidence"] == pytest.approx(0.9)
    ending = next(piece for piece in pieces if piece["choices"] and piece["choices"][0]["finish_reason"])
    assert "semgrad" in ending


def test_sentences_are_sent_while_the_answer_is_good_enough(desk):
    """Readers see the good part at once, and nothing after the first doubtful sentence."""
    desk.upstream.pieces = ["One is ", "good. ", "Two is ", "good. ", "Three is bad. ", "Four."]
    scores = {"One is good. Two is good. Three is bad.": 0.9, "One is good. Two is good. Three is bad. Four.": 0.9}
    url = desk.serve(accept=0.7, stream="sentence", scores=scores)
    pieces = events(ask(url, stream=True))
    assert text_of(pieces) == "One is good. Two is good.\n\nI am not sure enough to answer that."
    assert (told(pieces)["withheld"], pieces[-1]["choices"][0]["finish_reason"]) == (True, "content_filter")


def test_a_good_answer_by_sentence_is_whole(desk):
    """Nothing is lost or sent twice."""
    desk.upstream.pieces = ["One is ", "good. Two", " is good. ", "Three."]
    pieces = events(ask(desk.serve(accept=0.7, stream="sentence"), stream=True))
    assert text_of(pieces) == "One is good. Two is good. Three."
    assert told(pieces)["decision"] == "accept"


def test_a_completion_of_text_is_judged_like_a_chat(desk):
    """The older form is still what base models speak."""
    url = desk.serve()
    body = httpx.post(url + "/completions", json={"model": "m", "prompt": "Capital of France:"}, timeout=30).json()
    assert (body["choices"][0]["text"], body["semgrad"]["confidence"]) == ("Paris", pytest.approx(0.9))


# --- an upstream in trouble -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_is_down_is_502(desk, stream):
    """The client's own retries understand it."""
    answer = ask(desk.serve(address="http://127.0.0.1:9/v1"), stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


def test_an_upstream_that_is_too_slow_is_504(desk):
    """The limit is the server's own."""
    desk.upstream.hangs_s = 5
    answer = ask(desk.serve(limits=replace(LIMITS, seconds=0.2)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("instead", [PlainTextResponse("<html>"), JSONResponse({"ok": True})])
def test_an_upstream_that_answers_something_else_is_502(desk, instead, stream):
    """A login page of a proxy is no answer."""
    desk.upstream.instead = instead
    answer = ask(desk.serve(), stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_not_openai")


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_upstream_refuses_is_passed_on(desk, stream):
    """The client knows its server's errors."""
    refusal = {"error": {"message": "no such model", "type": "not_found_error", "code": "model_not_found"}}
    desk.upstream.instead = JSONResponse(refusal, 404, {"Retry-After": "7"})
    answer = ask(desk.serve(), stream=stream)
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (404, refusal, "7")


def test_a_stream_that_breaks_off_ends_in_an_error_and_is_not_judged(desk):
    """Half an answer must not look like one."""
    desk.upstream.text, desk.upstream.breaks_off = "Paris is the capital", True
    answer = ask(desk.serve(), stream=True)
    last = answer.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_stream_broken"
    assert 'semgrad": {"decision' not in answer.text
    assert desk.sink.records == []


# --- another server for one in trouble --------------------------------------------------------------------------------

BIG = {"accept": 0.7, "escalate": [{"fallback_model": {"name": "big"}}]}
REFUSAL = {"error": {"message": "trouble", "type": "server_error", "code": "trouble"}}
TROUBLES = {
    "down": {"address": "http://127.0.0.1:9/v1"},
    "slow": {"upstream": Scripted(hangs_s=5), "limits": replace(LIMITS, seconds=20, upstream_s=0.3)},
    "html": {"upstream": Scripted(instead=PlainTextResponse("<html>"))},
    "overloaded": {"upstream": Scripted(instead=JSONResponse(REFUSAL, 429))},
    "broken": {"upstream": Scripted(instead=JSONResponse(REFUSAL, 500))},
}


def in_trouble(desk, name, *, bigger, policy=None, **more):
    """Return the address of a server whose upstream is in trouble, and whose policy names another one."""
    trouble = dict(TROUBLES[name])
    upstream = trouble.pop("upstream", None)
    address = trouble.pop("address", None) or desk.start(upstream)
    found = {"policy": policy or BIG, "fallbacks": (("big", f"{desk.start(bigger)}#bigger"),), **trouble, **more}
    return desk.serve(address=address, **found)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_policys_fallback_answers_for_an_upstream_in_trouble(desk, trouble, stream):
    """Its answer is judged like any other, and the caller is told why it is not the upstream's."""
    bigger = Scripted(text="Lyon")
    answer = ask(in_trouble(desk, trouble, bigger=bigger, scores={"Lyon": 0.2}), stream=stream)
    assert answer.status_code == 200, answer.text
    if stream:
        assert (text_of(events(answer)), told(events(answer))["confidence"]) == ("Lyon", pytest.approx(0.8))
    else:
        body = answer.json()
        assert body["choices"][0]["message"]["content"] == "Lyon"
        assert (body["model"], body["semgrad"]["author"]) == ("scripted", "scripted")
        assert body["semgrad"]["confidence"] == pytest.approx(0.8)
        assert body["semgrad"]["error"].startswith(("UpstreamError", "RefusedByUpstreamError"))
    assert bigger.asked[0]["model"] == "bigger"
    (record,) = desk.sink.records
    assert [attempt.exchange.answer for attempt in record.attempts] == ["", "Lyon"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_doubtful_answer_of_the_fallback_is_held_back(desk, stream):
    """Trouble is no reason to let through what nobody would."""
    answer = ask(in_trouble(desk, "down", bigger=Scripted(text="SECRET city"), scores={}, default=0.9), stream=stream)
    assert "SECRET" not in answer.text
    text = text_of(events(answer)) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == "I am not sure enough to answer that."


def test_an_answer_of_the_fallback_that_cannot_be_judged_takes_on_error(desk):
    """Nothing unjudged is let through."""
    url = in_trouble(desk, "down", bigger=Scripted(text="SECRET city"), scores={"SECRET city": ScoringError("broken")})
    answer = ask(url)
    assert "SECRET" not in answer.text
    assert answer.json()["semgrad"]["rule"] == "on_error"


def test_a_prompt_that_cannot_be_judged_is_not_sent_to_the_fallback(desk):
    """Its answer would be judged without what the picture shows."""
    bigger = Scripted(text="Lyon")
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    answer = ask(in_trouble(desk, "down", bigger=bigger), messages=messages)
    assert (answer.status_code, answer.json()["error"]["code"], bigger.asked) == (502, "upstream_unreachable", [])


@pytest.mark.parametrize("stream", [False, True])
def test_where_the_fallback_fails_too_the_upstreams_trouble_is_told(desk, stream):
    """With the fallback's own, so that whoever runs both knows of both."""
    answer = ask(in_trouble(desk, "down", bigger=Scripted(instead=PlainTextResponse("<html>"))), stream=stream)
    told_of = answer.json()["error"]
    assert (answer.status_code, told_of["code"]) == (502, "upstream_unreachable")
    assert "fallback model 'big'" in told_of["message"]
    assert [record.status for record in desk.sink.records] == []


def test_the_next_fallback_answers_where_the_first_is_in_trouble_too(desk):
    """In the order of the policy; a step whose condition does not hold is left out."""
    names = ("dear", "broken", "big")
    steps = [{"fallback_model": {"name": name}} for name in names]
    steps[0]["fallback_model"]["when"] = {"tags": ["medical"]}
    dear, broken, bigger = Scripted(text="no"), Scripted(instead=PlainTextResponse("")), Scripted(text="Lyon")
    servers = zip(names, map(desk.start, (dear, broken, bigger)), strict=True)
    url = desk.serve(
        address="http://127.0.0.1:9/v1", policy={"accept": 0.7, "escalate": steps}, fallbacks=tuple(servers)
    )
    assert ask(url).json()["choices"][0]["message"]["content"] == "Lyon"
    assert (len(dear.asked), len(broken.asked)) == (0, 1)


def test_a_refusal_of_the_request_itself_asks_no_other_server(desk):
    """A mistake of the caller is one at every server."""
    bigger = Scripted(text="Lyon")
    desk.upstream.instead = JSONResponse(REFUSAL, 400)
    url = desk.serve(policy=BIG, fallbacks=(("big", desk.start(bigger)),))
    assert (ask(url).status_code, bigger.asked) == (400, [])


def test_a_sentence_stream_that_breaks_off_goes_on_with_the_fallbacks_answer(desk):
    """What was sent was good enough; what came after it is dropped, and another model's answer follows."""
    desk.upstream.pieces, desk.upstream.breaks_off = ["One is good. Two is ", "SECRET"], True
    bigger = Scripted(text="Lyon")
    url = desk.serve(policy=BIG, fallbacks=(("big", desk.start(bigger)),), stream="sentence")
    pieces = events(ask(url, stream=True))
    assert text_of(pieces) == "One is good.\n\nLyon"
    assert told(pieces)["confidence"] == pytest.approx(0.9)


def test_one_request_takes_no_longer_than_its_limit_for_all_servers_together(desk):
    """A caller's own limit stands on the server's."""
    slow, slower = Scripted(hangs_s=10), Scripted(hangs_s=10)
    url = desk.serve(
        address=desk.start(slow), policy=BIG, fallbacks=(("big", desk.start(slower)),),
        limits=replace(LIMITS, seconds=1.0),
    )  # fmt: skip
    started = time.monotonic()
    answer = ask(url)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "server_error")
    assert time.monotonic() - started < 4
    assert len(slower.asked) == 1


def test_the_callers_key_goes_on_only_where_it_is_not_the_servers_own(desk, tmp_path):
    """A key of this server is a secret that the upstream has no business with."""
    address = desk.start(desk.upstream)
    headers = {"Authorization": "Bearer caller"}
    httpx.post(f"{desk.serve(address=address)}/chat/completions", json=ASK, headers=headers)
    keys = KeyFile(tmp_path / "keys.json")
    own = {"Authorization": f"Bearer {keys.issue('app')}"}
    httpx.post(f"{desk.serve(address=address, keys=keys)}/chat/completions", json=ASK, headers=own)
    httpx.post(f"{desk.serve(address=address, upstream_key='up')}/chat/completions", json=ASK, headers=headers)
    assert [one.get("authorization") for one in desk.upstream.headers] == ["Bearer caller", None, "Bearer up"]


def test_a_key_that_is_revoked_ends_its_streams(desk, tmp_path, monkeypatch):
    """Who lost the right to ask loses the rest of the answer."""
    monkeypatch.setattr("semgrad_guard.serving.streams._LOOK_EVERY_S", -1.0)
    keys = KeyFile(tmp_path / "keys.json")
    headers = {"Authorization": f"Bearer {keys.issue('app')}"}
    desk.upstream.text = "one two three"
    url = desk.serve(keys=keys)
    find = KeyFile.find
    asked: list[str] = []

    def revoked_later(self, secret):
        asked.append(secret)
        return find(self, secret) if len(asked) < 4 else None

    monkeypatch.setattr(KeyFile, "find", revoked_later)
    answer = httpx.post(f"{url}/chat/completions", json={**ASK, "stream": True}, headers=headers)
    last = answer.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"


def test_models_of_the_upstream_are_listed_too(desk):
    """Clients look there for the names that they may ask for."""
    found = httpx.get(f"{desk.serve()}/models").json()["data"]
    assert [(model["id"], model["role"]) for model in found] == [("scripted", "upstream"), ("table", "scorer")]


@pytest.mark.parametrize(
    ("body", "param"), [({}, "messages"), ({"messages": []}, "messages"), ({"messages": ["x"]}, "messages.0")]
)
def test_what_is_no_chat_is_refused(desk, body, param):
    """Before anything is asked."""
    answer = httpx.post(f"{desk.serve()}/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert desk.upstream.asked == []


def test_a_server_that_only_scores_says_so():
    """And which option makes it write."""
    with serving(create_app(ServerSettings(limits=LIMITS), scorer=TableScorer())) as url:
        answer = ask(url + "/v1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_writer")


# --- a local model that writes ----------------------------------------------------------------------------------------


@pytest.fixture(name="local", scope="module")
def _local():
    local = local_model()
    with serving(create_app(ServerSettings(model=local, max_tokens=8, limits=LIMITS))) as url:
        yield url + "/v1", local


def own(local, **more):
    url, model = local
    return ask(url, **{"model": model.name, **more})


def test_a_local_model_writes_and_scores_in_one_pass(local):
    """The score comes from the cache of the writing, and is the one that reading it again gives."""
    body = own(local, semgrad={"signals": True}).json()
    score = score_from_fields(body["semgrad"]["scored"])
    assert (score.path, score.proxy) == ("reused", False)
    again = SemGradScorer(local[1])
    assert score.fingerprint == again.fingerprint()
    assert body["usage"]["completion_tokens"] == score.n_answer_tokens == 8


def test_a_local_model_streams_the_text_that_it_gives_whole(local):
    """The same answer in both ways."""
    pieces = events(own(local, stream=True, semgrad={"signals": True}))
    whole = own(local).json()
    assert text_of(pieces) == whole["choices"][0]["message"]["content"]
    assert score_from_fields(told(pieces)["scored"]).path == "reused"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 9}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_local_model_refuses_what_it_cannot_do(local, more, param, stream):
    """Ignoring it would give an answer to another question."""
    answer = own(local, stream=stream, **more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_another_model_is_not_there(local):
    """A typo must not be answered by whatever runs."""
    answer = own(local, model="gpt-4o")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_prompt_that_is_too_long_has_openais_code(local):
    """Frameworks shorten the prompt when they see it."""
    answer = own(local, messages=[{"role": "user", "content": "x" * 600}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_client_that_goes_ends_the_writing():
    """A long answer that nobody reads holds up all others."""
    local = local_model(max_position_embeddings=4096)
    ended = threading.Event()
    generate = local.generate

    def noting(*args, **kwargs):
        found = generate(*args, **kwargs)
        if found.finish_reason == "cancelled":
            ended.set()
        return found

    local.generate = noting
    with serving(create_app(ServerSettings(model=local, max_tokens=3500, limits=LIMITS))) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{url}/v1/chat/completions", json={**ASK, "model": local.name}, timeout=httpx.Timeout(30, read=0.5)
            )
        assert ended.wait(30)
