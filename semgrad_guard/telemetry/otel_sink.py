"""Record -> OpenTelemetry: spans, `gen_ai.evaluation.result` log events and metrics."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semgrad_guard.extras import require
from semgrad_guard.flow import Action
from semgrad_guard.telemetry.fields import number
from semgrad_guard.telemetry.otel_attributes import (
    EVALUATION_EVENT,
    attempt_attributes,
    decision_labels,
    evaluation_attributes,
    record_attributes,
    scoring_labels,
)
from semgrad_guard.telemetry.otel_providers import EXTRA, Providers, find_providers, need_packages
from semgrad_guard.telemetry.runs import RunRef
from semgrad_guard.telemetry.timeline import Stretch, nanoseconds, started_at, timeline

if TYPE_CHECKING:
    from opentelemetry._logs import Logger
    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram, Meter
    from opentelemetry.trace import Span, Tracer

    from semgrad_guard.flow import Attempt, Failure, Record

_log = logging.getLogger("semgrad_guard")

SCOPE = "semgrad_guard"
"""Instrumentation scope of everything that is sent."""

CLOSE_S = 5.0
"""How long `close` waits for what is under way."""

CONFIDENCE_BUCKETS = tuple(n / 20 for n in range(1, 20))
SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class _Instruments:
    """What is written to."""

    tracer: Tracer
    logger: Logger
    decisions: Counter
    outcomes: Counter
    confidence: Histogram
    scoring: Histogram

    @classmethod
    def of(cls, providers: Providers) -> _Instruments:
        meter: Meter = providers.meter.get_meter(SCOPE)
        return cls(
            providers.tracer.get_tracer(SCOPE),
            providers.logger.get_logger(SCOPE),
            meter.create_counter("semgrad.decisions", "{decision}", "Decisions of the policy, one an attempt."),
            meter.create_counter("semgrad.outcomes", "{outcome}", "What callers got, one a question."),
            meter.create_histogram(
                "semgrad.confidence",
                "1",
                "Calibrated probability that an answer is correct.",
                explicit_bucket_boundaries_advisory=CONFIDENCE_BUCKETS,
            ),
            meter.create_histogram(
                "semgrad.scoring.duration",
                "s",
                "Time that scoring one answer took.",
                explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
            ),
        )


class OtelSink:
    """Sends each record as spans, evaluation events and metrics.

    A question is a span `semgrad.guard` under the span that is under way where `emit` is called; each attempt has a
    `semgrad.judge` span and, unless accepted, a `semgrad.route` span below it. An evaluation event belongs to the span
    of the model call where the exchange says which that is (`traceparent`, see `semgrad_guard.telemetry.runs`),
    otherwise to the span of the question. Here all is only put into memory; OpenTelemetry's own threads send it.
    """

    def __init__(self, providers: Providers | None = None, *, log_text: bool = True) -> None:
        """Choose where to send.

        Args:
            providers: where signals go; `None` takes the application's, or own ones to the OTLP endpoint. They are
                looked up at the first record, so a guard may be made before OpenTelemetry is set up.
            log_text: whether questions, answers and explanations are sent.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        need_packages()
        self._log_text = log_text
        self._providers = providers
        self._instruments: _Instruments | None = None
        self._making = threading.Lock()

    def emit(self, record: Record) -> None:
        """Hand one record to OpenTelemetry."""
        try:
            self._emit(record, self._ready())
        except Exception:  # noqa: BLE001 - logging must not cost the caller the answer
            _log.warning("a record could not be handed to OpenTelemetry", exc_info=True)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send what is under way where the providers are our own, for at most `timeout_s` seconds."""
        if self._providers is not None:
            self._providers.shutdown(timeout_s)

    def _ready(self) -> _Instruments:
        with self._making:
            if self._instruments is None:
                self._providers = self._providers or find_providers()
                self._instruments = _Instruments.of(self._providers)
            return self._instruments

    def _emit(self, record: Record, to: _Instruments) -> None:
        span = to.tracer.start_span(
            "semgrad.guard",
            attributes=record_attributes(record, log_text=self._log_text),
            start_time=nanoseconds(started_at(record)),
        )
        inside = _trace().set_span_in_context(span)
        for stretch in timeline(record):
            _attempt_spans(to.tracer, stretch, inside)
        for attempt in record.attempts:
            self._event(to.logger, attempt, inside, record)
            _measure(to, attempt, inside)
        to.outcomes.add(1, {"semgrad.status": str(record.status)}, inside)
        span.end(nanoseconds(record.at))

    def _event(self, logger: Logger, attempt: Attempt, inside: Context, record: Record) -> None:
        logger.emit(
            timestamp=nanoseconds(attempt.judged_at or record.at),
            context=_context_of(attempt, inside),
            event_name=EVALUATION_EVENT,
            attributes=evaluation_attributes(attempt, log_text=self._log_text),
        )


def _trace() -> Any:
    return require("opentelemetry.trace", extra=EXTRA)


def _context_of(attempt: Attempt, otherwise: Context) -> Context:
    """Return the context of the span that wrote the answer, where it is known."""
    run = RunRef.of(attempt.exchange)
    if run is None or run.traceparent is None:
        return otherwise
    propagation = require("opentelemetry.trace.propagation.tracecontext", extra=EXTRA)
    found: Context = propagation.TraceContextTextMapPropagator().extract({"traceparent": run.traceparent})
    return found if _trace().get_current_span(found).get_span_context().is_valid else otherwise


def _attempt_spans(tracer: Tracer, stretch: Stretch, inside: Context) -> None:
    attempt = stretch.attempt
    start, judged, acted = map(nanoseconds, (stretch.judging_at, stretch.judged_at, stretch.acted_at))
    judge = tracer.start_span("semgrad.judge", inside, attributes=attempt_attributes(attempt), start_time=start)
    _fail(judge, attempt.decision.failure)
    judge.end(judged)
    if attempt.decision.action is not Action.ACCEPT:
        labels = decision_labels(attempt)
        route = tracer.start_span("semgrad.route", inside, attributes=labels, start_time=judged)
        _fail(route, attempt.failure)
        route.end(acted)


def _fail(span: Span, failure: Failure | None) -> None:
    if failure is not None:
        span.set_attribute("error.type", failure.type)
        span.set_status(_trace().StatusCode.ERROR)


def _measure(to: _Instruments, attempt: Attempt, inside: Context) -> None:
    labels = decision_labels(attempt)
    to.decisions.add(1, labels, inside)
    confidence = number(attempt.decision.confidence.value)
    if confidence is not None:
        to.confidence.record(confidence, labels, inside)
    score = attempt.decision.score
    if score is not None:
        to.scoring.record(score.seconds, scoring_labels(score), inside)
