"""An OTLP collector on this machine: it decodes and keeps what exporters send."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self


class LoopbackCollector:
    """Collector on a free port of 127.0.0.1, for a `with` block."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.spans: dict[str, list[Any]] = {}
        """Name -> spans."""
        self.logs: list[Any] = []
        self.metrics: dict[str, Any] = {}
        """Name -> metric as last sent."""
        self.resources: list[dict[str, Any]] = []
        self.scopes: set[str] = set()
        self.bodies: list[bytes] = []
        self.hanging = threading.Event()
        self.hanging.set()
        """Cleared, every request waits until it is set."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start serving."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.hanging.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, body: bytes) -> None:
        """Keep one export."""
        self.hanging.wait()
        self.bodies.append(body)
        {"/v1/traces": self._take_traces, "/v1/logs": self._take_logs, "/v1/metrics": self._take_metrics}[path](body)

    def _take_traces(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self._note(resource)
            for scope in resource.scope_spans:
                self.scopes.add(scope.scope.name)
                for span in scope.spans:
                    self.spans.setdefault(span.name, []).append(span)

    def _take_logs(self, body: bytes) -> None:
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
            self._note(resource)
            self.logs += [record for scope in resource.scope_logs for record in scope.log_records]

    def _take_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            self.metrics |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def _note(self, resource: Any) -> None:
        self.resources.append(attributes(resource.resource.attributes))


def attributes(said: Iterable[Any]) -> dict[str, Any]:
    """Return attributes as a mapping."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in said}


def _handler_of(owner: LoopbackCollector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            owner.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler
