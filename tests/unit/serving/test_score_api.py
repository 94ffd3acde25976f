"""`POST /v1/score` and what stands around it: limits, keys, health and counters."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import httpx
import pytest
from starlette.testclient import TestClient

from semgrad_guard.errors import ContextTooLongError, EmptyAnswerError, ScoringEndedError
from semgrad_guard.flow import Exchange, Message
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.serving import KeyFile, Limits, ServerSettings, create_app
from tests.fakes import TableScorer
from tests.models_for_tests import local_model
from tests.review_site import serving

CAPITAL = {"prompt": "Capital of France?", "answer": "Paris"}


@contextmanager
def client_of(settings: ServerSettings | None = None, *, scorer=None, keys=None):
    """Give a client of the application, started."""
    with TestClient(create_app(settings, scorer=scorer, keys=keys), raise_server_exceptions=False) as client:
        yield client


def scored(client, *exchanges, **more):
    """Score exchanges and return the results."""
    answer = client.post("/v1/score", json={"exchanges": list(exchanges), **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.fixture(name="tiny", scope="module")
def _tiny():
    local = local_model()
    with client_of(ServerSettings(scorer=local, limits=Limits(window_s=0.0))) as client:
        yield client, SemGradScorer(local)


def test_texts_messages_and_ids_score_as_they_do_in_process(tiny):
    """The number must not depend on where it was computed."""
    client, scorer = tiny
    messages = [{"role": "user", "content": "Capital of France?"}]
    ids = {"prompt_ids": [5, 6, 7, 8], "answer_ids": [9, 10, 2], "answer": "x", "on_policy": True}
    found = scored(client, CAPITAL, {"messages": messages, "answer": "Paris"}, ids)
    same = [
        Exchange(prompt="Capital of France?", answer="Paris"),
        Exchange(prompt=(Message("user", "Capital of France?"),), answer="Paris"),
        Exchange(prompt_ids=(5, 6, 7, 8), answer_ids=(9, 10, 2), answer="x", on_policy=True),
    ]
    for one, exchange in zip(found, same, strict=True):
        expected = scorer.score(exchange)
        assert one["score"]["value"] == pytest.approx(expected.value, rel=1e-5)
        assert one["score"]["fingerprint"] == asdict(expected.fingerprint)
    assert [one["score"]["fingerprint"]["proxy"] for one in found] == [True, True, False]


def test_each_exchange_has_its_own_error(tiny):
    """One bad exchange does not spoil the others."""
    client, _ = tiny
    good, empty, long = scored(client, CAPITAL, {"prompt": "p", "answer": ""}, {"prompt": "p " * 400, "answer": "a"})
    assert good["error"] is None
    assert (empty["score"], empty["error"]["type"]) == (None, EmptyAnswerError.__name__)
    assert long["error"]["type"] == ContextTooLongError.__name__
    assert long["error"]["details"]["limit"] == 512


def test_claims_are_scored_on_request(tiny):
    """The doubtful sentence of a long answer can be shown."""
    client, _ = tiny
    answer = "Paris is the capital. It lies on the Seine."
    (plain,) = scored(client, {**CAPITAL, "answer": answer})
    (by_claim,) = scored(client, {**CAPITAL, "answer": answer}, claims=True)
    assert plain["claims"] is None
    assert [claim["text"].strip() for claim in by_claim["claims"]] == ["Paris is the capital.", "It lies on the Seine."]
    assert len(by_claim["score"]["spans"]) == 2


def test_a_policy_says_what_it_would_do():
    """Without one there is nothing to decide."""
    scorer = TableScorer(default=0.5)
    with client_of(scorer=scorer) as client:
        (free,) = scored(client, CAPITAL)
    with client_of(ServerSettings(accept=0.7), scorer=scorer) as client:
        (held,) = scored(client, CAPITAL)
        counters = client.get("/metrics").text
    assert free["decision"] is None
    assert (held["decision"]["action"], held["decision"]["rule"]) == ("abstain", "on_uncalibrated")
    assert 'semgrad_decisions_total{action="abstain"} 1.0' in counters
    assert "semgrad_uncalibrated_total 1.0" in counters
    assert "semgrad_batch_size_count 1.0" in counters


def test_a_score_that_a_caller_sends_along_is_not_believed():
    """A server that returned it would confirm whatever it was told."""
    claimed = {
        "method": "fake", "value": 0.0, "signals": {}, "model": "table",
        "fingerprint": {"model": "fake", "dtype": "float32", "template": "none", "settings": "fake"},
    }  # fmt: skip

    class Believing(TableScorer):
        def score(self, exchange, *, timeout_s=None, cancel=None):
            return exchange.score or super().score(exchange)

    with client_of(scorer=Believing(default=0.5)) as client:
        (found,) = scored(client, {**CAPITAL, "score": claimed})
    assert found["score"]["value"] == 0.5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"exchanges": []}, "exchanges"),
        ({"exchanges": [CAPITAL] * 257}, "exchanges"),
        ({"exchanges": [{**CAPITAL, "anser": "x"}]}, "exchanges.0.anser"),
        ({"exchanges": [{**CAPITAL, "messages": [{"role": "user", "content": "x"}]}]}, "exchanges.0"),
        ({"exchanges": [CAPITAL], "timeout_s": -1}, "timeout_s"),
    ],
)
def test_a_request_with_a_mistake_names_the_field_and_repeats_no_text(body, param):
    """The message is logged by clients."""
    with client_of(scorer=TableScorer()) as client:
        answer = client.post("/v1/score", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "Paris" not in answer.text


def test_256_exchanges_come_back_in_order():
    """A file of answers is scored in few calls."""
    table = {str(n): n / 256 for n in range(256)}
    with client_of(ServerSettings(limits=Limits(window_s=0.0)), scorer=TableScorer(table)) as client:
        found = scored(client, *({"id": f"id-{n}", "prompt": "p", "answer": str(n)} for n in range(256)))
    assert [one["id"] for one in found] == [f"id-{n}" for n in range(256)]
    assert [one["score"]["value"] for one in found] == [n / 256 for n in range(256)]


def test_only_callers_with_a_key_come_in(tmp_path):
    """Health needs none: what watches the server has no secret."""
    keys = KeyFile(tmp_path / "keys.json")
    secret = keys.issue("app")
    with client_of(scorer=TableScorer(), keys=keys) as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            refused = client.post("/v1/score", json={"exchanges": [CAPITAL]}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        headers = {"Authorization": f"Bearer {secret}"}
        assert client.post("/v1/score", json={"exchanges": [CAPITAL]}, headers=headers).status_code == 200
        keys.revoke("app")
        assert client.post("/v1/score", json={"exchanges": [CAPITAL]}, headers=headers).status_code == 401


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused_before_it_is_read(announced):
    """Memory must not grow with what strangers send."""

    def pieces():
        for _ in range(100):
            yield b" " * 1000

    content = b" " * 100_000 if announced else pieces()
    with client_of(ServerSettings(limits=Limits(body_bytes=2000)), scorer=TableScorer()) as client:
        answer = client.post("/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_the_servers_own_token_limit_holds(tiny):
    """A model with a long window is not for everybody's use in full."""
    local = tiny[1].model
    with client_of(ServerSettings(scorer=local, limits=Limits(tokens=40, window_s=0.0))) as client:
        short, long, ids = scored(
            client,
            {"prompt": "short", "answer": "a"},
            {"prompt": "long " * 10, "answer": "a"},
            {"prompt_ids": [5] * 40, "answer_ids": [6]},
        )
    assert short["error"] is None
    # one token a byte: 50 of the prompt and 1 of the answer
    assert (long["error"]["type"], long["error"]["details"]) == ("ContextTooLongError", {"n_tokens": 51, "limit": 40})
    assert ids["error"]["details"] == {"n_tokens": 41, "limit": 40}


