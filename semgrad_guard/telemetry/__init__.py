"""Send records to LangSmith, OpenTelemetry and JSONL files; a failing sink affects no other sink and no answer."""

from semgrad_guard.telemetry.feedback import post_verdict_feedback
from semgrad_guard.telemetry.jsonl import JsonlSink, read_records
from semgrad_guard.telemetry.langsmith import LangSmithSink, annotate_current_run, judged_within
from semgrad_guard.telemetry.otel import OtelSink, Providers
from semgrad_guard.telemetry.sinks import Sinks, TelemetrySettings, build_sinks
from semgrad_guard.wire import (
    RecordFieldsError,
    RunRef,
    record_fields,
    record_from_fields,
    summary_fields,
    user_metadata,
)

__all__ = [
    "JsonlSink",
    "LangSmithSink",
    "OtelSink",
    "Providers",
    "RecordFieldsError",
    "RunRef",
    "Sinks",
    "TelemetrySettings",
    "annotate_current_run",
    "build_sinks",
    "judged_within",
    "post_verdict_feedback",
    "read_records",
    "record_fields",
    "record_from_fields",
    "summary_fields",
    "user_metadata",
]
