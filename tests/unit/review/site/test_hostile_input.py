"""Input that no honest program sends: each is answered with what is wrong, never with a fault of the server."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from starlette.testclient import TestClient

from semgrad_guard.review.access import Scope
from tests.hostile_cases import CASES
from tests.review_queues import submit
from tests.review_site import PASSWORD, site_of

BIG, HUGE = "1" + "0" * 400, "1" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
EDGES = ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00", "1e400", BIG)
ODD = (
    "\x00",
    "\ud800",
    "\u202e",
    "a\x00b",
    "%",
    "'",
    '"',
    "\\",
    "*",
    "é",
    "",
    " ",
    "x" * 3000,
    BIG,
    HUGE,
    "NaN",
    *EDGES,
)
JSON = {"Content-Type": "application/json"}


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


@pytest.fixture(name="queue")
def _queue(open_here):
    return open_here(retry_s=5)


@pytest.fixture(name="client")
def _client(queue):
    """A program that may do everything, on both databases; a fault of the server would raise here."""
    app = site_of(queue)
    desk = app.state.desk
    _, secret = desk.tokens.issue("p", desk.accounts.get("ann"), list(Scope))
    with TestClient(app, base_url="http://review.test", headers={"Authorization": f"Bearer {secret}"}) as client:
        yield client


def fine(response) -> None:
    """Check that an answer is the server's own, and tells nothing of its inside."""
    assert response.status_code < 500, response.text[:300]
    assert "Traceback" not in response.text


CURSORS = [
    f'["risk",{BIG},"x"]',
    f'["risk",{HUGE},"x"]',
    '["risk",NaN,"x"]',
    '["risk",1e999,"x"]',
    '["risk","1e5000","x"]',
    '["risk",1.0,"\\u0000"]',
    '["risk",1.0,"\\ud800"]',
    '["risk",1.0,["x"]]',
    "[" * 5000 + "]" * 5000,
    "{}",
    "é",
    *(json.dumps(["newest", each, "x"]) for each in EDGES),
    *(json.dumps(["deadline", each, "x"]) for each in EDGES),
]


def test_cursors_that_no_page_gave(client):
    """Numbers of any length, dates at the edge, depth and bytes."""
    for text in CURSORS:
        for sort in ("risk", "newest", "deadline"):
            fine(client.get("/api/v1/items", params={"cursor": cursor(text)[:1000], "sort": sort}))


def test_filters_at_the_edge(client, queue):
    """Dates outside of the calendar's years, endless numbers and search texts."""
    submit(queue)
    for name in ("created_after", "limit", "min_confidence", "text", "tag", "assignee", "cursor", "sort", "state"):
        for odd in ODD:
            fine(client.get("/api/v1/items", params={name: odd.encode("utf-8", "surrogatepass")}))
    fine(client.get("/api/v1/items", params={"text": "a " * 900}))
    assert client.get("/api/v1/items", params={"text": "a " * 900}).status_code == 400


def test_documents_with_anything_in_them(client, queue):
    """Whatever is taken can be read again, by the API, on the page and in an export."""
    head = '{"document": {"exchange_id": "x%d", "answer": "a"%s}}'
    extras = [
        f', "metadata": {{"a": {DEEP}}}',
        f', "metadata": {{"a": {HUGE}}}',
        f', "metadata": {{"a": {BIG}}}',
        f', "metadata": {{"a": {"[" * 150 + "]" * 150}}}',
        f', "attempt": {BIG}',
        f', "answer_ids": [{BIG}]',
        f', "passages": [{{"text": "t", "score": {BIG}}}]',
        ', "confidence": 1e999',
        ', "confidence": NaN',
        ', "tags": ["a\\u0000", "\\ud800"]',
        ', "question": "\\ud800\\u0000"',
        ', "metadata": {"\\ud800": "\\u0000"}',
    ]
    for n, extra in enumerate(extras):
        fine(client.post("/api/v1/items", content=head % (n, extra), headers=JSON))
    for body in (DEEP, "", "{", "null", '"x"', "\ufeff{}", '{"document": {"exchange_id": "\\ud800", "answer": ""}}'):
        fine(client.post("/api/v1/items", content=body.encode("utf-8", "surrogatepass"), headers=JSON))
    for item in queue.list(limit=200).items:
        fine(client.get(f"/api/v1/items/{item.id}"))
    assert len(list(queue.export())) >= 5


def test_forms_with_anything_in_them(client, queue):
    """As on the API; and a form that cannot even be read is refused, not a fault."""
    browser = client
    browser.headers.pop("Authorization")
    csrf = re.search(r'name="csrf" value="([^"]*)"', browser.get("/login").text)[1]
    for name, password in (("a\x00", "\x00"), ("x" * 300, "x"), ("ann", PASSWORD)):
        fine(browser.post("/login", data={"csrf": csrf, "name": name, "password": password}))
    csrf = re.search(r'name="csrf" value="([^"]*)"', browser.get("/").text)[1]
    review_id = submit(queue)
    for path in ("/?q=", "/?cursor=", "/?done=", "/?tag=", "/?state=", "/?mine=", "/?sort=", "/items/", "/login?next="):
        for odd in ("%00", "%ed%a0%80", "%ff", "a" * 900, "..%2f", BIG):
            fine(browser.get(path + odd))
    tried = {
        "approve": ("seen", "nonce", "flow", "skipped"),
        "edit": ("text", "was_correct"),
        "assign": ("to",),
        "skip": ("skipped",),
        "comment": ("text",),
        "undo": ("seen",),
    }
    for action, names in tried.items():
        for name in names:
            for odd in ODD[:1] + ODD[2:]:
                fine(browser.post(f"/items/{review_id}/{action}", data={"csrf": csrf, name: odd}))
    fine(browser.post("/bulk", data={"csrf": csrf, "action": "claim", "ids": ["\x00", ":" + HUGE, "x:99999999999"]}))
    many = "&".join(f"a{n}=1" for n in range(3000))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    fine(browser.post("/next", content=f"{many}&csrf={csrf}", headers=form))
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        fine(browser.post("/next", content=b"--x\r\nbad", headers={"Content-Type": kind}))


texts = st.sampled_from(ODD) | st.text(max_size=50)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("question", "prompt", "answer", "passages", "tags", "metadata", "attempt", "author", "score", "confidence")
MOVES = ("approve", "edit", "reject", "claim", "release", "undo", "assign", "comments", "ruling", "nothing")


def test_made_up_requests(client, queue):
    """Every field of the API takes everything, and answers."""
    review_id = submit(queue)

    @how(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        document=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values)),
        exchange_id=texts,
        move=st.sampled_from(MOVES),
        body=st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("text", "reason", "assignee", "on_behalf_of", "was_correct", "force"), values)
        ),
        asked=st.fixed_dictionaries(
            {"question": texts}, optional={"tags": values, "metadata": values, "similar": values}
        ),
        key=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300),
    )
    def ask(document, exchange_id, move, body, asked, key) -> None:
        def post(path, content) -> None:
            headers = {**JSON, "Idempotency-Key": key}
            fine(client.post(path, content=json.dumps(content), headers=headers))

        post("/api/v1/items", {"document": {**document, "exchange_id": exchange_id}})
        post(f"/api/v1/items/{review_id}/{move}", body)
        post("/api/v1/earlier-verdict", asked)

    ask()
