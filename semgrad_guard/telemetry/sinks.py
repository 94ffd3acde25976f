"""Make the sinks that the settings name, and send each record to all of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import in_log
from semgrad_guard.telemetry.jsonl import JsonlSink
from semgrad_guard.telemetry.langsmith import LangSmithSink
from semgrad_guard.telemetry.otel import OtelSink

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from semgrad_guard.flow import Record
    from semgrad_guard.ports import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Which sinks get the records, and whether these include texts."""

    langsmith: bool = False
    otel: bool = False
    jsonl: Path | None = None
    """File that gets one line per record; `None` writes no file."""
    log_text: bool = True
    """False keeps every text (questions, prompts, passages, answers, messages) out of all sinks."""
    all_signals: bool = False
    """Whether LangSmith gets every raw signal, too."""


_log = logging.getLogger("semgrad_guard")


class Sinks:
    """Sends each record to several sinks; a failing sink affects neither the others nor the caller."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        """Keep the sinks."""
        self.sinks = tuple(sinks)
        self._failed: set[tuple[int, str]] = set()

    def emit(self, record: Record) -> None:
        """Send one record to all sinks."""
        for n, sink in enumerate(self.sinks):
            try:
                sink.emit(record)
            except Exception as error:  # noqa: BLE001 - logging must not cost the caller the answer
                self._note(n, "emit", error)

    def close(self) -> None:
        """Close all sinks in reverse order."""
        for n, sink in reversed(list(enumerate(self.sinks))):
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - the others must be closed as well
                self._note(n, "close", error)

    def _note(self, n: int, what: str, error: Exception) -> None:
        """Log the first failure of each kind, for each sink."""
        kind = n, f"{what} {type(error).__name__}"
        if kind not in self._failed:
            self._failed.add(kind)
            name = type(self.sinks[n]).__name__
            _log.error("%s.%s failed: %s (more of the same is not logged)", name, what, in_log(error))


def build_sinks(settings: TelemetrySettings) -> Sinks:
    """Return the sinks that a policy names.

    Raises:
        MissingExtraError: the packages of a sink are not installed; the error names the extra.
    """
    sinks: list[Sink] = []
    if settings.langsmith:
        sinks.append(LangSmithSink(log_text=settings.log_text, all_signals=settings.all_signals))
    if settings.otel:
        sinks.append(OtelSink(log_text=settings.log_text))
    if settings.jsonl is not None:
        sinks.append(JsonlSink(settings.jsonl, log_text=settings.log_text))
    return Sinks(sinks)
