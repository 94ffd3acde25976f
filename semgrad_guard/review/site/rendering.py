"""Render pages: templates, ages, marked answers and the dashboard's points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from semgrad_guard.errors import QueueUnavailableError
from semgrad_guard.review.site.desk import desk_of
from semgrad_guard.review.store.document import UNSEEN
from semgrad_guard.review.store.items import Filters, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from starlette.requests import Request

    from semgrad_guard.review.site.desk import Desk
    from semgrad_guard.review.store.document import Document
    from semgrad_guard.review.store.read import Band

P = TypeVar("P")

LONGEST_SHOWN = 50_000
"""How many characters of one text a page shows; the whole answer can be downloaded."""
LONGEST_TOGETHER = 200_000
"""How many characters of several texts a page shows together."""
MOST_PARTS = 50
"""How many texts of one kind, for example passages, a page shows."""
MOST_PIECES = 2000
"""How many differently marked pieces of one text a page shows; the rest is shown unmarked."""
DOUBT_LEVELS = 4
"""Number of levels of doubt; 4 is the most doubtful."""
_WORD = re.compile(r"\w+")
_COPIED_WORDS = 3
"""A sequence of this many words that is in both texts counts as copied."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A marked part of a text."""

    start: int
    end: int
    css: str
    label: str
    """Meaning of the mark in words, for screen readers and readers who cannot tell the colours apart."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text; `css` is empty if it is not marked, and `unseen` names an invisible character."""

    text: str
    css: str = ""
    label: str = ""
    unseen: str = ""


def segments(text: str, marks: Iterable[Mark] = ()) -> tuple[Segment, ...]:
    """Split the start of a text into marked and unmarked pieces; marks that overlap an earlier one are left out."""
    shown = text[:LONGEST_SHOWN]
    pieces: list[Segment] = []
    end = 0
    for mark in sorted(marks, key=lambda mark: mark.start):
        start, stop = max(mark.start, 0), min(mark.end, len(shown))
        if start < end or start >= stop:
            continue
        pieces += _reveal(shown[end:start], None)
        pieces += _reveal(shown[start:stop], mark)
        end = stop
    pieces += _reveal(shown[end:], None)
    if len(pieces) > MOST_PIECES:
        rest = "".join(piece.text or f"⟨{piece.unseen}⟩" for piece in pieces[MOST_PIECES:])
        pieces[MOST_PIECES:] = [Segment(rest)]
    return tuple(pieces)


def some(parts: Sequence[P], length: Callable[[P], int], most: int = MOST_PARTS) -> Sequence[P]:
    """Return the first parts, as many as one page shows."""
    total = 0
    for n, part in enumerate(parts[:most]):
        total += min(length(part), LONGEST_SHOWN)
        if total > LONGEST_TOGETHER and n:
            return parts[:n]
    return parts[:most]


def doubt_marks(document: Document) -> tuple[Mark, ...]:
    """Return a mark for each part of the answer that has a confidence; its level shows how doubtful the part is."""
    if document.score is None:
        return ()
    return tuple(
        Mark(span.start, span.end, f"doubt doubt-{doubt_level(span.confidence)}", f"{span.confidence:.0%} sure")
        for span in document.score.spans
        if span.confidence is not None
    )


def doubt_level(confidence: float) -> int:
    """Return the level of doubt of a confidence: from 0, not marked, to 4, the most doubtful."""
    return min(DOUBT_LEVELS, int((1.0 - confidence) * (DOUBT_LEVELS + 1)))


def copied_marks(passage: str, answer: str) -> tuple[Mark, ...]:
    """Return the parts of a passage that the answer repeats word for word."""
    answered = [word.group().casefold() for word in _WORD.finditer(answer[:LONGEST_SHOWN])]
    length = min(_COPIED_WORDS, len(answered))
    if not length:
        return ()
    runs = {tuple(answered[n : n + length]) for n in range(len(answered) - length + 1)}
    words = [(word.group().casefold(), word.start(), word.end()) for word in _WORD.finditer(passage[:LONGEST_SHOWN])]
    return tuple(Mark(start, end, "copied", "also in the answer") for start, end in _joined(words, runs, length))


def _joined(
    words: Sequence[tuple[str, int, int]], runs: set[tuple[str, ...]], length: int
) -> Iterator[tuple[int, int]]:
    """Yield start and end of each stretch of text that the runs cover."""
    start = end = -1
    for n in range(len(words) - length + 1):
        if tuple(word for word, _, _ in words[n : n + length]) not in runs:
            continue
        left, right = words[n][1], words[n + length - 1][2]
        if left > end:
            if end >= 0:
                yield start, end
            start = left
        end = right
    if end >= 0:
        yield start, end


def _reveal(text: str, mark: Mark | None) -> Iterator[Segment]:
    css, label = (mark.css, mark.label) if mark else ("", "")
    end = 0
    for found in UNSEEN.finditer(text):
        if found.start() > end:
            yield Segment(text[end : found.start()], css, label)
        yield Segment("", css, label, f"U+{ord(found.group()):04X}")
        end = found.end()
    if end < len(text):
        yield Segment(text[end:], css, label)


SIZE = 240
"""Side of the plot in pixels; both axes go from 0 to 1."""
_SMALLEST, _LARGEST = 4.0, 14.0


@dataclass(frozen=True, slots=True)
class Point:
    """A tenth of the confidences: x is the guard's confidence, y the share that reviewers found right."""

    x: float
    y: float
    radius: float
    text: str


def points(bands: Sequence[Band]) -> tuple[Point, ...]:
    """Return one point for each band; its area grows with the number of answers."""
    most = max((band.n for band in bands), default=1)
    return tuple(
        Point(
            x=round(band.mean_confidence * SIZE, 1),
            y=round((1.0 - band.share_correct) * SIZE, 1),
            radius=round(max(_SMALLEST, _LARGEST * (band.n / most) ** 0.5), 1),
            text=f"confidence {band.mean_confidence:.2f}: {band.n_correct} of {band.n} right",
        )
        for band in bands
    )


_TEMPLATES = Path(__file__).parent / "templates"
MOST_COUNTED = 1000
"""Upper limit of the live count, so that its cost does not grow with the queue."""
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def _now(desk: Desk) -> datetime:
    """Return the present moment; the Unix epoch where the clock fails, as on the page that says so."""
    try:
        return desk.queue.database.clock()
    except QueueUnavailableError:
        return datetime.fromtimestamp(0, UTC)


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, in its largest unit."""
    seconds = max(0.0, (now - moment).total_seconds())
    return next((f"{seconds / length:.0f} {unit}" for length, unit in _UNITS if seconds >= length), f"{seconds:.0f} s")


def waiting(request: Request) -> str:
    """Return how many items wait for a reviewer, as text."""
    n = desk_of(request).queue.count_up_to(Filters(states=frozenset({State.PENDING})), MOST_COUNTED)
    return f"{n}+" if n >= MOST_COUNTED else str(n)


def render(request: Request, template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """Render a template as a page."""
    desk = desk_of(request)
    session = getattr(request.state, "session", None)
    variables = {"session": session, "now": _now(desk), "path": request.url.path, **context}
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(variables), status_code=status_code)


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
