"""The client does what the queue does, on another machine."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import httpx
import pytest

from semgrad_guard.errors import (
    AlreadyClaimedError,
    EmptyTextError,
    IllegalMoveError,
    ItemNotFoundError,
    QueueUnavailableError,
    ReviewError,
    UndoRefusedError,
)
from semgrad_guard.flow import ReviewId, Verdict
from semgrad_guard.guard.assembly import parts_of
from semgrad_guard.policy import parse_policy
from semgrad_guard.ports import ReviewQueue
from semgrad_guard.review import Event, Filters, Sort, State, open_queue
from semgrad_guard.review.access import Scope
from semgrad_guard.review.client import ReviewClient
from tests.fakes import TableScorer
from tests.review_queues import doubtful, exchange, submit
from tests.review_site import serving, site_of


@pytest.fixture(name="queue", scope="module")
def _queue():
    with closing(open_queue("sqlite://")) as queue:
        yield queue


@pytest.fixture(name="site", scope="module")
def _site(queue):
    app = site_of(queue)
    with serving(app) as url:
        yield url, app.state.desk


@pytest.fixture(name="open_client", scope="module")
def _open_client(site):
    url, desk = site
    opened = []

    def open_client(*scopes: Scope) -> ReviewClient:
        _, secret = desk.tokens.issue("bot", desk.accounts.get("ann"), scopes or tuple(Scope))
        opened.append(ReviewClient(url, secret, retry_s=0.1))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture(name="client")
def _client(open_client):
    return open_client()


def test_the_guard_can_use_it_as_its_queue(open_client, queue):
    """Submit and wait are all that the guard asks for."""
    client = open_client(Scope.SUBMIT)
    assert isinstance(client, ReviewQueue)
    asked = exchange(1)
    review_id = client.submit(asked, doubtful(asked), {"note": 1}, deadline_s=600)
    assert client.submit(asked, doubtful(asked)) == review_id
    assert client.wait(review_id, 0) is None
    queue.edit(review_id, "bob", "It is a gas.")
    ruling = client.wait(review_id, 20)
    assert (ruling.verdict, ruling.text, ruling.by) == (Verdict.EDITED, "It is a gas.", "bob")


def test_it_judges_items(client, queue):
    """Every move of the queue, by the same name."""
    for item in client.each():
        client.reject(ReviewId(item.id), "ann")
    review_id = submit(queue, 2)
    assert client.claim().id == review_id
    assert client.claim() is None
    client.comment(review_id, "hm")
    assert client.assign(review_id, "ann").assignee == "ann"
    assert client.release(review_id, "ann").state is State.PENDING
    assert client.claim_item(review_id).holder == "ann/bot"
    assert client.approve(review_id, "ann").state is State.APPROVED
    assert client.undo(review_id).state is State.CLAIMED
    assert client.edit(review_id, "ann", "x", was_correct=True).state is State.EDITED
    detail = client.get(review_id)
    assert detail.comments[0].text == "hm"
    assert detail.ruling is not None
    assert client.audit(review_id)[0].event is Event.SUBMIT
    assert client.insight().by_state[State.EDITED] >= 1


def test_it_lists_items(client, queue):
    """Filters and pages go through."""
    ids = {submit(queue, n, tags=("listed",)) for n in range(3)}
    wanted = Filters(tags=frozenset({"listed"}), states=frozenset({State.PENDING}), text="element", max_confidence=0.5)
    page = client.list(wanted, sort=Sort.NEWEST, limit=2)
    rest = client.list(wanted, sort=Sort.NEWEST, cursor=page.next_cursor)
    assert {item.id for item in page.items + rest.items} == ids
    assert {item.id for item in client.each(wanted)} == ids


def test_errors_are_those_of_the_queue(client, queue):
    """A program handles them in one way, wherever the queue is."""
    review_id = submit(queue, 3)
    with pytest.raises(ItemNotFoundError) as missing:
        client.get(ReviewId("zzzz"))
    assert missing.value.item_id == "zzzz"
    queue.claim_item(review_id, "bob")
    with pytest.raises(AlreadyClaimedError) as held:
        client.approve(review_id, "ann")
    assert held.value.by == "bob"
    with pytest.raises(EmptyTextError):
        client.edit(review_id, "ann", " ")
    queue.approve(review_id, "bob")
    with pytest.raises(IllegalMoveError) as settled:
        client.reject(review_id, "ann")
    assert settled.value.state == "approved"
    with pytest.raises(UndoRefusedError):
        client.undo(review_id)


def test_a_token_that_does_not_allow_it_is_told(open_client):
    """The message says what the token lacks."""
    with pytest.raises(ReviewError, match="this needs judge"):
        open_client(Scope.SUBMIT).claim()


def test_a_wrong_token_or_address_is_told(site):
    """Neither is a traceback, and no secret is in the message."""
    url, _ = site
    with closing(ReviewClient(url, "sgr_wrong")) as client, pytest.raises(ReviewError, match="valid token") as caught:
        client.claim()
    assert "sgr_wrong" not in str(caught.value)
    with (
        closing(ReviewClient(f"{url}/elsewhere", "x")) as client,
        pytest.raises(ReviewError, match="is this its address"),
    ):
        client.claim()


def _scripted(*answers: object) -> tuple[ReviewClient, list[httpx.Request], list[float]]:
    """Return a client whose site answers as given, with the requests it got and the pauses between them."""
    requests, pauses, left = [], [], list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    client = ReviewClient("https://review.test", "t", retry_s=5, sleep=pauses.append, client=transport)
    return client, requests, pauses


def test_an_unreachable_site_is_tried_again():
    """A restart of the site costs a moment, not the answer."""
    client, requests, pauses = _scripted(
        httpx.ConnectError("refused"), httpx.Response(503, json={}), httpx.Response(201, json={"id": "a1"})
    )
    asked = exchange()
    assert client.submit(asked, doubtful(asked)) == "a1"
    assert len(requests) == 3
    assert len(pauses) == 2


def test_a_move_tried_again_keeps_its_key():
    """The site may have acted although the reply got lost."""
    view = {"error": "ItemNotFoundError", "message": "x", "details": {"item_id": "a1"}}
    client, requests, _ = _scripted(httpx.ReadTimeout("slow"), httpx.Response(404, json=view))
    with pytest.raises(ItemNotFoundError):
        client.approve(ReviewId("a1"), "ann")
    assert len({request.headers["Idempotency-Key"] for request in requests}) == 1


def test_a_site_that_stays_away_is_an_unavailable_queue():
    """The guard then takes its own way out."""
    transport = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(503)))
    client = ReviewClient("https://review.test", "t", retry_s=0, client=transport)
    with pytest.raises(QueueUnavailableError, match="503"):
        client.claim()


NO_ANSWERS = ("", "<html>", "1", '"x"', "[1]", "[" * 100_000, "1" * 5000)
"""None of them answers any question."""


@pytest.mark.parametrize("status", [200, 404, 409])
@pytest.mark.parametrize("content", [*NO_ANSWERS, "[]", "{}", '{"error": [], "message": {}, "details": 1}'])
def test_whatever_a_site_answers_is_an_error_of_ours(status, content):
    """A proxy's page, or another program at the address."""
    calls = [
        lambda client: client.submit(exchange(), doubtful(exchange())),
        lambda client: client.wait(ReviewId("a1"), 0),
        lambda client: client.approve(ReviewId("a1"), "ann"),
        lambda client: client.list(),
    ]
    if content in NO_ANSWERS or status != 200:
        calls += [lambda client: client.audit(ReviewId("a1")), lambda client: client.reuse("What?")]
    for call in calls:
        client, _, _ = _scripted(httpx.Response(status, content=content))
        with pytest.raises(ReviewError):
            call(client)


