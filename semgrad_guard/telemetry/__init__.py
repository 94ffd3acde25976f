"""Record -> LangSmith, OpenTelemetry, JSONL: one sink a file, each isolated from the others and from the answer."""

from semgrad_guard.telemetry.fields import record_fields, summary_fields
from semgrad_guard.telemetry.jsonl import JsonlSink, read_records
from semgrad_guard.telemetry.replay import RecordFieldsError, record_from_fields
from semgrad_guard.telemetry.runs import RUN_KEY, RunRef, user_metadata
from semgrad_guard.telemetry.settings import TelemetrySettings

__all__ = [
    "RUN_KEY",
    "JsonlSink",
    "RecordFieldsError",
    "RunRef",
    "TelemetrySettings",
    "read_records",
    "record_fields",
    "record_from_fields",
    "summary_fields",
    "user_metadata",
]
