"""The scoring server between hostile callers and servers: every fault is theirs, and no unjudged word passes."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from semgrad_guard.errors import ScorerRefusedError, ScorerUnavailableError, ScoringEndedError, ScoringError
from semgrad_guard.flow import Exchange
from semgrad_guard.guard import Guard
from semgrad_guard.remote import RemoteScorer
from semgrad_guard.review.site import connections
from semgrad_guard.scoring.texts import spans
from semgrad_guard.serving import Limits, ServerSettings, create_app
from semgrad_guard.serving.app import server
from semgrad_guard.serving.settings import ServerListening
from semgrad_guard.wire import reading
from tests.fakes import OneMinusScore, TableScorer
from tests.hostile_cases import CASES
from tests.review_site import serving

assert spans  # loads torch, which must not count as somebody's time below
DOUBTED = "quixotic zeppelins"
LIMITS = Limits(window_s=0.0, shutdown_s=2.0, seconds=5.0)
ASK = {"model": "any", "messages": [{"role": "user", "content": "Capital of France?"}]}
JSON = {"Content-Type": "application/json"}
RAW = {
    "@digits": "1" * 5000,
    "@long": "1" + "0" * 400,
    "@beyond": "1e400",
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@half": '"\\ud83d"',
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deeper": '{"a": ' * 900 + "1" + "}" * 900,
}
"""Written in place of a text, as it stands."""
TEXTS = st.sampled_from([DOUBTED, "", "\x00", "\u2028", "é", "a" * 3000, "text", "stop", "assistant", *RAW])
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "index", "id", "schema"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def written(value) -> bytes:
    """Return a value as JSON, with what JSON should not hold in it."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


@contextmanager
def client_of(upstream=None, *, default=0.1, **chosen):
    """Give a client of a server in front of `upstream`, a function of requests; a fault of the server raises here."""
    address = {"upstream": "http://up/v1"} if upstream else {}
    app = create_app(ServerSettings(**{"limits": LIMITS, **address, **chosen}), scorer=TableScorer({}, default))
    backend = app.state.backend
    backend.guard = Guard(replace(backend.guard.parts, calibrator=OneMinusScore()))
    with TestClient(app, base_url="http://scores.test") as client:
        if upstream:
            app.state.client = httpx.AsyncClient(transport=httpx.MockTransport(upstream))
        yield client


def fine(answer) -> None:
    """Check that a response is one that says something."""
    assert answer.status_code < 500 or answer.status_code in {501, 502, 504}, answer.text
    if answer.headers["content-type"] == "application/json":
        json.loads(answer.content.decode(), parse_constant=pytest.fail)


def honest(request: httpx.Request) -> httpx.Response:
    """Answer as a server does that is asked for something sensible."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Paris"},
        "text": "Paris",
    }
    if json.loads(request.content).get("stream"):
        pieces = [{"choices": [{"index": 0, "delta": {"content": "Paris. It is. "}, "text": "Paris. It is. "}]}]
        pieces += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
        return events(*[json.dumps(one).encode() for one in pieces], b"[DONE]")
    return httpx.Response(200, json={"id": "1", "model": "m", "choices": [choice], "usage": {"total_tokens": 2}})


def events(*pieces: bytes) -> httpx.Response:
    """Return a stream of pieces."""
    content = b"".join(b"data: " + piece + b"\n\n" for piece in pieces)
    return httpx.Response(200, content=content, headers={"Content-Type": "text/event-stream"})


# --- callers ----------------------------------------------------------------------------------------------------------

FIELDS = (
    "model", "messages", "prompt", "n", "stream", "stream_options", "response_format", "tools", "stop", "max_tokens",
    "temperature", "top_p", "seed", "logprobs", "semgrad", "echo",
)  # fmt: skip
MESSAGES = st.lists(st.fixed_dictionaries({}, optional={"role": TEXTS, "content": VALUES, "name": VALUES}), max_size=3)
EXCHANGE = (
    "prompt", "answer", "question", "passages", "tags", "metadata", "attempt", "prompt_ids", "answer_ids", "author",
    "on_policy", "score", "id", "version",
)  # fmt: skip
GUARDRAIL = ("litellm_call_id", "texts", "structured_messages", "tool_calls", "model")
HEADERS = st.sampled_from([{}, {"X-Request-Id": b"\xe9"}, {"Authorization": b"Bearer \xff"}, {"traceparent": b"\xe9"}])


@pytest.mark.parametrize("stream", ["buffer", "sentence", "annotate"])
def test_made_up_requests(stream) -> None:
    """Every field takes everything, and what is wrong with it is answered."""
    with client_of(honest, stream=stream, accept=0.5) as client:

        @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            body=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, VALUES)),
            messages=MESSAGES,
            exchange=st.fixed_dictionaries({}, optional=dict.fromkeys(EXCHANGE, VALUES)),
            timeout=VALUES,
            guardrail=st.fixed_dictionaries({}, optional=dict.fromkeys(GUARDRAIL, VALUES)),
            headers=HEADERS,
        )
        def ask(body, messages, exchange, timeout, guardrail, headers) -> None:
            def post(path, value) -> None:
                fine(client.post(path, content=written(value), headers={**JSON, **headers}))

            post("/v1/chat/completions", {**ASK, **body})
            post("/v1/chat/completions", {**ASK, **body, "messages": messages})
            post("/v1/completions", {"prompt": "The capital", **body})
            post("/v1/score", {"exchanges": [{"prompt": "p", "answer": "a", **exchange}], "timeout_s": timeout})
            for kind in ("request", "response"):
                post("/beta/litellm_basic_guardrail_api", {"input_type": kind, **guardrail})

        ask()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b'"x"', b"\xff", "é".encode("utf-16"), *map(str.encode, RAW.values())]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/score"])
def test_a_body_that_is_something_else(path, body) -> None:
    """Whatever it is, it is the caller's mistake."""
    with client_of(honest) as client:
        assert client.post(path, content=body, headers=JSON).status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_not_unpacked(encoding) -> None:
    """A few kilobytes could become gigabytes."""
    headers = {**JSON, "Content-Encoding": encoding}
    with client_of(honest) as client:
        assert client.post("/v1/score", content=gzip.compress(b"[" * 10**6), headers=headers).status_code == 400


