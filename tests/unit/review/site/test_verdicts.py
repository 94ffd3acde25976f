"""A verdict is taken or refused with a reason; it never vanishes behind a page that looks as if it was taken."""

from __future__ import annotations

import re
import threading

import pytest

from semgrad_guard.review import Event, State, document_of
from semgrad_guard.review.access import Scope
from tests.review_queues import doubtful, exchange, submit

VERDICTS = {"approve": {}, "edit": {"text": "It is a gas."}, "reject": {"reason": "no"}}
PAIRS = [(first, then) for first in VERDICTS for then in VERDICTS if first != then]
STATES = {"approve": State.APPROVED, "edit": State.EDITED, "reject": State.REJECTED}


def forms(browser, review_id):
    """Return the hidden fields of every verdict's form on an item's page, as a browser keeps them for its Back key."""
    browser.get(f"/items/{review_id}")
    return {verb: browser.hidden(f"/items/{review_id}/{verb}") for verb in VERDICTS}


def send(browser, review_id, verb, fields):
    """Send one of the kept forms; return the status of the answer itself, before any redirect."""
    path = f"/items/{review_id}/{verb}"
    response = browser.client.post(path, data={**fields[verb], **VERDICTS[verb]}, follow_redirects=False)
    return response.status_code, response.text


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_second_verdict_from_the_same_page_is_refused_aloud(ann, memory_queue, first, then):
    """Two browser tabs, or the Back key: the reviewer must hear that the first verdict stands."""
    review_id = submit(memory_queue)
    kept = forms(ann, review_id)
    assert send(ann, review_id, first, kept)[0] == 303
    status, page = send(ann, review_id, then, kept)
    assert status == 409
    assert "ann" in page
    assert STATES[first] in page
    assert memory_queue.item(review_id).state is STATES[first]


@pytest.mark.parametrize("then", list(VERDICTS))
def test_a_page_from_before_an_undo_gives_no_verdict(ann, memory_queue, then):
    """The undo is newer than the page: neither the old verdict nor another one comes back by the Back key."""
    review_id = submit(memory_queue)
    kept = forms(ann, review_id)
    send(ann, review_id, "approve", kept)
    ann.get(f"/items/{review_id}")
    ann.submit(f"/items/{review_id}/undo")
    status, page = send(ann, review_id, then, kept)
    assert status == 409
    assert "undid" in page
    assert f'href="/items/{review_id}"' in page, "the way to judge it again"
    assert memory_queue.item(review_id).state is State.CLAIMED
    assert send(ann, review_id, then, forms(ann, review_id))[0] == 303
    assert memory_queue.item(review_id).state is STATES[then]


def test_the_same_form_sent_twice_is_one_verdict(ann, memory_queue):
    """A double click is no conflict."""
    review_id = submit(memory_queue)
    kept = forms(ann, review_id)
    assert [send(ann, review_id, "approve", kept)[0] for _ in range(2)] == [303, 303]
    assert [row.event for row in memory_queue.audit(review_id)].count(Event.APPROVE) == 1


def test_an_edit_sent_again_with_another_text_is_refused(ann, memory_queue):
    """The text that the caller gets is the one that was taken; the other one is given back, not swallowed."""
    review_id = submit(memory_queue)
    fields = forms(ann, review_id)["edit"]
    path = f"/items/{review_id}/edit"
    assert ann.client.post(path, data={**fields, "text": "one"}, follow_redirects=False).status_code == 303
    second = ann.client.post(path, data={**fields, "text": "two"}, follow_redirects=False)
    assert second.status_code == 409
    assert "two" in second.text
    assert memory_queue.ruling(review_id).text == "one"


def test_a_page_stays_good_while_nobody_judges(ann, memory_queue, clock):
    """A comment or the end of a lease changes nothing about the verdict, and must not cost a long edit."""
    review_id = submit(memory_queue)
    memory_queue.claim_item(review_id, "ann")
    kept = forms(ann, review_id)
    memory_queue.comment(review_id, "bob", "look twice")
    clock.advance(3600)
    memory_queue.expire_leases()
    ann.log_in("ann")
    kept["edit"]["csrf"] = forms(ann, review_id)["edit"]["csrf"]
    assert send(ann, review_id, "edit", kept)[0] == 303


def test_an_undo_from_an_old_page_spares_the_newer_verdict(ann, memory_queue):
    """Approve, undo, reject: the first page's undo is not meant for the rejection."""
    review_id = submit(memory_queue)
    send(ann, review_id, "approve", forms(ann, review_id))
    ann.get(f"/items/{review_id}")
    old = ann.hidden(f"/items/{review_id}/undo")
    ann.submit(f"/items/{review_id}/undo")
    send(ann, review_id, "reject", forms(ann, review_id))
    ann.post(f"/items/{review_id}/undo", **old)
    assert ann.status == 409
    assert memory_queue.item(review_id).state is State.REJECTED


