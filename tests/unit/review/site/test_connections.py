"""Connections that say little or nothing, and pages of items with very much in them."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import httpx
import pytest
import uvicorn

from semgrad_guard.flow import Message, Passage
from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Scope
from semgrad_guard.review.site import connections
from semgrad_guard.review.site.desk import WebSettings
from semgrad_guard.review.site.serving import Binding, server_config
from tests.review_queues import submit
from tests.review_site import site_of


@contextmanager
def served(app):
    """Serve an application as `review serve` does; give its port."""
    server = uvicorn.Server(server_config(app, Binding(port=0)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(name="site")
def _site():
    with closing(open_queue("sqlite://")) as queue:
        submit(queue)
        yield site_of(queue, WebSettings(body_s=0.5))


def is_closed(connection) -> bool:
    """True when the other side has closed the connection."""
    try:
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"POST /login HTTP/1.1\r\n"])
def test_a_request_must_say_what_it_wants_in_time(site, monkeypatch, said):
    """However slowly its head trickles in."""
    monkeypatch.setattr(connections, "HEAD_S", 0.4)
    with served(site) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(said)
        began = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - began < 3


def test_a_second_request_on_a_connection_has_no_more_time(site, monkeypatch):
    """A first honest request is no licence."""
    monkeypatch.setattr(connections, "HEAD_S", 0.6)
    with served(site) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /login HTTP/1.1\r\nX-A: ")
        connection.settimeout(4)
        rest = b"x"
        while rest:
            rest = connection.recv(65536)


def test_a_body_must_arrive_in_time(site):
    """A form that is sent a byte a minute is refused, with the reason."""
    with served(site) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        head = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        connection.sendall(head + b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname=")
        answer = b""
        while not is_closed_or(connection, answer := answer + connection.recv(65536)):
            pass
        assert answer.startswith(b"HTTP/1.1 408")


def is_closed_or(_connection, answer) -> bool:
    return b"\r\n\r\n" in answer


def test_half_open_connections_do_not_close_the_site(site, monkeypatch):
    """More of them than there are places: the oldest give way, and everybody else is served at once."""
    monkeypatch.setattr(connections, "most_connections", lambda: 30)
    with served(site) as port, ExitStack() as stack:
        for _ in range(150):
            half_open = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            half_open.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        for _ in range(5):
            began = time.monotonic()
            assert httpx.get(f"http://127.0.0.1:{port}/login", timeout=5).status_code == 200
            assert time.monotonic() - began < 2


def test_a_caller_that_waits_is_not_cut_off(site, monkeypatch):
    """It has said what it wants."""
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    desk = site.state.desk
    _, secret = desk.tokens.issue("p", desk.accounts.get("ann"), [Scope.READ])
    (item,) = desk.queue.list().items
    with served(site) as port, ExitStack() as stack:
        done = []

        def wait() -> None:
            headers = {"Authorization": f"Bearer {secret}"}
            url = f"http://127.0.0.1:{port}/api/v1/items/{item.id}/ruling?wait_s=2"
            done.append(httpx.get(url, headers=headers, timeout=10).json())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        for _ in range(10):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        thread.join()
    assert done == [{"ruling": None}]


def test_there_are_fewer_connections_than_descriptors():
    """Those that are left are for the database."""
    assert connections.most_connections() <= max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


# --- very much on one page --------------------------------------------------------------------------------------------


def test_an_item_with_very_much_in_it_is_shown_in_parts(ann, memory_queue):
    """Four hundred long passages cost no more than a page can show; all of them can be reached."""
    passages = tuple(Passage(f"passage {n} " + "word " * 2800) for n in range(1, 401))
    prompt = tuple(Message("user", "word " * 10_000) for _ in range(100))
    review_id = submit(memory_queue, passages=passages, prompt=prompt, answer="\u200b" * 60_000)
    began, seen, path = time.monotonic(), [], f"/items/{review_id}"
    page = ann.get(path)
    assert time.monotonic() - began < 3
    assert len(page) < 1_500_000
    assert re.search(r"Only the first \d+ of 100 messages are shown", page)
    for _ in range(400):
        seen += [n for n in range(1, 401) if f"passage {n} word" in page]
        if 'rel="next"' not in page:
            break
        path = page.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0]
        page = ann.get(path)
        assert len(page) < 1_500_000
    assert seen == list(range(1, 401))
    for odd in (0, -1, 10**9, "x", 401, 999_999):
        ann.get(f"/items/{review_id}?passage={odd}")
        assert ann.status in {200, 422}
