"""Webhooks: signed, sent until taken, and nothing where nobody should read it."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest

from semgrad_guard.errors import ReviewError
from semgrad_guard.review.store.outbox import hooks
from semgrad_guard.review.webhooks import KEY, SIGNATURE, WebhookSender, add_webhook, shown_url, sign, verify
from tests.review_queues import submit


class Receiver:
    """A site that takes webhooks, with a status to answer."""

    def __init__(self, *statuses: int) -> None:
        self.requests, self._statuses = [], list(statuses)
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status = self._statuses.pop(0) if self._statuses else 204
        return httpx.Response(status, headers={"Location": "https://elsewhere.test"})


def test_a_verdict_is_sent_signed_once_it_stands(queue, clock):
    """The receiver can trust who sent it, and that it is the same when it comes twice."""
    hook = add_webhook(queue, "chat", "https://example.com/hook?key=k")
    review_id = submit(queue)
    queue.edit(review_id, "ann", "It is a gas.")
    receiver = Receiver()
    sender = WebhookSender(queue, receiver.transport)
    assert sender.send_due() == 0
    clock.advance(60)
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    (request,) = receiver.requests
    assert verify(hook.secret, request.headers[SIGNATURE], request.content, clock.now)
    told = json.loads(request.content)
    assert (told["event"], told["item"]["id"], told["ruling"]["text"]) == ("verdict", review_id, "It is a gas.")
    assert request.headers[KEY] == told["key"]


def test_submissions_are_sent_to_who_wants_them(queue):
    """A chat can call reviewers."""
    add_webhook(queue, "chat", "https://example.com/hook", ["submit"])
    review_id = submit(queue)
    receiver = Receiver()
    assert WebhookSender(queue, receiver.transport).send_due() == 1
    told = json.loads(receiver.requests[0].content)
    assert (told["event"], told["item"]["id"], told["ruling"]) == ("submit", review_id, None)


@pytest.mark.parametrize("status", [500, 404, 302])
def test_what_is_not_taken_is_sent_again_later(queue, clock, status):
    """A receiver that restarts misses nothing; a redirect is followed nowhere."""
    add_webhook(queue, "chat", "https://example.com/hook", ["submit"])
    submit(queue)
    receiver = Receiver(status, 200)
    sender = WebhookSender(queue, receiver.transport)
    assert sender.send_due() == 0
    assert sender.send_due() == 0
    clock.advance(3)
    assert sender.send_due() == 1
    assert {str(request.url) for request in receiver.requests} == {"https://example.com/hook"}
    assert len({request.headers[KEY] for request in receiver.requests}) == 1


def test_one_broken_receiver_does_not_hold_up_another(queue):
    """Each has its own deliveries."""
    add_webhook(queue, "a", "https://a.example/hook", ["submit"])
    add_webhook(queue, "b", "https://b.example/hook", ["submit"])
    submit(queue)

    def answer(request):
        if request.url.host == "a.example":
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    assert WebhookSender(queue, httpx.MockTransport(answer)).send_due() == 1


def test_an_erased_answer_is_not_sent(queue, clock):
    """What was removed must not leave the house afterwards."""
    add_webhook(queue, "chat", "https://example.com/hook", ["submit", "verdict"])
    review_id = submit(queue, answer="private")
    queue.edit(review_id, "ann", "private too")
    queue.erase([review_id], "ann")
    clock.advance(60)
    receiver = Receiver()
    assert WebhookSender(queue, receiver.transport).send_due() == 2
    assert all(b"private" not in request.content for request in receiver.requests)


def test_a_signature_holds_for_its_body_secret_and_time_only(clock):
    """Forged, changed and replayed messages are noticed."""
    header = sign("secret", b"body", clock.now)
    assert verify("secret", header, b"body", clock.now)
    assert not verify("other", header, b"body", clock.now)
    assert not verify("secret", header, b"bodY", clock.now)
    assert not verify("secret", header, b"body", clock.now + timedelta(seconds=301))
    for forged in ("", "t=1", "v1=x", "t=x,v1=y", header.replace("v1=", "v1=0"), "t=²,v1=é", header + "é"):
        assert not verify("secret", forged, b"body", clock.now), forged


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/hook", "not encrypted"),
        ("ftp://example.com", "needs an address"),
        ("example.com", "needs an address"),
        ("https://", "needs an address"),
        ("https://example.com:99999/", "needs an address"),
        ("https://[::1", "needs an address"),
        ("", "needs an address"),
    ],
)
def test_an_unfit_address_is_refused(memory_queue, url, why):
    """Answers may be private."""
    with pytest.raises(ReviewError, match=why):
        add_webhook(memory_queue, "x", url)


def test_http_is_allowed_on_this_machine_or_when_said(memory_queue):
    """Tests and sidecars need no certificate."""
    for url in ("http://localhost:8000/h", "http://127.0.0.1/h", "http://[::1]/h"):
        add_webhook(memory_queue, "x", url)
    add_webhook(memory_queue, "x", "http://example.com/h", allow_plain=True)


def test_an_unknown_event_is_refused(memory_queue):
    """A typo would never be told of anything."""
    for events in (["verdicts"], []):
        with pytest.raises(ReviewError, match="verdict and submit"):
            add_webhook(memory_queue, "x", "https://example.com", events)


def test_secrets_are_not_shown(memory_queue):
    """Lists and logs show where, not with which key."""
    hook = add_webhook(memory_queue, "x", "https://user:pass@example.com:8443/h?token=t")
    (stored,) = memory_queue.database.read(hooks)
    assert stored == hook
    assert hook.secret not in repr(hook)
    assert shown_url(hook.url) == "https://example.com:8443/h"
