"""Attacks on the page and the API, each tried and each repelled."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from semgrad_guard.review import State
from semgrad_guard.review.access import IDLE_S, LONGEST_S, Role, Scope
from semgrad_guard.review.site.app import create_app
from semgrad_guard.review.site.desk import WebSettings
from semgrad_guard.review.store.document import Document
from semgrad_guard.review.store.read import ERASED
from semgrad_guard.review.store.schema import metadata
from tests.review_queues import doubtful, exchange, submit
from tests.review_site import HASHER, PASSWORD
from tests.unit.review.site.conftest import Browser

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><a href=javascript:alert(1)>x</a>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "javascript:alert(1)",
    "\u202e<b>\u200b",
]


class _Tags(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts, self.handlers, self.links = [], [], []

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        if tag == "script":
            self.scripts.append(given.get("src"))
        self.handlers += [name for name in given if name.startswith("on") or name == "style"]
        self.links += [given[name] for name in ("href", "src", "action", "formaction") if given.get(name)]


def acts_on(page: str) -> _Tags:
    """Return what a browser would act on."""
    tags = _Tags()
    tags.feed(page)
    return tags


# --- hostile texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_are_only_ever_text(ann, memory_queue, payload):
    """Answers, passages, sources, metadata and comments are written by whoever wants to."""
    asked = exchange(
        1,
        question=payload,
        answer=payload,
        prompt=payload,
        author=payload,
        tags=(payload,),
        metadata={payload: payload, "trace_url": payload},
    )
    document = Document.model_validate(
        {
            "exchange_id": asked.id,
            "question": payload,
            "answer": payload,
            "prompt": payload,
            "author": payload,
            "tags": [payload],
            "metadata": {payload: payload},
            "trace_url": payload,
            "passages": [{"text": payload, "source": payload}],
            "rule": payload,
            "why": payload,
            "confidence_why": payload,
            "profile": payload,
            "failure": {"stage": "scoring", "type": payload, "message": payload},
            "contributions": [{"signal": payload, "weight": 1, "text": payload}],
            "earlier": [{"answer": payload, "author": payload, "rule": payload, "why": payload}],
        }
    )
    review_id = memory_queue.submit_document(document)
    memory_queue.comment(review_id, payload, payload)
    memory_queue.claim_item(review_id, "ann")
    pages = [ann.get("/"), ann.get(f"/items/{review_id}"), ann.get(f"/?q={payload}"), ann.get(f"/items/{payload}")]
    ann.get(f"/items/{review_id}")
    pages.append(ann.submit(f"/items/{review_id}/edit", text=payload))
    pages.append(ann.get(f"/items/{review_id}"))
    pages.append(ann.get(f"/?done={review_id}"))
    for page in pages:
        seen = acts_on(page)
        assert seen.scripts == ["/static/review.js"]
        assert seen.handlers == []
        assert all(link.startswith(("/", "#")) for link in seen.links), seen.links
        assert "49" not in re.sub(r'value="[^"]*"|[0-9a-f]{16}|\d\d:\d\d:\d\d', "", page)


def test_direction_overrides_and_invisible_characters_are_shown(ann, memory_queue):
    """A reviewer must see what is there, not what it pretends to be."""
    review_id = submit(memory_queue, answer="approve \u202eevil\u202c \u200b\ufeff now")
    page = ann.get(f"/items/{review_id}")
    for name in ("U+202E", "U+202C", "U+200B", "U+FEFF"):
        assert name in page
    assert 'dir="auto"' in page


def test_a_trace_link_leads_only_to_the_web(ann, memory_queue):
    """Metadata may hold any address."""
    good = exchange(1, metadata={"trace_url": "https://trace.example/1"})
    page = ann.get(f"/items/{memory_queue.submit(good, doubtful(good))}")
    assert 'href="https://trace.example/1" rel="noopener noreferrer"' in page
    bad = exchange(2, metadata={"trace_url": "data:text/html,x"})
    assert "data:text/html" not in acts_on(ann.get(f"/items/{memory_queue.submit(bad, doubtful(bad))}")).links


def test_every_answer_has_strict_headers(ann, visit):
    """Even if a text slipped through, the browser would run nothing of it."""
    for response in (
        ann.client.get("/"),
        ann.client.get("/nothing"),
        ann.client.get("/static/review.css"),
        visit().client.get("/login"),
        visit().client.get("/api/v1/items"),
    ):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "server" not in response.headers


# --- forged and replayed forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("csrf", [None, "", "0" * 64, "é"])
def test_a_form_without_the_right_token_changes_nothing(ann, memory_queue, csrf):
    """Another site can make the browser send a form, but can't know the token."""
    review_id = submit(memory_queue)
    for path in ("approve", "edit", "reject", "claim", "comment", "assign", "erase", "undo", "skip", "release"):
        fields = {"text": "x"} | ({} if csrf is None else {"csrf": csrf})
        ann.post(f"/items/{review_id}/{path}", **fields)
        assert ann.status == 403, path
    for path in ("/next", "/bulk", "/logout"):
        ann.post(path, ids=review_id, action="approve")
        assert ann.status == 403, path
    assert len(memory_queue.audit(review_id)) == 1
    assert ann.client.get("/count").status_code == 200, "still logged in"


