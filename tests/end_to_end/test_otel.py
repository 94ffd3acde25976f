"""Records in OpenTelemetry: the real SDK and OTLP exporter against a collector on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.flow import RUN_KEY
from semgrad_guard.telemetry import OtelSink, Providers
from tests.records import make_attempt, make_record

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
trace = pytest.importorskip("opentelemetry.trace")
sdk_trace = pytest.importorskip("opentelemetry.sdk.trace")
sdk_export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sdk_logs = pytest.importorskip("opentelemetry.sdk._logs")
sdk_metrics = pytest.importorskip("opentelemetry.sdk.metrics")

from tests.loopback_otlp import LoopbackCollector, attributes  # noqa: E402 - needs the packages checked above

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "Xyzzy"  # noqa: S105 - a text to be looked for
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(name="collector")
def _collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackCollector]:
    """Collector that the environment names."""
    with LoopbackCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
        yield collector


def test_each_attempt_is_an_evaluation_event(collector: LoopbackCollector) -> None:
    """Evaluation views of observability tools read these events, whoever evaluated."""
    sink = OtelSink()
    sink.emit(make_record(text=SECRET))
    sink.close()
    first, second = collector.logs
    assert {first.event_name, second.event_name} == {"gen_ai.evaluation.result"}
    said = attributes(first.attributes)
    assert said["gen_ai.evaluation.name"] == "semgrad_confidence"
    assert said["gen_ai.evaluation.score.value"] == 0.4
    assert said["gen_ai.evaluation.score.label"] == "retry_retrieval"
    assert said["gen_ai.evaluation.explanation"] == f"0.9 >= 0.7 {SECRET}"
    assert said["semgrad.rule"] == "escalate[0].retry_retrieval"
    assert said["semgrad.signal.semgrad"] == 1.5e-7
    assert "error.type" not in said
    assert attributes(second.attributes)["error.type"] == "EmptyAnswerError"


def test_uncalibrated_attempts_have_no_value(collector: LoopbackCollector) -> None:
    """A raw score is no probability and must not look like one."""
    sink = OtelSink()
    sink.emit(make_record(make_attempt("a1", None)))
    sink.close()
    said = attributes(collector.logs[0].attributes)
    assert "gen_ai.evaluation.score.value" not in said
    assert said["semgrad.score"] == 0.25
    assert "semgrad.confidence" not in collector.metrics


def test_a_question_is_a_span_with_its_judgements_and_routes_below(collector: LoopbackCollector) -> None:
    """Where the time of an answer went is what traces are for."""
    record = make_record()
    sink = OtelSink()
    sink.emit(replace(record, attempts=(record.attempts[0], replace(record.attempts[1], judged_at=record.at))))
    sink.close()
    (guard,), judges, routes = (collector.spans[f"semgrad.{name}"] for name in ("guard", "judge", "route"))
    assert (guard.end_time_unix_nano - guard.start_time_unix_nano) == 2_500_000_000
    assert [j.end_time_unix_nano - j.start_time_unix_nano for j in judges] == [125_000_000] * 2
    assert [r.end_time_unix_nano - r.start_time_unix_nano for r in routes] == [875_000_000, 0]
    assert {s.parent_span_id for s in judges + routes} == {guard.span_id}
    assert attributes(guard.attributes)["semgrad.status"] == "abstained"
    assert attributes(routes[0].attributes)["semgrad.action"] == "retry_retrieval"
    assert [r.status.code for r in routes] == [0, 2]
    assert attributes(routes[1].attributes)["error.type"] == "QueueUnavailableError"
    assert {log.span_id for log in collector.logs} == {guard.span_id}
    assert collector.scopes == {"semgrad_guard"}
    assert collector.resources[0]["service.name"] == "semgrad-guard"


def test_an_event_belongs_to_the_span_that_wrote_the_answer(collector: LoopbackCollector) -> None:
    """The conventions want evaluations on the evaluated operation."""
    attempt = make_attempt("a1")
    run = {"traceparent": TRACEPARENT, "response_id": "resp-1"}
    sink = OtelSink()
    sink.emit(make_record(replace(attempt, exchange=replace(attempt.exchange, metadata={RUN_KEY: run}))))
    sink.emit(
        make_record(replace(attempt, exchange=replace(attempt.exchange, metadata={RUN_KEY: {"traceparent": "x"}})))
    )
    sink.close()
    known, unknown = collector.logs
    assert known.span_id.hex() == "b7ad6b7169203331"
    assert attributes(known.attributes)["gen_ai.response.id"] == "resp-1"
    assert unknown.span_id == collector.spans["semgrad.guard"][1].span_id


def test_decisions_confidence_and_scoring_time_are_metrics(collector: LoopbackCollector) -> None:
    """Dashboards and alerts are made of these."""
    sink = OtelSink()
    sink.emit(make_record())
    sink.emit(make_record(make_attempt("b1", 0.97)))
    sink.close()
    decisions = collector.metrics["semgrad.decisions"].sum.data_points
    assert {attributes(p.attributes)["semgrad.action"]: p.as_int for p in decisions} == {
        "retry_retrieval": 1,
        "abstain": 1,
        "accept": 1,
    }
    assert collector.metrics["semgrad.outcomes"].sum.data_points[0].as_int == 2
    confidence = collector.metrics["semgrad.confidence"].histogram.data_points
    assert sorted(p.sum for p in confidence) == [0.2, 0.4, 0.97]
    assert confidence[0].explicit_bounds[0] == 0.05
    duration = collector.metrics["semgrad.scoring.duration"]
    assert (duration.unit, duration.histogram.data_points[0].count) == ("s", 3)
    assert duration.histogram.data_points[0].sum == pytest.approx(0.375)


def test_without_log_text_no_export_holds_the_text(collector: LoopbackCollector) -> None:
    """`log_text: false` holds for every signal."""
    for log_text in (True, False):
        collector.bodies.clear()
        sink = OtelSink(log_text=log_text)
        sink.emit(make_record(text=SECRET))
        sink.close()
        assert len(collector.bodies) == 3
        assert any(SECRET.encode() in body for body in collector.bodies) is log_text


def test_the_span_under_way_is_the_parent(collector: LoopbackCollector) -> None:
    """The guard is part of a request that others trace."""
    sink = OtelSink()
    parent = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with trace.use_span(parent):
        sink.emit(make_record())
    sink.close()
    (guard,) = collector.spans["semgrad.guard"]
    assert (int.from_bytes(guard.trace_id, "big"), int.from_bytes(guard.parent_span_id, "big")) == (1, 2)


def test_given_providers_are_used_and_left_open(collector: LoopbackCollector) -> None:
    """Whoever made them ends them."""
    exported = in_memory.InMemorySpanExporter()
    tracer = sdk_trace.TracerProvider(shutdown_on_exit=False)
    tracer.add_span_processor(sdk_export.SimpleSpanProcessor(exported))
    providers = Providers(
        tracer=tracer,
        logger=sdk_logs.LoggerProvider(shutdown_on_exit=False),
        meter=sdk_metrics.MeterProvider(shutdown_on_exit=False),
    )
    sink = OtelSink(providers)
    sink.emit(make_record())
    sink.close()
    sink.emit(make_record())
    assert len([s for s in exported.get_finished_spans() if s.name == "semgrad.guard"]) == 2
    assert collector.bodies == []


def test_a_collector_that_hangs_delays_neither_answers_nor_the_end(collector: LoopbackCollector) -> None:
    """Observability must not take down what it observes."""
    collector.hanging.clear()
    sink = OtelSink()
    sink.emit(make_record())
    took = []
    for _ in range(50):
        start = time.monotonic()
        sink.emit(make_record())
        took.append(time.monotonic() - start)
    assert median(took) < 0.05  # a single one may be longer where the machine is busy
    assert max(took) < 2
    start = time.monotonic()
    sink.close(0.3)
    assert time.monotonic() - start < 2
    collector.hanging.set()


def test_a_record_that_makes_no_sense_is_no_error(
    collector: LoopbackCollector, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even our own mistakes may reach the chain."""
    sink = OtelSink()
    sink.emit(None)  # type: ignore[arg-type]
    sink.close()
    assert "could not be passed" in caplog.text
    assert collector.logs == []