def test_a_selection_from_before_an_undo_gives_no_verdict(ann, memory_queue):
    """The same holds of verdicts on several items at once."""
    review_id = submit(memory_queue)
    ann.get("/")
    ticked = re.search(r'name="ids" value="([^"]*)"', ann.page)[1]
    fields = {**ann.hidden("/bulk"), "ids": ticked}
    assert "1 of 1" in ann.post("/bulk", **fields, action="approve")
    memory_queue.undo(review_id, "ann")
    assert "0 of 1" in ann.post("/bulk", **fields, action="reject")
    assert memory_queue.item(review_id).state is State.CLAIMED


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_key_stands_for_one_verb(program, memory_queue, first, then):
    """A program that sends the same key with another verdict is told so."""
    review_id = submit(memory_queue)
    client, key = program(Scope.JUDGE), {"Idempotency-Key": "k"}
    assert client.post(f"/api/v1/items/{review_id}/{first}", json=VERDICTS[first], headers=key).status_code == 200
    assert client.post(f"/api/v1/items/{review_id}/{then}", json=VERDICTS[then], headers=key).status_code == 409
    assert memory_queue.item(review_id).state is STATES[first]


def test_a_key_stands_for_one_item(program, memory_queue):
    """A program that uses one key for two items judges both."""
    ids = [submit(memory_queue, n) for n in range(2)]
    client, key = program(Scope.JUDGE), {"Idempotency-Key": "k"}
    answers = [client.post(f"/api/v1/items/{each}/approve", headers=key).json() for each in ids]
    assert [each["id"] for each in answers] == ids
    assert [memory_queue.item(each).state for each in ids] == [State.APPROVED] * 2


def test_a_key_does_not_bring_an_undone_verdict_back_or_hide_the_undo(program, memory_queue):
    """Sent again after an undo, the request is answered with what happened."""
    review_id = submit(memory_queue)
    client, key = program(Scope.JUDGE), {"Idempotency-Key": "k"}
    path = f"/api/v1/items/{review_id}"
    client.post(f"{path}/approve", headers=key)
    client.post(f"{path}/undo")
    again = client.post(f"{path}/approve", headers=key)
    assert again.status_code == 409
    assert again.json()["error"] == "VerdictChangedError"
    assert memory_queue.item(review_id).state is State.CLAIMED


def test_reading_the_verdict_changes_nothing(program, memory_queue):
    """A token that may only read must not take a reviewer's undo away, however long it waits."""
    review_id = submit(memory_queue)
    client = program(Scope.READ)
    memory_queue.approve(review_id, "ann")
    before = memory_queue.audit(review_id)
    answered = client.get(f"/api/v1/items/{review_id}/ruling", params={"wait_s": 1}).json()
    assert answered["ruling"]["verdict"] == "approved"
    assert memory_queue.audit(review_id) == before
    assert memory_queue.undo(review_id, "ann").state is State.CLAIMED


def test_reading_the_verdict_settles_nothing(program, memory_queue, clock):
    """Even a deadline that has passed is not acted upon by somebody who only looks."""
    asked = exchange(1)
    review_id = memory_queue.submit_document(document_of(asked, doubtful(asked)), deadline_s=5)
    clock.advance(6)
    before = memory_queue.audit(review_id)
    assert program(Scope.READ).get(f"/api/v1/items/{review_id}/ruling").json() == {"ruling": None}
    assert memory_queue.audit(review_id) == before


def test_taking_the_verdict_makes_it_final(program, memory_queue):
    """The program that submitted the answer takes the verdict; it then cannot be undone."""
    client = program(Scope.SUBMIT)
    body = {"document": {"exchange_id": "x1", "answer": "So."}}
    review_id = client.post("/api/v1/items", json=body).json()["id"]
    path = f"/api/v1/items/{review_id}/ruling"
    assert client.post(path).json() == {"ruling": None}
    timer = threading.Timer(0.1, lambda: memory_queue.approve(review_id, "ann"))
    timer.start()
    taken = client.post(path, params={"wait_s": 20}).json()["ruling"]
    timer.join()
    assert taken["verdict"] == "approved"
    assert memory_queue.item(review_id).delivered_at is not None


def test_only_the_submitter_takes_the_verdict(program, memory_queue):
    """Another account's program neither reads nor ends what was not submitted by it."""
    body = {"document": {"exchange_id": "x1", "answer": "So."}}
    review_id = program(Scope.SUBMIT, user="ann").post("/api/v1/items", json=body).json()["id"]
    memory_queue.approve(review_id, "ann")
    path = f"/api/v1/items/{review_id}/ruling"
    assert program(Scope.READ, user="ann").post(path).status_code == 403
    stranger = program(Scope.SUBMIT, user="bob")
    assert stranger.post(path).status_code == 404
    assert stranger.get(path).status_code == 404, "a token that only submits reads what it submitted, nothing else"
    assert program(Scope.READ, user="bob").get(path).status_code == 200
    assert memory_queue.item(review_id).delivered_at is None