class Trickle(httpx.SyncByteStream):
    """A byte now and then, so that no limit on a single read is ever reached."""

    def __iter__(self):
        while True:
            time.sleep(0.05)
            yield b" "


def test_a_site_that_answers_without_an_end_costs_the_time_of_one_request():
    """The guard has a time limit of its own, and its caller waits."""
    transport = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Trickle())))
    client = ReviewClient("https://review.test", "t", retry_s=0, timeout_s=0.3, client=transport)
    began = time.monotonic()
    with pytest.raises(QueueUnavailableError, match="TimeoutError"):
        client.submit(exchange(), doubtful(exchange()))
    assert time.monotonic() - began < 3


def test_waiting_asks_in_pieces():
    """Proxies cut long requests off."""
    empty = httpx.Response(200, json={"ruling": None})
    client, requests, _ = _scripted(empty)
    assert client.wait(ReviewId("a1"), 0) is None
    assert requests[0].url.params["wait_s"] == "0.0"


def test_a_policy_with_the_sites_address_uses_it(site, queue):
    """`review: {url: https://...}` is all that a guard on another machine needs."""
    url, desk = site
    _, secret = desk.tokens.issue("guard", desk.accounts.get("ann"), [Scope.SUBMIT])
    text = f"accept: 0.7\nreview: {{url: '{url}', token: '${{TOKEN}}', deadline_s: 900, reuse_verdicts: {{tags: faq}}}}"
    parts = parts_of(parse_policy(text, env={"TOKEN": secret}), TableScorer({}))
    asked = exchange(40, question="What is element 40 called?", tags=("faq",), passages=())
    review_id = parts.queue.submit(asked, doubtful(asked))
    item = queue.item(review_id)
    assert (item.deadline_at - item.created_at).total_seconds() == 900
    assert parts.earlier.find(asked) is None
    queue.edit(review_id, "bob", "Zirconium.")
    assert parts.queue.wait(review_id, 20).text == "Zirconium."
    queue.settings, settings = replace(queue.settings, undo_s=0), queue.settings
    found = parts.earlier.find(exchange(41, question="what is element 40  called?", tags=("faq",), passages=()))
    queue.settings = settings
    assert (found.text, found.review_id, found.by) == ("Zirconium.", review_id, "bob")
    parts.queue.close()


def test_a_site_needs_a_token_and_a_database_none():
    """Each mix-up says what to write."""
    with pytest.raises(ReviewError, match="review token add"):
        open_queue("https://review.example.com")
    with pytest.raises(ReviewError, match="password in the url"):
        open_queue("sqlite://", token="t")
