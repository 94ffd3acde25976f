"""Records in OpenTelemetry: attributes, spans on a timeline, metrics, and the providers that they go to."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import in_log
from semgrad_guard.extras import require
from semgrad_guard.flow import Action
from semgrad_guard.wire import RunRef, deciding_error, number, signals_fields, summary_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry._logs import Logger, LoggerProvider
    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from semgrad_guard.flow import Attempt, Failure, Record, Score

EXTRA = "otel"
SERVICE_NAME = "semgrad-guard"
"""Default name of the service, unless the environment (`OTEL_SERVICE_NAME`) sets one."""

_SIGNALS = ("", "TRACES_", "LOGS_", "METRICS_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """A provider for each signal."""

    tracer: TracerProvider
    logger: LoggerProvider
    meter: MeterProvider
    own: tuple[Any, ...] = ()
    """The providers that were made here; they are shut down with the sink."""

    def shutdown(self, timeout_s: float) -> None:
        """Send pending signals and shut down the providers that were made here, within `timeout_s` seconds."""
        threads = [threading.Thread(target=p.shutdown, name="semgrad-otel-end", daemon=True) for p in self.own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout_s / len(threads))


def need_packages() -> None:
    """Import all needed packages in advance, because importing them would delay an answer.

    Raises:
        MissingExtraError: OpenTelemetry is not installed; the error names the extra.
    """
    for sdk in ("trace", "_logs", "metrics"):
        _sdk(sdk)
    for exporter in ("trace_exporter", "_log_exporter", "metric_exporter"):
        _exporter(exporter)


def find_providers() -> Providers:
    """Return the application's providers, or new ones.

    If the application has set up OpenTelemetry for any signal, its providers are used and signals that it did not set
    up are not sent. Otherwise, and whenever `OTEL_EXPORTER_OTLP_ENDPOINT` or the variable of a single signal is set,
    signals without a provider go to the OTLP endpoint over HTTP, configured by the standard variables.
    """
    trace, logs, metrics = (require(f"opentelemetry.{name}", extra=EXTRA) for name in ("trace", "_logs", "metrics"))
    present = (trace.get_tracer_provider(), logs.get_logger_provider(), metrics.get_meter_provider())
    if any(map(is_set_up, present)) and not _names_endpoint():
        tracer, logger, meter = present
        return Providers(tracer=tracer, logger=logger, meter=meter)
    make = (_own_tracer_provider, _own_logger_provider, _own_meter_provider)
    tracer, logger, meter = (_present_or(p, own) for p, own in zip(present, make, strict=True))
    own = tuple(p for p in (tracer, logger, meter) if p not in present)
    return Providers(tracer=tracer, logger=logger, meter=meter, own=own)


def is_set_up(provider: object) -> bool:
    """Return whether a global provider was set up; before that it is a placeholder."""
    return not type(provider).__name__.lstrip("_").startswith(("Proxy", "NoOp", "Default"))


def _present_or(provider: Any, make: Callable[[], Any]) -> Any:
    return provider if is_set_up(provider) else make()


def _names_endpoint() -> bool:
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in _SIGNALS)


def _sdk(name: str) -> Any:
    return require(f"opentelemetry.sdk.{name}", extra=EXTRA)


def _exporter(name: str) -> Any:
    return require(f"opentelemetry.exporter.otlp.proto.http.{name}", extra=EXTRA)


def _resource() -> Any:
    """Return the resource that the environment describes."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return _sdk("resources").Resource.create({} if named else {"service.name": SERVICE_NAME})


def _own_tracer_provider() -> Any:
    provider = _sdk("trace").TracerProvider(resource=_resource())
    exporter = _exporter("trace_exporter").OTLPSpanExporter()
    provider.add_span_processor(_sdk("trace.export").BatchSpanProcessor(exporter))
    return provider