def test_another_reviewers_token_is_no_good(ann, visit, memory_queue):
    """An insider can't lend a token either."""
    review_id = submit(memory_queue)
    bob = visit()
    bob.log_in("bob")
    bob.get("/")
    token = bob.hidden("/logout")["csrf"]
    ann.post(f"/items/{review_id}/approve", csrf=token)
    assert ann.status == 403
    assert memory_queue.item(review_id).state is State.PENDING


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_from_another_site_is_refused_even_with_the_token(ann, memory_queue, headers):
    """A leaked token alone is not enough."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    fields = ann.hidden(f"/items/{review_id}/approve")
    response = ann.client.post(f"/items/{review_id}/approve", data=fields, headers=headers)
    assert response.status_code == 403
    assert memory_queue.item(review_id).state is State.PENDING


def test_nothing_is_changed_by_following_a_link(ann, memory_queue):
    """A link in a mail must not approve."""
    review_id = submit(memory_queue)
    for path in ("approve", "reject", "claim", "erase"):
        ann.get(f"/items/{review_id}/{path}")
        assert ann.status == 405
    assert memory_queue.item(review_id).state is State.PENDING


def test_a_form_of_an_ended_login_changes_nothing_and_loses_no_text(ann, memory_queue):
    """The page says what to do, and gives back what was typed."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    fields = ann.hidden(f"/items/{review_id}/edit")
    ann.submit("/logout")
    ann.post(f"/items/{review_id}/edit", **fields, text="my long text")
    assert ann.status == 401
    assert "my long text" in ann.page
    assert memory_queue.item(review_id).state is State.PENDING


# --- logins -----------------------------------------------------------------------------------------------------------


def test_the_session_changes_at_login_and_ends_on_the_server(visit, desk):
    """A token that an attacker planted, or kept, is worth nothing."""
    browser = visit()
    browser.get("/login")
    fields = browser.hidden("/login") | {"name": "ann", "password": PASSWORD}
    cookies = f"semgrad-session=planted; semgrad-login={browser.client.cookies['semgrad-login']}"
    response = browser.client.post("/login", data=fields, headers={"Cookie": cookies}, follow_redirects=False)
    given = response.cookies["semgrad-session"]
    assert given != "planted"
    assert desk.sessions.find("planted") is None
    assert desk.sessions.find(given) is not None
    browser.get("/")
    browser.submit("/logout")
    assert desk.sessions.find(given) is None
    response = browser.client.get("/", headers={"Cookie": f"semgrad-session={given}"}, follow_redirects=False)
    assert response.status_code == 303


def test_a_login_form_from_elsewhere_is_refused(visit):
    """Nobody is logged in as somebody else without noticing."""
    browser = visit()
    browser.post("/login", name="ann", password=PASSWORD)
    assert browser.status == 403
    browser.get("/login")
    browser.post("/login", name="ann", password=PASSWORD, csrf="0" * 64)
    assert browser.status == 403
    assert "semgrad-session" not in browser.client.cookies