@contextmanager
def served(**limits):
    """Serve as the command does; give the port."""
    chosen = replace(LIMITS, **limits)
    app = create_app(ServerSettings(limits=chosen, warm_up=False), scorer=TableScorer())
    web = server(app, ServerListening(port=0), chosen)
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        while not web.started:
            time.sleep(0.01)
        yield web.servers[0].sockets[0].getsockname()[1]
    finally:
        web.should_exit = True
        thread.join()


def rest_of(connection) -> bytes:
    """Return what comes until the other side closes the connection."""
    found = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            return found
        if not piece:
            return found
        found += piece


@pytest.mark.parametrize("said", [b"", b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_caller_must_say_what_it_wants_in_time(said, monkeypatch) -> None:
    """Connections that say nothing would take all descriptors."""
    monkeypatch.setattr(connections, "HEAD_S", 0.4)
    with served() as port, socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(said)
        rest_of(connection)


def test_a_body_must_arrive_in_time() -> None:
    """Half-open requests would take the place of all others."""
    with served(body_s=0.4, requests=2) as port, ExitStack() as stack:
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        half_open = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(2)]
        for connection in half_open:
            connection.sendall(head)
        for connection in half_open:
            assert b"408" in rest_of(connection)[:20]
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code == 200


# --- servers behind it ------------------------------------------------------------------------------------------------

CHOICE = ("index", "message", "delta", "text", "finish_reason", "logprobs")
MESSAGE = ("role", "content", "tool_calls", "function_call", "refusal")
AROUND = st.sampled_from(["m", 1, None, [], {}])
"""What stands around choices, and is passed on also where they are not."""
INNER = st.fixed_dictionaries({}, optional=dict.fromkeys(MESSAGE, VALUES)) | VALUES
CHOICES = st.lists(
    st.fixed_dictionaries({}, optional={**dict.fromkeys(CHOICE, VALUES), "message": INNER, "delta": INNER}) | VALUES,
    max_size=2,
)
REPLY = {"id": AROUND, "model": AROUND, "object": AROUND, "usage": VALUES, "error": VALUES, "vendor": VALUES}
REPLIES = st.fixed_dictionaries({}, optional={**REPLY, "choices": CHOICES}) | VALUES
STATUSES = st.sampled_from([200, 200, 200, 204, 302, 400, 418, 429, 500, 599])
RETRY = st.sampled_from([{}, {"Retry-After": "€".encode()}, {"Retry-After": "1"}])


@pytest.mark.parametrize("stream", ["buffer", "sentence"])
def test_made_up_replies(stream) -> None:
    """A server that answers nonsense is named in a 502, and nothing that it says passes unjudged."""
    asked = {}

    def upstream(_: httpx.Request) -> httpx.Response:
        if asked["pieces"] is not None:
            return events(*map(written, asked["pieces"]), b"[DONE]")
        return httpx.Response(asked["status"], content=written(asked["reply"]), headers=asked["headers"])

    with client_of(upstream, stream=stream, default=0.9, accept=0.7) as client:

        @settings(max_examples=2 * CASES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            reply=REPLIES,
            status=STATUSES,
            headers=RETRY,
            pieces=st.none() | st.lists(REPLIES, max_size=4),
            wants_stream=st.booleans(),
            chat=st.booleans(),
        )
        def ask(reply, status, headers, pieces, wants_stream, chat) -> None:
            asked.update(reply=reply, status=status, headers=headers, pieces=pieces if wants_stream else None)
            path, asks = ("/v1/chat/completions", ASK) if chat else ("/v1/completions", {"prompt": "p"})
            answer = client.post(path, json={**asks, "stream": wants_stream})
            if answer.status_code != status or status < 500:  # a refusal in the form of one is passed on
                fine(answer)
            if answer.status_code == 200 and DOUBTED in answer.text:
                assert "tool_calls" in answer.text or "function_call" in answer.text, "requests for tools pass"

        ask()


STRANGE = (b"[]", b"1", b"null", b'{"choices": 1}', b'{"choices": [{"delta": "x"}]}', b'{"choices": [{"index": []}]}')


@pytest.mark.parametrize("stream", ["buffer", "sentence", "annotate"])
@pytest.mark.parametrize("piece", [*STRANGE, b"\xff", *map(str.encode, RAW.values())])
def test_a_strange_piece_ends_its_stream_with_an_error(stream, piece) -> None:
    """The caller is told, in the stream or by the status."""
    with client_of(lambda _: events(piece), stream=stream) as client:
        answer = client.post("/v1/chat/completions", json={**ASK, "stream": True})
        assert answer.status_code == 502 or b'"error"' in answer.content


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_a_likelihood_of_nothing_is_passed_on_as_null(number) -> None:
    """Some servers write minus infinity for a word that could not come; JSON cannot hold it."""
    choice = f'{{"index": 0, "finish_reason": "stop", "message": {{"content": "Paris"}}, "logprobs": [{number}]}}'
    with client_of(lambda _: httpx.Response(200, content=f'{{"choices": [{choice}]}}')) as client:
        answer = client.post("/v1/chat/completions", json=ASK)
        assert answer.json()["choices"][0]["logprobs"] == [None]


def test_half_a_character_is_passed_on_as_a_question_mark() -> None:
    """A server that cuts its text between the two halves of an emoji has written the rest all the same."""
    choice = '{"index": 0, "finish_reason": "stop", "message": {"content": "Paris \\ud83d"}}'
    with client_of(lambda _: httpx.Response(200, content=f'{{"choices": [{choice}]}}')) as client:
        answer = client.post("/v1/chat/completions", json=ASK)
        assert answer.json()["choices"][0]["message"]["content"] == "Paris ?"


def test_a_line_separator_in_a_text_ends_no_line() -> None:
    """JSON allows it within a text, and events end at line feeds alone."""
    pieces = [{"choices": [{"index": 0, "delta": {"content": "Par\u2028is"}, "finish_reason": "stop"}]}]
    raw = [json.dumps(one, ensure_ascii=False).encode() for one in pieces]
    with client_of(lambda _: events(*raw, b"[DONE]"), stream="annotate") as client:
        answer = client.post("/v1/chat/completions", json={**ASK, "stream": True})
        assert (
            "Par\u2028is"
            in json.loads(answer.text.splitlines()[0].removeprefix("data: "))["choices"][0]["delta"]["content"]
        )


class Endless(httpx.AsyncByteStream):
    """Sends the same piece for ever, as fast as it is read or every so many seconds."""

    def __init__(self, piece: bytes, every_s: float = 0.0) -> None:
        self.piece, self.every_s, self.sent = piece, every_s, 0

    async def __aiter__(self):
        while True:
            await asyncio.sleep(self.every_s)
            self.sent += len(self.piece)
            yield self.piece


SSE = {"Content-Type": "text/event-stream"}
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'
ENDLESS = {
    "comments": (b": still there\n\n", 0.05),
    "words": (WORD, 0.05),
    "a byte at a time": (b"x", 0.05),
    "a line without an end": (b"data: " + b"x" * 65536, 0.0),
    "very many words": (WORD * 1000, 0.0),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", ["whole", "buffer", "sentence", "annotate"])
@pytest.mark.parametrize("what", ENDLESS)
def test_an_answer_without_an_end_is_ended(what, mode, monkeypatch) -> None:
    """Neither time nor memory is the other server's to take."""
    monkeypatch.setattr(reading, "MOST_BYTES", 2**21)
    monkeypatch.setattr(reading, "MOST_LINE_BYTES", 2**20)
    body = Endless(*ENDLESS[what])
    limits = replace(LIMITS, seconds=1.0)
    stream = "buffer" if mode == "whole" else mode
    with client_of(lambda _: httpx.Response(200, stream=body, headers=SSE), stream=stream, limits=limits) as client:
        began = time.monotonic()
        answer = client.post("/v1/chat/completions", json={**ASK, "stream": mode != "whole"})
        assert time.monotonic() - began < 10
    assert answer.status_code in {502, 504} or b'"error"' in answer.content
    most = 2**20 if "line" in what and mode in {"sentence", "annotate"} else 2**21
    assert body.sent < most + 2**18, "what is read ahead, and the piece that was too much"


def test_comments_do_not_renew_the_time_for_a_piece() -> None:
    """A server that only says that it is still there is asked no longer than one that says nothing."""
    body = Endless(b": still there\n\n", 0.05)
    limits = replace(LIMITS, seconds=10.0, upstream_s=0.5)
    with client_of(lambda _: httpx.Response(200, stream=body, headers=SSE), stream="annotate", limits=limits) as client:
        began = time.monotonic()
        assert client.post("/v1/chat/completions", json={**ASK, "stream": True}).status_code == 504
        assert time.monotonic() - began < 5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["a byte at a time", "a line without an end"])
def test_a_fallback_without_an_end_is_ended(what, monkeypatch) -> None:
    """Its thread would go on for ever, though nobody waits for it."""
    monkeypatch.setattr(reading, "MOST_BYTES", 2**21)
    piece, every_s = ENDLESS[what]

    class Trickle:
        async def __call__(self, scope, receive, send) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await asyncio.sleep(every_s)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})

    with serving(Trickle()) as url:
        policy = {
            "version": 1,
            "accept": 0.7,
            "escalate": [{"fallback_model": {"name": "big"}}],
            "otherwise": "abstain",
        }
        limits = replace(LIMITS, seconds=2.0, upstream_s=0.5)
        before = threading.active_count()
        with client_of(honest, default=0.9, policy=policy, fallbacks=(("big", f"{url}/v1"),), limits=limits) as client:
            answer = client.post("/v1/chat/completions", json=ASK)
            assert answer.json()["semgrad"]["decision"] == "abstain"
            ends_at = time.monotonic() + 5
            while any("request" in each.name or "fallback" in each.name for each in threading.enumerate()):
                assert time.monotonic() < ends_at, [each.name for each in threading.enumerate()]
                time.sleep(0.05)
        assert threading.active_count() <= before + 3