def _own_logger_provider() -> Any:
    provider = _sdk("_logs").LoggerProvider(resource=_resource())
    exporter = _exporter("_log_exporter").OTLPLogExporter()
    provider.add_log_record_processor(_sdk("_logs.export").BatchLogRecordProcessor(exporter))
    return provider


def _own_meter_provider() -> Any:
    exporter = _exporter("metric_exporter").OTLPMetricExporter()
    reader = _sdk("metrics.export").PeriodicExportingMetricReader(exporter)
    return _sdk("metrics").MeterProvider(metric_readers=[reader], resource=_resource())


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Stretch:
    """An attempt and its times."""

    attempt: Attempt
    judging_at: datetime
    judged_at: datetime
    acted_at: datetime
    """When judging the next attempt began, or the record was complete."""


def started_at(record: Record) -> datetime:
    """Return when judging the first attempt began."""
    return record.at - timedelta(seconds=record.seconds)


def timeline(record: Record) -> list[Stretch]:
    """Return the attempts whose time is known, oldest first.

    If a record does not say when its attempts were judged, only the first attempt's time is known, because judging it
    began the record.
    """
    begun = started_at(record)
    known: list[tuple[Attempt, datetime, datetime]] = []
    for n, attempt in enumerate(record.attempts):
        score = attempt.decision.score
        took = timedelta(seconds=score.seconds if score else 0.0)
        judged_at = attempt.judged_at or (begun + took if n == 0 else None)
        if judged_at is not None:
            known.append((attempt, max(begun, judged_at - took), judged_at))
    ends = [judging_at for _, judging_at, _ in known[1:]] + [record.at]
    return [Stretch(a, start, end, max(end, acted)) for (a, start, end), acted in zip(known, ends, strict=False)]