@pytest.mark.parametrize(("idle_s", "steps"), [(IDLE_S + 1, 1), (IDLE_S / 2, int(LONGEST_S / (IDLE_S / 2)) + 1)])
def test_a_login_ends_by_idleness_and_by_age(ann, clock, idle_s, steps):
    """A laptop left open, and a stolen cookie, stop working."""
    for _ in range(steps):
        assert ann.client.get("/count").status_code == 200
        clock.advance(idle_s)
    ann.get("/")
    assert "Log in to review" in ann.page


def test_a_changed_account_is_logged_out_everywhere(ann, desk):
    """A new password, a closed account, another role: at once."""
    for change in (
        lambda: desk.accounts.set_password("ann", PASSWORD + "2"),
        lambda: desk.accounts.set_active("ann", active=False),
    ):
        change()
        assert ann.client.get("/count", follow_redirects=False).status_code == 303
    ann.log_in("ann", PASSWORD + "2")
    assert ann.status == 401, "the account is closed"


def test_guessing_passwords_is_slowed_down_by_address(visit):
    """Trying one password on many accounts is noticed too."""
    browser = visit()
    for n in range(6):
        browser.log_in(f"user{n}", "wrong password")
        assert browser.status == 401
    browser.log_in("ann")
    assert browser.status == 429


def test_an_unknown_account_looks_like_a_wrong_password(visit, desk):
    """Names of accounts can't be found out."""
    seen = []
    for name in ("ann", "nobody"):
        browser = visit()
        browser.log_in(name, "wrong password")
        seen.append((browser.status, re.sub('value="[^"]*"', "", browser.page)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.test",
        "//evil.test",
        "/\\evil.test",
        "javascript:alert(1)",
        "\\\\evil",
        "/a\r\nSet-Cookie: x=1",
        "",
    ],
)
def test_logging_in_never_leads_to_another_site(visit, target):
    """A link to the login page can't carry a reviewer off."""
    browser = visit()
    browser.client.get("/login", params={"next": target})
    browser.page = browser.client.get("/login", params={"next": target}).text
    fields = browser.hidden("/login")
    assert fields["next"] == "/"
    response = browser.client.post(
        "/login", data={**fields, "next": target, "name": "ann", "password": PASSWORD}, follow_redirects=False
    )
    assert response.headers["location"] == "/"


def test_cookies_are_out_of_reach(memory_queue, ann):
    """No script reads them; by https they go to this host only, encrypted only."""
    app = create_app(memory_queue, WebSettings(is_encrypted=True), HASHER)
    with TestClient(app, base_url="https://review.test") as client:
        browser = Browser(client)
        browser.get("/login")
        fields = browser.hidden("/login") | {"name": "ann", "password": PASSWORD}
        response = client.post("/login", data=fields, follow_redirects=False)
        cookie = next(value for value in response.headers.get_list("set-cookie") if "-session=" in value)
        assert cookie.startswith("__Host-semgrad-session=")
        for flag in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
            assert flag in cookie
        assert "Domain" not in cookie
        assert "max-age" in response.headers["strict-transport-security"]


def test_secrets_are_nowhere_in_the_database_or_the_log(desk, ann, caplog, memory_queue):
    """A copy of the database logs nobody in."""
    caplog.set_level(0)
    _, secret = desk.tokens.issue("bot", desk.accounts.get("ann"), [Scope.READ])
    ann.client.get("/api/v1/items", headers={"Authorization": f"Bearer {secret}"})
    ann.client.get("/api/v1/items", headers={"Authorization": "Bearer wrong"})
    ann.log_in("ann", "wrong password")
    cookie = ann.client.cookies["semgrad-session"]
    with memory_queue.database.engine.connect() as conn:
        stored = str([conn.execute(table.select()).all() for table in metadata.sorted_tables])
    for text in (secret, cookie, PASSWORD):
        assert text not in stored
        assert text not in caplog.text
    assert "argon2id" in stored


# --- the API ----------------------------------------------------------------------------------------------------------


