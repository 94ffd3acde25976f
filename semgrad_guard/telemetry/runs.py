"""Where an answer was traced: the reserved key `run` of an exchange's metadata.

An adapter that knows which traced run wrote an answer says so in `Exchange.metadata[RUN_KEY]`::

    {"run_id": "…", "trace_id": "…", "session_name": "…", "traceparent": "…", "response_id": "…"}

All values are text and any may be missing. `run_id`, `trace_id` and `session_name` are LangSmith's: the run of the
model call, the root run of its trace, and its project. A `session_name` says that LangSmith records the run, so
feedback is posted on it even where tracing is not switched on for the whole process; an adapter that does not know
leaves it out. `traceparent` is the W3C trace context of the model call's OpenTelemetry span and `response_id` the
provider's id of the completion. The key is not the caller's metadata: `user_metadata` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from semgrad_guard.flow import RUN_KEY

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """Ids of the traced run that wrote an answer."""

    run_id: str | None = None
    """LangSmith run of the model call, a UUID."""
    trace_id: str | None = None
    """Root run of its trace, a UUID."""
    session_name: str | None = None
    """LangSmith project of the trace."""
    traceparent: str | None = None
    """W3C trace context of the model call's OpenTelemetry span."""
    response_id: str | None = None
    """The provider's id of the completion."""

    @classmethod
    def of(cls, exchange: Exchange) -> RunRef | None:
        """Return what an exchange says about its run; `None` where it says nothing that can be used."""
        said = exchange.metadata.get(RUN_KEY)
        if not isinstance(said, Mapping):
            return None
        known = {name: _text(said.get(name)) for name in cls.__dataclass_fields__}
        known["run_id"], known["trace_id"] = _uuid(known["run_id"]), _uuid(known["trace_id"])
        ref = cls(**known)
        return ref if ref != cls() else None

    def fields(self) -> dict[str, Json]:
        """Return the known ids: the value of `RUN_KEY`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def user_metadata(exchange: Exchange) -> dict[str, Json]:
    """Return the caller's own metadata, without the reserved key."""
    return {key: value for key, value in exchange.metadata.items() if key != RUN_KEY}


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | UUID) and str(value) else None


def _uuid(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(UUID(value))
    except ValueError:
        return None
