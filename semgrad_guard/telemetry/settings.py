"""What a policy says about telemetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Which sinks get the records, and whether they see texts."""

    langsmith: bool = False
    otel: bool = False
    jsonl: Path | None = None
    """File to append one line a record to; `None` writes none."""
    log_text: bool = True
    """False keeps every text (questions, prompts, passages, answers, messages) out of all sinks."""
