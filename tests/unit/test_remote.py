"""A scorer at a server gives what one in this process gives, and is believed only while it is the same one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace

import httpx
import pytest

from semgrad_guard.context import with_context
from semgrad_guard.errors import (
    ContextTooLongError,
    EmptyAnswerError,
    MissingExtraError,
    OtherScorerError,
    PolicyFileError,
    ScorerRefusedError,
    ScorerUnavailableError,
    ScoringEndedError,
)
from semgrad_guard.flow import Action, Exchange, Fingerprint, Message, Passage
from semgrad_guard.guard import Guard
from semgrad_guard.policy import policy_from
from semgrad_guard.ports import Scorer
from semgrad_guard.remote import RemoteScorer
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.serving import KeyFile, Limits, ServerSettings, create_app
from tests.fakes import FINGERPRINT, ProfileScorer, TableScorer
from tests.models_for_tests import local_model
from tests.review_site import serving

LIMITS = Limits(window_s=0.0)


@contextmanager
def remote(settings: ServerSettings | None = None, *, scorer=None, keys=None, **options):
    """Give a scorer that asks a real server on this machine."""
    app = create_app(settings or ServerSettings(limits=LIMITS), scorer=scorer, keys=keys)
    with serving(app) as url, closing(RemoteScorer(url, **options)) as made:
        yield made


@pytest.fixture(name="tiny", scope="module")
def _tiny():
    local = local_model()
    with remote(ServerSettings(scorer=local, limits=LIMITS)) as made:
        yield made, SemGradScorer(local)


EXCHANGES = [
    Exchange(prompt="Capital of France?", answer="Paris"),
    Exchange(
        prompt=(Message("user", "Capital?"),), answer="Rome", passages=(Passage("Rome is."),), question="Capital?"
    ),
    Exchange(prompt_ids=(5, 6, 7, 8), answer_ids=(9, 10, 2), answer="x", on_policy=True),
]


def test_it_is_a_scorer(tiny):
    """Whatever takes a scorer takes it."""
    assert isinstance(tiny[0], Scorer)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_scores_are_those_of_the_model_in_process(tiny, exchange):
    """Signals, fingerprint and all: a profile that was fitted here fits there."""
    made, scorer = tiny
    here, there = scorer.score(with_context(exchange)), made.score(exchange)
    assert there.fingerprint == here.fingerprint
    assert there.signals == pytest.approx(here.signals, rel=1e-5)
    assert (there.method, there.n_prompt_tokens) == (here.method, here.n_prompt_tokens)
    assert made.name == scorer.name
    assert made.fingerprint() == scorer.fingerprint()


def test_a_batch_keeps_its_order_and_its_errors(tiny):
    """An error comes back as what it was, with its data."""
    made, scorer = tiny
    good, empty, long = made.score_batch(
        [EXCHANGES[0], Exchange(prompt="p", answer=""), Exchange(prompt="p" * 600, answer="a")]
    )
    assert good.value == pytest.approx(scorer.score(EXCHANGES[0]).value, rel=1e-5)
    assert isinstance(empty, EmptyAnswerError)
    assert isinstance(long, ContextTooLongError)
    assert long.limit == 512


async def test_async_callers_get_the_same(tiny):
    """The event loop is not blocked while the server works."""
    made, scorer = tiny
    one, both = await asyncio.gather(made.ascore(EXCHANGES[0]), made.ascore_batch(EXCHANGES[:2]))
    expected = pytest.approx(scorer.score(EXCHANGES[0]).value, rel=1e-5)
    assert (one.value, both[0].value) == (expected, expected)


def test_more_than_one_call_takes_are_scored_in_several():
    """A file of answers needs no counting."""
    table = {str(n): float(n) for n in range(600)}
    with remote(scorer=TableScorer(table)) as made:
        found = made.score_batch([Exchange(prompt="p", answer=str(n)) for n in range(600)])
    assert [score.value for score in found] == [float(n) for n in range(600)]


def test_sentences_are_scored_on_request(tiny):
    """`any_sentence_below` works with a server too."""
    made, scorer = tiny
    with closing(RemoteScorer(made.url, claims=True)) as by_claim:
        found = by_claim.score(replace(EXCHANGES[0], answer="One. Two."))
        assert [(span.start, span.end) for span in found.spans] == [(0, 4), (5, 9)]
        assert by_claim.fingerprint() == replace(found.fingerprint, proxy=False)
    expected = SemGradScorer(scorer.model, granularity="sentence").fingerprint(proxy=True)
    assert found.fingerprint == expected


def test_connections_are_used_again():
    """A handshake a score would cost more than the score."""
    ports = set()

    class Counting(TableScorer):
        pass

    app = create_app(ServerSettings(limits=LIMITS), scorer=Counting())

    async def noting(scope, receive, send):
        if scope["type"] == "http":
            ports.add(scope["client"][1])
        await app(scope, receive, send)

    with serving(noting) as url, closing(RemoteScorer(url)) as made:
        for _ in range(5):
            made.score(EXCHANGES[0])
    assert len(ports) == 1


# --- faults -----------------------------------------------------------------------------------------------------------


def replying(*replies):
    """Return a transport that answers with each reply in turn, the last one for ever, and a list of what was asked."""
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        reply = replies[min(len(asked), len(replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) else reply

    return httpx.MockTransport(handle), asked


def reply_of(scorer: TableScorer):
    """Return a function that answers as a server with this scorer does."""

    def reply(request: httpx.Request) -> httpx.Response:
        exchanges = json.loads(request.content)["exchanges"]
        own = scorer.fingerprint()
        score = {
            "method": "fake", "value": 0.5, "signals": {"fake": 0.5, "other": 0.25}, "model": "table",
            "fingerprint": {name: getattr(own, name) for name in ("model", "dtype", "template", "settings")},
        }  # fmt: skip
        results = [{"id": one["id"], "score": score} for one in exchanges]
        return httpx.Response(
            200, json={"version": 2, "model": "table", "fingerprint": score["fingerprint"], "results": results}
        )

    return reply


FINE = reply_of(TableScorer())


def faulty(*replies, **options):
    transport, asked = replying(*replies)
    return closing(RemoteScorer("http://scores", transport=transport, **options)), asked


@pytest.mark.parametrize(
    "trouble", [httpx.ConnectError("down"), httpx.ReadError("reset"), httpx.Response(503, json={}), httpx.Response(502)]
)
def test_a_passing_fault_is_tried_again(trouble):
    """A server that restarts must not cost answers."""
    scorer, asked = faulty(trouble, trouble, FINE)
    with scorer as made:
        assert made.score(EXCHANGES[0]).value == 0.5
    assert len(asked) == 3


def test_a_busy_server_is_asked_again_when_it_says():
    """Coming back at once would keep it busy."""
    busy = httpx.Response(429, headers={"Retry-After": "1"}, json={"error": {"message": "busy"}})
    scorer, asked = faulty(busy, FINE)
    with scorer as made:
        started = time.monotonic()
        assert made.score(EXCHANGES[0]).value == 0.5
        assert time.monotonic() - started >= 1
    assert len(asked) == 2


def test_a_server_that_stays_away_is_an_error_within_the_time():
    """The guard's `on_error` decides then."""
    scorer, asked = faulty(httpx.ConnectError("down"))
    with scorer as made:
        started = time.monotonic()
        with pytest.raises(ScorerUnavailableError, match="ConnectError"):
            made.score(EXCHANGES[0], timeout_s=0.5)
        assert time.monotonic() - started < 3
    assert len(asked) > 1