@dataclass
class SlowScorer(TableScorer):
    """Scores once the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def score_batch(self, exchanges, *, timeout_s=None, cancel=None):
        self.begun.set()
        while not self.gate.wait(0.01):
            if cancel is not None and cancel.is_set():
                self.ended.set()
                return [ScoringEndedError() for _ in exchanges]
        return super().score_batch(exchanges)


def test_beyond_its_limits_the_server_says_when_to_come_back():
    """429 with Retry-After, before memory or latency go."""
    scorer = SlowScorer()
    settings = ServerSettings(limits=Limits(waiting=1, window_s=0.0, batch=1))
    with serving(create_app(settings, scorer=scorer)) as url, ThreadPoolExecutor(2) as pool:

        def ask() -> httpx.Response:
            return httpx.post(f"{url}/v1/score", json={"exchanges": [CAPITAL]}, timeout=30)

        first = pool.submit(ask)
        assert scorer.begun.wait(30)
        second = pool.submit(ask)
        while "semgrad_queue_length 1.0" not in httpx.get(f"{url}/metrics").text:
            assert not second.done()
        refused = ask()
        scorer.gate.set()
        assert [one.result().status_code for one in (first, second)] == [200, 200]
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["semgrad"]["type"] == "BusyError"


def test_a_request_that_takes_too_long_ends_and_frees_the_model():
    """The limit is the server's, whatever a client would wait for."""
    scorer = SlowScorer()
    with client_of(ServerSettings(limits=Limits(seconds=0.1, window_s=0.0)), scorer=scorer) as client:
        (found,) = scored(client, CAPITAL)
        assert scorer.ended.wait(30)
    assert (found["score"], found["error"]["type"]) == (None, "ScoringEndedError")


