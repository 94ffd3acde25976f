"""Receivers of webhooks that are slow, endless or not what they seem, on real connections."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from contextlib import closing, suppress

import pytest

from semgrad_guard.errors import ReviewError
from semgrad_guard.review import QueueSettings, State, open_queue
from semgrad_guard.review.addresses import is_refused
from semgrad_guard.review.site import serving
from semgrad_guard.review.webhooks import WebhookSender, add_webhook
from tests.review_queues import submit


class Server:
    """Accepts connections and treats each as it is told to."""

    def __init__(self, treat) -> None:
        self.is_over, self.n = threading.Event(), 0
        self._treat = treat
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self.is_over.set()
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.n += 1
                threading.Thread(target=self._one, args=[connection], daemon=True).start()

    def _one(self, connection) -> None:
        with suppress(OSError), connection:
            connection.recv(65536)
            self._treat(connection, self.is_over)


def trickle(connection, is_over) -> None:
    """A byte of the head at a time, for ever."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
        connection.sendall(bytes([byte]))
        if is_over.wait(0.05):
            return


def ask_to_go_on(connection, is_over) -> None:
    """One interim answer after the other, and never the real one."""
    while not is_over.wait(0.01):
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")


def say_nothing(connection, is_over) -> None:
    is_over.wait(60)


def pour(connection, is_over) -> None:
    """An answer of 300 megabytes."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 314572800\r\n\r\n")
    block = b"x" * 1_048_576
    for _ in range(300):
        if is_over.is_set():
            return
        connection.sendall(block)


def take(connection, _is_over) -> None:
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize("treat", [trickle, ask_to_go_on, say_nothing])
def test_a_delivery_has_one_time_limit_for_all(memory_queue, treat):
    """However busy the receiver seems, and whatever its single bytes arrive in time for."""
    with closing(Server(treat)) as server:
        add_webhook(memory_queue, "slow", server.url, ["submit"])
        submit(memory_queue)
        began = time.monotonic()
        assert WebhookSender(memory_queue, limit_s=0.5).send_due() == 0
        assert 0.4 < time.monotonic() - began < 2.5
        assert server.n == 1


def test_the_body_of_an_answer_is_never_read(memory_queue):
    """Its status is all that counts; its length costs neither memory nor time."""
    with closing(Server(pour)) as server:
        add_webhook(memory_queue, "huge", server.url, ["submit"])
        submit(memory_queue)
        tracemalloc.start()
        try:
            assert WebhookSender(memory_queue).send_due() == 1
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()


def test_a_slow_receiver_holds_up_neither_deadlines_nor_other_receivers(tmp_path):
    """All of them are served while it still sends its first bytes."""
    settings = QueueSettings(lease_s=0.2, deadline_s=0.5)
    place = f"sqlite:///{tmp_path / 'review.db'}"
    with (
        closing(Server(trickle)) as slow,
        closing(Server(take)) as quick,
        closing(open_queue(place, settings=settings)) as queue,
    ):
        add_webhook(queue, "a-slow", slow.url, ["submit"])
        add_webhook(queue, "b-quick", quick.url, ["submit"])
        with serving.upkeep(queue, every_s=0.05):
            ids = [submit(queue, n) for n in range(4)]
            end = time.monotonic() + 8
            while time.monotonic() < end and (quick.n < 4 or queue.item(ids[-1]).state is not State.EXPIRED):
                time.sleep(0.05)
            assert quick.n == 4
            assert slow.n == 1, "it has one delivery at a time"
            assert all(queue.item(each).state is State.EXPIRED for each in ids)
            slow.close()


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "[2002:a9fe:a9fe::]",
        "[64:ff9b::a9fe:a9fe]",
        "100.100.100.200",
        "0.0.0.0",  # noqa: S104 - nothing listens there
        "224.0.0.1",
        "metadata.google.internal",
        "METADATA.google.internal.",
    ],
)
def test_services_of_the_network_itself_are_refused(memory_queue, host):
    """A webhook to a metadata service would be a way to its secrets, however the address is written."""
    with pytest.raises(ReviewError, match="--allow-host"):
        add_webhook(memory_queue, "x", f"https://{host}/latest")
    name = host.strip("[]").lower()
    assert add_webhook(memory_queue, "x", f"https://{host}/latest", allowed_host=name).allowed_host == name


def test_ordinary_addresses_are_not(memory_queue):
    """Neither this machine nor a private network is refused."""
    for host in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "[::1]", "hooks.example.com"):
        add_webhook(memory_queue, "x", f"https://{host}/hook")
    assert not is_refused("93.184.216.34")


def test_a_name_that_stands_for_such_an_address_is_refused_when_sending(memory_queue, monkeypatch):
    """A name's owner may change what it stands for at any time."""
    looked_up = []

    def lie(host, *_: object, **__: object):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))]

    add_webhook(memory_queue, "x", "https://hooks.example.com/h", ["submit"])
    submit(memory_queue)
    monkeypatch.setattr(socket, "getaddrinfo", lie)
    assert WebhookSender(memory_queue, limit_s=2).send_due() == 0
    assert looked_up
    with memory_queue.database.engine.connect() as conn:
        why = conn.exec_driver_sql("SELECT error FROM semgrad_deliveries").scalar_one()
    assert "may not reach hooks.example.com" in why
