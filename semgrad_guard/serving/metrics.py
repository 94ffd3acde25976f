"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TENTHS = tuple(n / 10 for n in range(1, 11))


class Metrics:
    """The counters of one server; each has its own registry, so that several live in one process."""

    def __init__(self) -> None:
        """Make the counters."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "semgrad_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self._request_s = Histogram(
            "semgrad_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self._in_flight = Gauge("semgrad_requests_in_flight", "Requests being worked on.", registry=self.registry)
        self._scoring_s = Histogram(
            "semgrad_scoring_seconds", "Time of one scored batch.", buckets=_SECONDS, registry=self.registry
        )
        self._batch = Histogram(
            "semgrad_batch_size", "Exchanges scored together.", buckets=_SIZES, registry=self.registry
        )
        self._confidence = Histogram(
            "semgrad_confidence", "Calibrated confidence of answers.", buckets=_TENTHS, registry=self.registry
        )
        self._uncalibrated = Counter("semgrad_uncalibrated", "Answers without a confidence.", registry=self.registry)
        self._decisions = Counter("semgrad_decisions", "Decisions by action.", ["action"], registry=self.registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Report how many exchanges wait to be scored, asked whenever somebody looks."""
        gauge = Gauge("semgrad_queue_length", "Exchanges that wait to be scored.", registry=self.registry)
        gauge.set_function(length)

    def began(self) -> None:
        """Count a request that begins."""
        self._in_flight.inc()

    def ended(self, path: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._in_flight.dec()
        self._requests.labels(path, str(status)).inc()
        self._request_s.labels(path).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count a scored batch."""
        self._batch.observe(size)
        self._scoring_s.observe(seconds)

    def judged(self, confidence: float | None, action: str | None) -> None:
        """Count an answer that was judged, and what became of it."""
        if confidence is None:
            self._uncalibrated.inc()
        else:
            self._confidence.observe(confidence)
        if action is not None:
            self._decisions.labels(action).inc()

    def response(self) -> Response:
        """Return everything in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
