"""The JSON API as a program uses it."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from semgrad_guard.review import AtExpiry, Event
from semgrad_guard.review.access import Scope
from tests.review_queues import submit

DOCUMENT = {"exchange_id": "x1", "question": "Why?", "answer": "So.", "confidence": 0.2, "tags": ["a"]}


def test_an_answer_is_submitted_once(program, memory_queue):
    """The guard's program may lose the reply and send again."""
    client = program(Scope.SUBMIT)
    first = client.post("/api/v1/items", json={"document": DOCUMENT, "deadline_s": 60})
    again = client.post("/api/v1/items", json={"document": DOCUMENT})
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    item = memory_queue.item(first.json()["id"])
    assert item.deadline_at is not None
    assert memory_queue.audit(item.id)[0].by == "ann/bot"


def test_a_program_judges_an_item(program, memory_queue):
    """Claim, comment, edit, undo, reject."""
    review_id = submit(memory_queue)
    client = program(Scope.READ, Scope.JUDGE)
    root = f"/api/v1/items/{review_id}"
    assert client.post("/api/v1/items/claim-next").json()["id"] == review_id
    assert client.post("/api/v1/items/claim-next").status_code == 204
    assert client.post(f"{root}/comments", json={"text": "hm"}).status_code == 204
    assert client.post(f"{root}/edit", json={"text": "It is a gas.", "was_correct": True}).json()["state"] == "edited"
    assert client.post(f"{root}/undo").json()["state"] == "claimed"
    assert client.post(f"{root}/assign", json={"assignee": "ann"}).json()["assignee"] == "ann"
    assert client.post(f"{root}/release").json()["state"] == "pending"
    assert client.post(f"{root}/claim").json()["holder"] == "ann/bot"
    assert client.post(f"{root}/reject", json={"reason": "no"}).json()["state"] == "rejected"
    detail = client.get(root).json()
    assert detail["ruling"]["text"] == "no"
    assert detail["comments"][0]["text"] == "hm"
    assert client.get(f"{root}/audit").json()[0]["event"] == "submit"
    assert client.get("/api/v1/stats").json()["by_state"]["rejected"] == 1


def test_lists_are_filtered_and_paged(program, memory_queue):
    """The same filters as on the page."""
    for n in range(5):
        submit(memory_queue, n, confidence=n / 10, tags=("even",) if n % 2 == 0 else ())
    client = program(Scope.READ)
    page = client.get("/api/v1/items", params={"limit": 2}).json()
    rest = client.get("/api/v1/items", params={"limit": 200, "cursor": page["next_cursor"]}).json()
    assert len(page["items"] + rest["items"]) == 5
    assert len(client.get("/api/v1/items", params={"tag": "even"}).json()["items"]) == 3
    assert len(client.get("/api/v1/items", params={"max_confidence": 0.15}).json()["items"]) == 2
    assert client.get("/api/v1/items", params={"state": "approved"}).json()["items"] == []
    assert len(client.get("/api/v1/items", params={"text": "element 3"}).json()["items"]) == 1


def test_a_request_sent_again_with_its_key_acts_once(program, memory_queue):
    """A reply that got lost is no second verdict."""
    review_id = submit(memory_queue)
    client = program(Scope.JUDGE)
    for _ in range(2):
        response = client.post(f"/api/v1/items/{review_id}/approve", headers={"Idempotency-Key": "k1"})
        assert response.json()["state"] == "approved"
    assert [row.event for row in memory_queue.audit(review_id)] == [Event.SUBMIT, Event.APPROVE]
    assert client.post(f"/api/v1/items/{review_id}/approve").status_code == 409


def test_an_item_put_back_again_with_the_same_key_is_put_back_once(program, memory_queue):
    """The same holds of releasing: a program that lost the reply is not told that nobody holds the item."""
    review_id = submit(memory_queue)
    client = program(Scope.JUDGE)
    client.post(f"/api/v1/items/{review_id}/claim")
    for _ in range(2):
        response = client.post(f"/api/v1/items/{review_id}/release", headers={"Idempotency-Key": "k1"})
        assert response.json()["state"] == "pending"
    assert [row.event for row in memory_queue.audit(review_id)][1:] == [Event.CLAIM, Event.RELEASE]


@pytest.mark.parametrize("move", ["approve", "edit", "reject", "release"])
def test_a_program_says_for_whom_it_acts(program, memory_queue, move):
    """Its own name stays on record, and a name too long for the record is refused."""
    review_id = submit(memory_queue)
    client = program(Scope.JUDGE)
    client.post(f"/api/v1/items/{review_id}/claim")
    path, body = f"/api/v1/items/{review_id}/{move}", {"text": "x"} if move == "edit" else {}
    assert client.post(path, json={**body, "on_behalf_of": "x" * 201}).status_code == 422
    assert client.post(path, json={**body, "on_behalf_of": "carol"}).status_code == 200
    row = memory_queue.audit(review_id)[-1]
    assert (row.event, row.by, row.detail["on_behalf_of"]) == (move, "ann/bot", "carol")