def test_a_refusal_is_not_tried_again():
    """A wrong key stays wrong."""
    refusal = httpx.Response(401, json={"error": {"message": "the key is not known"}})
    scorer, asked = faulty(refusal)
    with scorer as made, pytest.raises(ScorerRefusedError, match="the key is not known") as caught:
        made.score(EXCHANGES[0])
    assert (caught.value.status, len(asked)) == (401, 1)


@pytest.mark.parametrize(
    "other", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"ok": True}), httpx.Response(404)]
)
def test_something_else_at_the_address_is_refused(other):
    """Whatever it says is no score."""
    scorer, _ = faulty(other)
    with scorer as made, pytest.raises(ScorerRefusedError):
        made.score(EXCHANGES[0])


def test_another_model_behind_the_address_is_refused_not_believed():
    """Two servers with different weights behind one balancer."""
    changed = Fingerprint(model="other", dtype="float32", template="none", settings="fake")

    class Other(TableScorer):
        def fingerprint(self, *, proxy=False):
            return changed

    scorer, _ = faulty(FINE, reply_of(Other()), FINE)
    with scorer as made:
        assert made.score(EXCHANGES[0]).value == 0.5
        with pytest.raises(OtherScorerError, match="model other in place of fake"):
            made.score(EXCHANGES[0])
        assert made.score(EXCHANGES[0]).value == 0.5


@pytest.mark.parametrize("what", ["model", "template"])
def test_a_server_with_another_model_or_template_than_the_profiles_is_refused(what):
    """The profile was fitted on other numbers."""
    scorer, _ = faulty(FINE, expected=replace(FINGERPRINT, **{what: "mine"}))
    with scorer as made, pytest.raises(OtherScorerError, match=f"{what} .* in place of mine"):
        made.score(EXCHANGES[0])


def test_the_time_limit_reaches_the_server_and_holds_without_it():
    """What nobody waits for is not scored."""
    gate, told = threading.Event(), []

    async def hanging(request: httpx.Request) -> httpx.Response:
        told.append(json.loads(request.content)["timeout_s"])
        await asyncio.to_thread(gate.wait, 10)
        return FINE(request)

    with closing(RemoteScorer("http://scores", transport=httpx.MockTransport(hanging))) as made:
        started = time.monotonic()
        with pytest.raises(ScoringEndedError):
            made.score(EXCHANGES[0], timeout_s=0.2)
        assert time.monotonic() - started < 5
        assert 0 < told[0] <= 0.2
        cancel = threading.Event()
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(ScoringEndedError):
            made.score(EXCHANGES[0], cancel=cancel)
        gate.set()


