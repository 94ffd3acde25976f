"""A stand-in for the LangSmith server on this machine: it stores what clients send and shows it.

It takes what the `langsmith` client posts (runs, alone or in compressed multipart batches, and feedback), so traces can
be looked at without an account. It can also be told to fail or to hang, to see that answers are not affected.
"""

from __future__ import annotations

import json
import threading
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import NAMESPACE_DNS, uuid5

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self


class LoopbackLangSmith:
    """Server on a free port of 127.0.0.1; use it in a `with` block and give its `url` to the client."""

    def __init__(self) -> None:
        """Store nothing yet."""
        self.runs: dict[str, dict[str, Any]] = {}
        """Run id -> all fields sent for it, later ones over earlier ones."""
        self.feedback: dict[str, dict[str, Any]] = {}
        """Feedback id -> its fields."""
        self.requests: list[tuple[str, str, bytes]] = []
        """Method, path and (uncompressed) body of every request."""
        self.status = 200
        """What it answers with; anything but 200 stores nothing."""
        self.hanging = False
        """True lets every request wait until the server closes or `release` is called."""
        self._released = threading.Event()
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start serving."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """Let hanging requests go on."""
        self.hanging = False
        self._released.set()

    def wait_for(self, what: Any, timeout_s: float = 20.0) -> bool:
        """Wait until `what()` is true; it is asked again after every request."""
        with self._changed:
            return bool(self._changed.wait_for(what, timeout_s))

    def session_id(self, name: str) -> str:
        """Return the id of a project."""
        return str(uuid5(NAMESPACE_DNS, name))

    def answer(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, object]:
        """Store one request; return status and body of the response."""
        if self.hanging:
            self._released.wait()
        with self._changed:
            self.requests.append((method, path, body))
            if self.status == 200:
                self._store(method, path, body, content_type)
            self._changed.notify_all()
        return self.status, self._reply(path) if self.status == 200 else {"error": "told to fail"}

    def _reply(self, path: str) -> object:
        parts = urlsplit(path)
        if parts.path == "/info":
            return {"version": "0.13.0", "instance_flags": {"zstd_compression_enabled": True}}
        if parts.path == "/sessions":
            name = parse_qs(parts.query)["name"][0]
            known = {run.get("session_name") for run in self.runs.values()}
            return [_session(self.session_id(name), name)] if name in known else []
        return {}

    def _store(self, method: str, path: str, body: bytes, content_type: str) -> None:
        if method == "GET":
            return
        for kind, key, fields in _sent(method, path, body, content_type):
            (self.feedback if kind == "feedback" else self.runs).setdefault(key, {}).update(fields)


def _sent(method: str, path: str, body: bytes, content_type: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield kind, id and fields of everything in one request."""
    if path == "/runs/multipart":
        whole = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body, policy=policy.HTTP)
        for part in whole.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            kind, key, *field = name.split(".")
            said = json.loads(part.get_payload(decode=True) or b"{}")
            yield kind, key, {field[0]: said} if field else said
    elif path.startswith("/runs/"):
        yield "patch", path.rsplit("/", 1)[1], json.loads(body)
    elif path in {"/runs", "/feedback"}:
        said = json.loads(body)
        yield path.strip("/"), said["id"], said
    else:
        msg = f"{method} {path} is not served here"
        raise NotImplementedError(msg)


def _session(key: str, name: str) -> dict[str, Any]:
    return {
        "id": key,
        "name": name,
        "tenant_id": key,
        "start_time": "2026-01-01T00:00:00Z",
        "reference_dataset_id": None,
    }


def _handler_of(owner: LoopbackLangSmith) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            status, said = owner.answer(self.command, self.path, body, self.headers.get("Content-Type", ""))
            reply = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                raw = b"".join(self._chunks())
            else:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "zstd":
                return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
            return raw

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

        do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - names that `http.server` looks for

    return Handler