def test_the_api_takes_no_cookies(ann):
    """So no other site can use a reviewer's login there."""
    assert ann.client.get("/api/v1/items").status_code == 401


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Bearer sgr_" + "A" * 43, "bearer \xff"]
)
def test_a_forged_token_is_refused(visit, shown):
    """Guessing 256 bits is hopeless; everything else is no token."""
    response = visit().client.get("/api/v1/items", headers={"Authorization": shown.encode("latin-1")})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_an_expired_revoked_or_orphaned_token_is_refused(visit, desk, clock):
    """A token ends by time, by hand, and with its account."""
    client = visit().client

    def status(secret):
        return client.get("/api/v1/items", headers={"Authorization": f"Bearer {secret}"}).status_code

    ann = desk.accounts.get("ann")
    token, secret = desk.tokens.issue("a", ann, [Scope.READ], lifetime_s=60)
    assert status(secret) == 200
    clock.advance(60)
    assert status(secret) == 401
    token, secret = desk.tokens.issue("b", ann, [Scope.READ])
    desk.tokens.revoke(token.id)
    assert status(secret) == 401
    _, secret = desk.tokens.issue("c", ann, [Scope.READ])
    desk.accounts.set_active("ann", active=False)
    assert status(secret) == 401


def test_a_token_allows_only_its_scopes(program, memory_queue):
    """The guard's token can't approve, and the dashboard's can't submit."""
    review_id = submit(memory_queue)
    body = {"document": {"exchange_id": "x"}}
    calls = {
        ("GET", "/api/v1/items"): {Scope.READ},
        ("GET", f"/api/v1/items/{review_id}"): {Scope.READ},
        ("GET", f"/api/v1/items/{review_id}/audit"): {Scope.READ},
        ("GET", "/api/v1/stats"): {Scope.READ},
        ("GET", f"/api/v1/items/{review_id}/ruling"): {Scope.READ, Scope.SUBMIT},
        ("POST", "/api/v1/items"): {Scope.SUBMIT},
        ("POST", "/api/v1/items/claim-next"): {Scope.JUDGE},
        ("POST", f"/api/v1/items/{review_id}/approve"): {Scope.JUDGE},
        ("POST", f"/api/v1/items/{review_id}/undo"): {Scope.JUDGE},
    }
    for scope in Scope:
        client = program(scope)
        for (method, path), allowed in calls.items():
            status = client.request(
                method, path, json=body if path == "/api/v1/items" and method == "POST" else None
            ).status_code
            assert (status != 403) == (scope in allowed), (scope, method, path, status)


def test_every_reading_by_a_program_is_on_record(program, memory_queue):
    """Who looked at an answer is known for programs too."""
    review_id = submit(memory_queue)
    program(Scope.READ).get(f"/api/v1/items/{review_id}")
    assert memory_queue.audit(review_id)[-1].by == "ann/bot"


# --- requests that are not what they seem -----------------------------------------------------------------------------