def test_cancelling_frees_the_server():
    """The request ends, and the server sees that nobody waits."""
    begun, ended = threading.Event(), threading.Event()

    class Slow(TableScorer):
        def score_batch(self, exchanges, *, timeout_s=None, cancel=None):
            begun.set()
            while not cancel.is_set():
                time.sleep(0.01)
            ended.set()
            return [ScoringEndedError() for _ in exchanges]

    with remote(scorer=Slow()) as made:
        cancel = threading.Event()
        threading.Thread(target=lambda: (begun.wait(30), cancel.set())).start()
        with pytest.raises(ScoringEndedError):
            made.score(EXCHANGES[0], cancel=cancel)
        assert ended.wait(30)


def test_the_key_is_sent(tmp_path):
    """A server beyond this machine wants one."""
    keys = KeyFile(tmp_path / "keys.json")
    with remote(scorer=TableScorer(), keys=keys, key=keys.issue("worker")) as made:
        assert made.score(EXCHANGES[0]).value == 1.0
        with closing(RemoteScorer(made.url)) as stranger, pytest.raises(ScorerRefusedError, match="there is no key"):
            stranger.score(EXCHANGES[0])


# --- in a guard -------------------------------------------------------------------------------------------------------


def test_a_score_that_came_along_is_used_if_it_is_this_servers():
    """The answer was scored while it was written; another reading would cost the same again."""
    scorer = TableScorer()
    with remote(scorer=scorer) as made:
        own = made.score(EXCHANGES[0])
        seen = len(scorer.seen)
        came = replace(own, value=0.125, fingerprint=replace(own.fingerprint, proxy=True))
        assert made.score(replace(EXCHANGES[0], score=came)).value == 0.125
        assert len(scorer.seen) == seen
        foreign = replace(own, value=0.125, fingerprint=replace(own.fingerprint, model="other"))
        assert made.score(replace(EXCHANGES[0], score=foreign)).value == 1.0


def test_a_policy_names_a_server_and_its_profile():
    """The policy file is all that a worker needs."""

    class Fitting(ProfileScorer):
        def fingerprint(self, *, proxy=False):
            return replace(self.own, proxy=proxy)

    with remote(scorer=Fitting("proxy")) as made:
        guard = Guard.from_yaml({"accept": 0.0, "scorer": {"url": made.url, "profile": "proxy"}})
        decision = guard.judge(Exchange(prompt="p", answer="a", question="q"))
        assert decision.action is Action.ACCEPT
        assert decision.confidence.profile == "proxy"
        without = Guard.from_yaml({"accept": 0.0, "scorer": {"url": made.url}})
        assert without.judge(Exchange(prompt="p", answer="a", question="q")).confidence.profile == "proxy"


def test_a_server_of_another_model_leaves_answers_unjudged():
    """Fail closed: a number from elsewhere is worse than none."""
    with remote(scorer=TableScorer(default=0.0)) as made:
        guard = Guard.from_yaml({"accept": 0.0, "scorer": {"url": made.url, "profile": "proxy"}})
        decision = guard.judge(EXCHANGES[0])
    assert (decision.action, decision.rule) == (Action.ABSTAIN, "on_error")
    assert decision.failure is not None
    assert decision.failure.type == "OtherScorerError"


@pytest.mark.parametrize(
    ("scorer", "key"),
    [
        ({"url": "http://s", "model": "smollm2-135m"}, "scorer.model"),
        ({"url": "http://s", "device": "cpu"}, "scorer.device"),
        ({"key": "x"}, "scorer.key"),
        ({"url": "localhost:8788"}, "scorer.url"),
    ],
)
def test_what_belongs_to_the_server_is_refused_in_the_policy(scorer, key):
    """It would have no effect, and whoever wrote it expects one."""
    with pytest.raises(PolicyFileError) as caught:
        policy_from({"accept": 0.5, "scorer": scorer})
    assert caught.value.key == key


def test_a_key_changes_no_digest_and_is_not_shown():
    """Digests are logged."""
    plain, keyed = (
        policy_from({"accept": 0.5, "scorer": {"url": "http://s", "key": key}}) for key in ("secret-1", "secret-2")
    )
    assert plain.digest == keyed.digest
    assert "secret" not in repr(keyed)


def test_a_worker_with_a_server_loads_no_model_library():
    """It needs neither torch nor transformers installed."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from semgrad_guard import Exchange, Guard\n"
        "import semgrad_guard.remote\n"
        "guard = Guard.from_yaml({'accept': 0.5, 'scorer': {'url': 'http://127.0.0.1:9', 'profile': 'proxy'},"
        " 'budget': {'seconds': 0.5}})\n"
        "decision = guard.judge(Exchange(prompt='p', answer='a'))\n"
        "print(decision.failure.type, sorted({m.split('.')[0] for m in sys.modules if sys.modules[m]}"
        " & {'torch', 'transformers', 'fastapi'}))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ScorerUnavailableError []\n", done.stderr


def test_without_the_model_library_the_guard_says_what_to_type(monkeypatch):
    """At construction, not at the first answer."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("semgrad_guard.guard.readiness.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"semgrad-guard\[local\]"):
        Guard.from_yaml(accept=0.5)