# --- scoring servers --------------------------------------------------------------------------------------------------

EXCHANGE_ = Exchange(prompt="p", answer="a")


def scoring(reply, **options):
    """Return a remote scorer whose server gives one reply."""
    transport = httpx.MockTransport(lambda _: reply() if callable(reply) else reply)
    return closing(RemoteScorer("http://scores", transport=transport, **options))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("what", ["a byte at a time", "a line without an end"])
def test_a_scoring_server_without_an_end_is_ended(what, asynchronous, monkeypatch) -> None:
    """A policy's time holds however its scorer is called."""
    monkeypatch.setattr(reading, "MOST_BYTES", 2**21)
    body = Endless(*ENDLESS[what])
    with scoring(lambda: httpx.Response(200, stream=body)) as scorer:
        began = time.monotonic()
        with pytest.raises((ScoringEndedError, ScorerRefusedError)):
            asyncio.run(scorer.ascore(EXCHANGE_, timeout_s=0.3)) if asynchronous else scorer.score(
                EXCHANGE_, timeout_s=0.3
            )
        assert time.monotonic() - began < 6
    assert body.sent < 2**23


def test_a_bomb_of_a_scoring_server_is_not_unpacked(monkeypatch) -> None:
    """Its few bytes stand for very many."""
    monkeypatch.setattr(reading, "MOST_BYTES", 2**21)
    bomb = httpx.Response(200, content=gzip.compress(bytes(2**26)), headers={"Content-Encoding": "gzip"})
    with scoring(bomb) as scorer, pytest.raises(ScorerRefusedError, match="longer than 2 MB"):
        scorer.score(EXCHANGE_)


@pytest.mark.parametrize("status", [200, 400, 500, 503])
@pytest.mark.parametrize("content", [*RAW.values(), "{}", "[]", '{"error": {"message": "' + "x" * 10**5 + '"}}'])
def test_whatever_a_scoring_server_says_is_no_score(status, content) -> None:
    """An error of scoring, with words that fit into a log."""
    with scoring(lambda: httpx.Response(status, content=content), retry_s=0.0) as scorer:
        with pytest.raises(ScoringError) as caught:
            scorer.score(EXCHANGE_, timeout_s=2.0)
        assert len(str(caught.value)) < 3000


def test_a_scoring_server_that_wants_to_be_asked_at_once_is_not_stormed() -> None:
    """`Retry-After: 0` is no leave to ask thousands of times a second."""
    asked = []

    def busy() -> httpx.Response:
        asked.append(1)
        return httpx.Response(503, headers={"Retry-After": "0"})

    with scoring(busy, retry_s=1.0) as scorer, pytest.raises(ScorerUnavailableError):
        scorer.score(EXCHANGE_, timeout_s=5.0)
    assert len(asked) < 15