def test_only_an_administrators_token_puts_back_what_somebody_else_holds(program, memory_queue):
    """As on the page."""
    review_id = submit(memory_queue)
    memory_queue.claim_item(review_id, "bob")
    path = f"/api/v1/items/{review_id}/release"
    assert program(Scope.JUDGE).post(path, json={"force": True}).status_code == 403
    assert program(Scope.JUDGE, user="root").post(path).status_code == 409
    assert program(Scope.JUDGE, user="root").post(path, json={"force": True}).json()["state"] == "pending"
    assert memory_queue.audit(review_id)[-1].by == "root/bot"


def test_the_verdict_can_be_waited_for(program, memory_queue):
    """A program need not ask again and again."""
    review_id = submit(memory_queue)
    client = program(Scope.READ)
    path = f"/api/v1/items/{review_id}/ruling"
    assert client.get(path).json() == {"ruling": None}
    assert client.get(path, params={"wait_s": 0.05}).json() == {"ruling": None}
    timer = threading.Timer(0.1, lambda: memory_queue.approve(review_id, "ann"))
    timer.start()
    ruling = client.get(path, params={"wait_s": 20}).json()["ruling"]
    timer.join()
    assert ruling["verdict"] == "approved"


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/api/v1/items/zzzz/approve", None, 404, "ItemNotFoundError"),
        ("/api/v1/items/zz'zz/approve", None, 422, "InvalidRequest"),
        ("/api/v1/items", {"document": {"exchange_id": "x", "anwser": ""}}, 422, "InvalidRequest"),
        ("/api/v1/items", {"document": DOCUMENT, "deadline_s": -1}, 422, "InvalidRequest"),
        ("/api/v1/items", {}, 422, "InvalidRequest"),
        ("/api/v1/nothing", None, 404, "NotFound"),
    ],
)
def test_mistakes_are_told_in_one_form(program, path, body, status, kind):
    """Programs read `error`, people read `message`."""
    response = program().post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"] == kind
    assert response.json()["message"]


def test_a_refused_move_carries_its_data(program, memory_queue):
    """A program need not parse sentences."""
    review_id = submit(memory_queue)
    memory_queue.claim_item(review_id, "bob")
    response = program().post(f"/api/v1/items/{review_id}/approve")
    assert response.status_code == 409
    assert response.json()["details"] == {"item_id": review_id, "by": "bob"}


def test_an_unreachable_database_is_a_503(program, monkeypatch):
    """The guard then takes its own way out."""
    client = program()

    def broken(*_: object, **__: object):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("unable to open database file"))

    monkeypatch.setattr("semgrad_guard.review.store.submission.submit_all", broken)
    response = client.post("/api/v1/items", json={"document": DOCUMENT})
    assert response.status_code == 503


def test_the_description_of_the_api_names_every_way_it_can_answer(app):
    """OpenAPI is what other languages build their clients from."""
    described = app.openapi()
    assert set(described["paths"]) >= {"/api/v1/items", "/api/v1/items/{item_id}/ruling", "/api/v1/items/claim-next"}
    for path, methods in described["paths"].items():
        assert path.startswith("/api/v1/")
        for method in methods.values():
            assert {"401", "403", "422", "503"} <= set(method["responses"])


def test_no_program_approves_its_own_answer_by_a_short_deadline(program, memory_queue):
    """The site that approves at the deadline says how short it may be."""
    memory_queue.settings = replace(memory_queue.settings, at_expiry=AtExpiry.APPROVE, deadline_s=600)
    client = program(Scope.SUBMIT)
    for deadline_s in (0, 1, 599):
        refused = client.post("/api/v1/items", json={"document": DOCUMENT, "deadline_s": deadline_s})
        assert refused.status_code == 422
        assert "600" in refused.json()["message"]
    assert memory_queue.counts()["pending"] == 0
    assert client.post("/api/v1/items", json={"document": DOCUMENT, "deadline_s": 600}).status_code == 201


def test_an_exchange_id_gives_nobody_anothers_item(program):
    """Knowing the id of somebody else's exchange is no way to its verdict."""
    mine = program(Scope.SUBMIT, user="ann").post("/api/v1/items", json={"document": DOCUMENT})
    assert mine.status_code == 201
    for user, answer in (("bob", "So."), ("ann", "Not so.")):
        body = {"document": {**DOCUMENT, "answer": answer}}
        refused = program(Scope.SUBMIT, user=user).post("/api/v1/items", json=body)
        assert (refused.status_code, refused.json()["error"]) == (409, "ExchangeIdTakenError")
        assert mine.json()["id"] not in refused.text