def test_time_without_judgement_times_is_only_told_of_the_first_attempt(collector: LoopbackCollector) -> None:
    """A made-up time would be worse than none."""
    attempts = (replace(make_record().attempts[0], judged_at=None), make_record().attempts[1])
    sink = OtelSink()
    sink.emit(make_record(*attempts))
    sink.close()
    (judge,), (guard,) = collector.spans["semgrad.judge"], collector.spans["semgrad.guard"]
    assert judge.start_time_unix_nano == guard.start_time_unix_nano
    assert (
        judge.end_time_unix_nano - judge.start_time_unix_nano
        == timedelta(seconds=0.125) // timedelta(microseconds=1) * 1000
    )


APPLICATION = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from semgrad_guard.telemetry import OtelSink
from tests.records import make_record
sink = OtelSink()
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
sink.emit(make_record())
sink.close()
print(sorted(span.name for span in exporter.get_finished_spans()))
"""


def test_providers_that_the_application_sets_up_later_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards are often made at import time, before the application sets up tracing."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION], capture_output=True, text=True, check=True, timeout=60, cwd=_root()
    )
    assert done.stdout.strip() == "['semgrad.guard', 'semgrad.judge', 'semgrad.route']"


def _root() -> str:
    return str(__file__).rsplit("/tests/", 1)[0]