def nanoseconds(moment: datetime) -> int:
    """Return a moment in nanoseconds since 1970, without rounding errors."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


Attributes = dict[str, str | bool | int | float]

EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "semgrad_confidence"
"""Name of the evaluation: its score is the calibrated P(answer is correct), its label the chosen action."""


def evaluation_attributes(attempt: Attempt, *, log_text: bool) -> Attributes:
    """Return the attributes of the `gen_ai.evaluation.result` event of one attempt."""
    decision = attempt.decision
    run = RunRef.of(attempt.exchange)
    return {
        **_known(
            {
                "gen_ai.evaluation.name": EVALUATION_NAME,
                "gen_ai.evaluation.score.value": number(decision.confidence.value),
                "gen_ai.evaluation.score.label": str(decision.action),
                "gen_ai.evaluation.explanation": decision.why if log_text else None,
                "gen_ai.response.id": run.response_id if run else None,
                "error.type": decision.failure.type if decision.failure else None,
            }
        ),
        **attempt_attributes(attempt),
    }


def attempt_attributes(attempt: Attempt) -> Attributes:
    """Return the `semgrad.…` attributes of one attempt, without texts."""
    decision, exchange = attempt.decision, attempt.exchange
    return {
        **_known(
            {
                "semgrad.attempt": exchange.attempt,
                "semgrad.action": str(decision.action),
                "semgrad.rule": decision.rule,
                "semgrad.confidence": number(decision.confidence.value),
                "semgrad.profile": decision.confidence.profile,
                "semgrad.drifted": decision.confidence.drifted,
            }
        ),
        **(_score(decision.score) if decision.score else {}),
    }


def record_attributes(record: Record, *, log_text: bool) -> Attributes:
    """Return the `semgrad.…` attributes of a question."""
    fields = {f"semgrad.{name}": value for name, value in summary_fields(record).items() if name != "at"}
    fields["error.type"] = fields["semgrad.error_type"] = deciding_error(record)
    if log_text:
        fields["semgrad.question"] = record.attempts[0].exchange.question if record.attempts else None
        fields["semgrad.text"] = record.text
    return _known(fields)


def decision_labels(attempt: Attempt) -> Attributes:
    """Return the metric labels of one decision; each has few possible values."""
    score = attempt.decision.score
    return _known(
        {
            "semgrad.action": str(attempt.decision.action),
            "semgrad.rule": attempt.decision.rule,
            "semgrad.scorer": score.model if score else None,
        }
    )


def scoring_labels(score: Score) -> Attributes:
    """Return the metric labels of scoring time."""
    return {"semgrad.scorer": score.model, "semgrad.method": score.method, "semgrad.path": score.path}


def _score(score: Score) -> Attributes:
    signals = {f"semgrad.signal.{name}": value for name, value in signals_fields(score.signals).items()}
    return _known(
        {
            "semgrad.method": score.method,
            "semgrad.score": number(score.value),
            "semgrad.scorer": score.model,
            "semgrad.proxy": score.proxy,
            "semgrad.path": score.path,
            "semgrad.prompt_tokens": score.n_prompt_tokens,
            "semgrad.answer_tokens": score.n_answer_tokens,
            **signals,
        }
    )


def _known(fields: Mapping[str, object]) -> Attributes:
    """Leave out unknown values, since attributes cannot be `None`."""
    return {name: value for name, value in fields.items() if isinstance(value, str | bool | int | float)}


_log = logging.getLogger("semgrad_guard")

SCOPE = "semgrad_guard"
"""Instrumentation scope of everything that is sent."""

CLOSE_S = 5.0
"""How many seconds `close` waits for pending signals."""

CONFIDENCE_BUCKETS = tuple(n / 20 for n in range(1, 20))
SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric that records are added to."""

    name: str
    unit: str
    meaning: str
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram; without any it is a counter."""


DECISIONS = Instrument("semgrad.decisions", "{decision}", "Decisions of the policy, one per attempt.")
OUTCOMES = Instrument("semgrad.outcomes", "{outcome}", "What callers got, one per question.")
CONFIDENCE = Instrument(
    "semgrad.confidence", "1", "Calibrated probability that an answer is correct.", CONFIDENCE_BUCKETS
)
SCORING = Instrument("semgrad.scoring.duration", "s", "Time that scoring one answer took.", SECONDS_BUCKETS)
INSTRUMENTS = (DECISIONS, OUTCOMES, CONFIDENCE, SCORING)


def _counter(meter: Meter, what: Instrument) -> Counter:
    return meter.create_counter(what.name, what.unit, what.meaning)


def _histogram(meter: Meter, what: Instrument) -> Histogram:
    return meter.create_histogram(what.name, what.unit, what.meaning, explicit_bucket_boundaries_advisory=what.buckets)


@dataclass(frozen=True, slots=True)
class _Instruments:
    """The tracer, logger and metrics that records are written to."""

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
            _counter(meter, DECISIONS),
            _counter(meter, OUTCOMES),
            _histogram(meter, CONFIDENCE),
            _histogram(meter, SCORING),
        )


class OtelSink:
    """Sends each record as spans, evaluation events and metrics.

    A question becomes a span `semgrad.guard` below the span in which `emit` is called; each attempt has a
    `semgrad.judge` span and, unless accepted, a `semgrad.route` span below it. An evaluation event belongs to the span
    of the model call if the exchange names it (`traceparent`, see `semgrad_guard.wire.RunRef`), otherwise to the span
    of the question. The sink only writes to memory; OpenTelemetry's own threads send the data.
    """

    def __init__(self, providers: Providers | None = None, *, log_text: bool = True) -> None:
        """Choose where to send.

        Args:
            providers: where signals go; `None` uses the application's, or new ones that send to the OTLP endpoint.
                They are looked up at the first record, so a guard may be made before OpenTelemetry is set up.
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
        """Pass one record to OpenTelemetry."""
        try:
            self._emit(record, self._ready())
        except Exception as error:  # noqa: BLE001 - logging must not cost the caller the answer
            _log.warning("a record could not be passed to OpenTelemetry: %s", in_log(error))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send pending signals, if this sink made the providers, for at most `timeout_s` seconds."""
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
    """Return the context of the span that produced the answer, or `otherwise` if it is unknown."""
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