def test_an_unknown_host_name_is_refused(memory_queue):
    """A foreign name that resolves to this machine gets nothing."""
    app = create_app(memory_queue, WebSettings(hosts=frozenset({"localhost", "[::1]"})), HASHER)
    for host, status in (("localhost:80", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.test", 421), ("", 421)):
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/login", headers={"Host": host}).status_code == status, host


def test_oversized_bodies_are_refused_and_cost_nothing(program, ann, memory_queue, desk):
    """A form of a gigabyte does not fill the memory, announced or not."""
    desk.settings = replace(desk.settings, largest_form=1000, largest_submission=5000)
    app = create_app(memory_queue, desk.settings, HASHER)
    with TestClient(app, base_url="http://review.test", headers=program(Scope.SUBMIT).headers) as client:
        announced = client.post("/api/v1/items", content=b"x" * 6000)
        streamed = client.post("/api/v1/items", content=(b"x" * 1000 for _ in range(6)))
        form = client.post("/login", data={"name": "x" * 2000})
    assert (announced.status_code, streamed.status_code, form.status_code) == (413, 413, 413)


def test_a_ten_megabyte_answer_is_kept_whole(program, memory_queue):
    """Large is not hostile."""
    answer = "gold " * 2_000_000
    response = program(Scope.SUBMIT).post("/api/v1/items", json={"document": {"exchange_id": "x1", "answer": answer}})
    assert response.status_code == 201
    assert memory_queue.get(response.json()["id"]).document.answer == answer


def test_roles_are_checked_on_the_server(ann, visit, memory_queue, desk):
    """Hiding a button is no protection."""
    review_id = submit(memory_queue)
    memory_queue.claim_item(review_id, "bob")
    ann.get("/")
    token = ann.hidden("/logout")["csrf"]
    for path in ("release", "erase"):
        ann.post(f"/items/{review_id}/{path}", csrf=token)
        assert ann.status in {403, 409}
    memory_queue.approve(review_id, "bob")
    ann.post(f"/items/{review_id}/undo", csrf=token)
    assert ann.status == 409
    desk.accounts.set_role("ann", Role.ADMIN)
    ann.log_in("ann")
    ann.get(f"/items/{review_id}")
    ann.post(f"/items/{review_id}/undo", csrf=ann.hidden("/logout")["csrf"])
    assert memory_queue.item(review_id).holder == "ann"


# --- whose item it is -------------------------------------------------------------------------------------------------


def test_only_the_assignee_or_an_administrator_judges(ann, memory_queue, program):
    """Neither on the page, nor by a program, nor by assigning it to oneself."""
    review_id = submit(memory_queue)
    memory_queue.assign(review_id, "root", "bob")
    page = ann.get(f"/items/{review_id}")
    assert "assigned to bob" in page
    assert f"/items/{review_id}/approve" not in page
    token = ann.hidden("/logout")["csrf"]
    tried = {"approve": {}, "edit": {"text": "x"}, "reject": {}, "claim": {}, "assign": {"to": "ann"}}
    for action, fields in tried.items():
        ann.post(f"/items/{review_id}/{action}", csrf=token, **fields)
        assert ann.status == 409, action
    ann.post("/next", csrf=token)
    assert memory_queue.item(review_id).state is State.PENDING
    client = program(Scope.JUDGE, user="ann")
    for action, body in (("approve", {}), ("claim", None), ("assign", {"assignee": "ann"})):
        answer = client.post(f"/api/v1/items/{review_id}/{action}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (409, "AssignedError")
    assert client.post("/api/v1/items/claim-next").status_code == 204
    assert program(Scope.JUDGE, user="bob").post("/api/v1/items/claim-next").json()["id"] == review_id
    memory_queue.release(review_id, "bob/bot")
    assert program(Scope.JUDGE, user="root").post(f"/api/v1/items/{review_id}/approve").status_code == 200


@pytest.mark.parametrize("name", ["carol", "closed", "ann/bot", ""])
def test_an_item_is_assigned_to_open_accounts_only(memory_queue, desk, program, name):
    """Nobody would ever see it otherwise."""
    desk.accounts.add("closed", PASSWORD)
    desk.accounts.set_active("closed", active=False)
    review_id = submit(memory_queue)
    answer = program(Scope.JUDGE).post(f"/api/v1/items/{review_id}/assign", json={"assignee": name})
    assert (answer.status_code, answer.json()["error"]) == (400, "AccountError")
    assert memory_queue.item(review_id).assignee is None


def test_the_description_of_the_api_is_not_for_strangers(ann, visit, program):
    """What it offers is nobody's business who may not use it."""
    for client in (visit().client, ann.client):
        assert client.get("/api/openapi.json").status_code == 401
    described = program(Scope.READ).get("/api/openapi.json").json()
    assert "/api/v1/items" in described["paths"]


def test_a_caller_that_waits_for_an_erased_answer_reads_why(memory_queue, program):
    """An empty text would be given to a user as the approved answer."""
    client = program(Scope.SUBMIT)
    for n, end in enumerate(("approve", "edit", "reject", None)):
        body = {"document": {"exchange_id": f"x{n}", "answer": "So."}}
        review_id = client.post("/api/v1/items", json=body).json()["id"]
        if end is not None:
            getattr(memory_queue, end)(review_id, "ann", *(["x"] if end != "approve" else []))
        memory_queue.erase([review_id], "root")
        taken = client.post(f"/api/v1/items/{review_id}/ruling").json()["ruling"]
        assert (taken["verdict"], taken["text"]) == ("expired", ERASED)