def test_work_that_keeps_no_limit_is_not_waited_for():
    """A gateway that hangs takes its callers with it."""
    gate = threading.Event()

    class Stubborn(TableScorer):
        def fingerprint(self, *, proxy=False):
            gate.wait(30)
            return super().fingerprint(proxy=proxy)

    settings = ServerSettings(limits=Limits(seconds=0.1, window_s=0.0), warm_up=False)
    with client_of(settings, scorer=Stubborn()) as client:
        answer = client.post("/v1/score", json={"exchanges": [CAPITAL]})
        gate.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_a_client_that_goes_frees_the_model():
    """Callers who gave up must not keep the others waiting."""
    scorer = SlowScorer()
    with serving(create_app(ServerSettings(limits=Limits(window_s=0.0)), scorer=scorer)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/score", json={"exchanges": [CAPITAL]}, timeout=httpx.Timeout(30, read=0.2))
        assert scorer.ended.wait(30)


def test_stopping_finishes_what_was_accepted():
    """A deployment replaces servers all the time."""
    scorer, answers = SlowScorer(default=0.5), list[httpx.Response]()
    with serving(create_app(ServerSettings(limits=Limits(window_s=0.0)), scorer=scorer)) as url:
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/score", json={"exchanges": [CAPITAL]}, timeout=30))
        )
        asking.start()
        assert scorer.begun.wait(30)
        threading.Timer(0.3, scorer.gate.set).start()  # after the server was told to stop
    asking.join()
    assert answers[0].json()["results"][0]["score"]["value"] == 0.5


def test_ready_only_when_the_model_is_loaded():
    """A balancer must not send requests to a server that still loads, or cannot."""

    class Broken(TableScorer):
        def fingerprint(self, *, proxy=False):
            msg = "no weights"
            raise OSError(msg)

    with client_of(scorer=Broken()) as client:
        for _ in range(3000):
            answer = client.get("/readyz")
            if answer.json()["status"] != "loading":
                break
        assert (answer.status_code, answer.json()["why"]) == (503, "OSError: no weights")
        assert client.get("/healthz").status_code == 200
    with client_of(scorer=TableScorer()) as client:
        for _ in range(3000):
            if client.get("/readyz").status_code == 200:
                break
        assert client.get("/readyz").json() == {"status": "ready"}


def test_models_are_listed_with_their_fingerprint(tiny):
    """A client can see what scores before it sends anything."""
    client, scorer = tiny
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["role"]) == (scorer.name, "scorer")
    assert model["fingerprint"] == asdict(scorer.fingerprint())


def test_no_text_of_a_request_is_logged(caplog):
    """Prompts are other people's; a log is read by many."""
    broken = TableScorer({"SECRET-ANSWER": ValueError("SECRET-PROMPT SECRET-ANSWER")})
    with caplog.at_level(logging.DEBUG), client_of(scorer=broken) as client:
        scored(client, {"prompt": "SECRET-PROMPT", "answer": "SECRET-ANSWER"})
        client.post("/v1/score", json={"exchanges": [{"prompt": "SECRET-PROMPT", "SECRET-ANSWER": 1}]})
    assert "POST /v1/score 200" in caplog.text
    assert "SECRET" not in caplog.text


def test_more_requests_than_the_limit_are_told_to_come_again():
    """Health and counters are answered all the same."""
    scorer = SlowScorer()
    settings = ServerSettings(limits=Limits(requests=1, window_s=0.0))
    with serving(create_app(settings, scorer=scorer)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{url}/v1/score", json={"exchanges": [CAPITAL]}, timeout=30)
        assert scorer.begun.wait(30)
        refused = httpx.post(f"{url}/v1/score", json={"exchanges": [CAPITAL]})
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 200
        scorer.gate.set()
        assert first.result().status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (429, "busy", "1")
