"""Pages from templates: everything that is put into one is escaped."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from semgrad_guard.review.site.desk import desk_of
from semgrad_guard.review.site.segments import doubt_level, segments
from semgrad_guard.review.store.items import Filters, State

if TYPE_CHECKING:
    from starlette.requests import Request

_TEMPLATES = Path(__file__).parent / "templates"
MOST_COUNTED = 1000
"""The live count goes no further: its cost must not grow with the queue."""
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, in its largest unit."""
    seconds = max(0.0, (now - moment).total_seconds())
    return next((f"{seconds / length:.0f} {unit}" for length, unit in _UNITS if seconds >= length), f"{seconds:.0f} s")


def waiting(request: Request) -> str:
    """Return how many items wait for a reviewer, as text."""
    n = desk_of(request).queue.count_up_to(Filters(states=frozenset({State.PENDING})), MOST_COUNTED)
    return f"{n}+" if n >= MOST_COUNTED else str(n)


def render(request: Request, template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """Return a page."""
    desk = desk_of(request)
    session = getattr(request.state, "session", None)
    given = {"session": session, "now": desk.queue.database.clock(), "path": request.url.path, **context}
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(given), status_code=status_code)


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast("dict[str, Any]", environment.globals).update(age=age, doubt_level=doubt_level, segments=segments)
    environment.filters["moment"] = _moment
    return environment


_ENVIRONMENT = _environment()
