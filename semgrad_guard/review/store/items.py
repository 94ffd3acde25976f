"""Items of the queue: their states and moves, the filters of lists, and the queue's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from semgrad_guard.flow import ExchangeId, Json, ReviewId, Ruling
    from semgrad_guard.review.store.document import Document


class State(StrEnum):
    """State of a review item."""

    PENDING = "pending"
    """Waits for a reviewer."""
    CLAIMED = "claimed"
    """One reviewer holds it until the lease ends."""
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    EXPIRED = "expired"
    """The deadline passed without a verdict."""


OPEN = frozenset({State.PENDING, State.CLAIMED})
"""States in which an item still needs a verdict."""
SETTLED = frozenset(State) - OPEN
"""States in which an item has its verdict."""


class Event(StrEnum):
    """What happens to a review item; each event is one row of the audit trail."""

    SUBMIT = "submit"
    IMPORT = "import"
    CLAIM = "claim"
    RENEW = "renew"
    RELEASE = "release"
    LAPSE = "lapse"
    """A lease ended before its holder decided."""
    ASSIGN = "assign"
    APPROVE = "approve"
    EDIT = "edit"
    REJECT = "reject"
    EXPIRE = "expire"
    """The deadline passed; the item's `at_expiry` says what happens then."""
    UNDO = "undo"
    COMMENT = "comment"
    VIEW = "view"
    DELIVER = "deliver"
    """A waiting caller took the verdict, so it can no longer be undone."""
    ERASE = "erase"


@dataclass(frozen=True, slots=True)
class Move:
    """States from which an event is allowed, and the states it may lead to."""

    start: frozenset[State]
    end: frozenset[State]


MOVES: Mapping[Event, Move] = MappingProxyType(
    {
        Event.CLAIM: Move(frozenset({State.PENDING}), frozenset({State.CLAIMED})),
        Event.RENEW: Move(frozenset({State.CLAIMED}), frozenset({State.CLAIMED})),
        Event.RELEASE: Move(frozenset({State.CLAIMED}), frozenset({State.PENDING})),
        Event.LAPSE: Move(frozenset({State.CLAIMED}), frozenset({State.PENDING})),
        Event.APPROVE: Move(OPEN, frozenset({State.APPROVED})),
        Event.EDIT: Move(OPEN, frozenset({State.EDITED})),
        Event.REJECT: Move(OPEN, frozenset({State.REJECTED})),
        Event.EXPIRE: Move(OPEN, frozenset({State.EXPIRED, State.APPROVED, State.REJECTED})),
        Event.UNDO: Move(frozenset({State.APPROVED, State.EDITED, State.REJECTED}), frozenset({State.CLAIMED})),
    }
)
"""Every allowed change of state. Events that are not listed leave the state unchanged."""


def allowed_from(state: State) -> tuple[State, ...]:
    """Return the states that a person can move an item to from `state`, in the order of `State`."""
    ends = {
        end for event, move in MOVES.items() if state in move.start and event is not Event.LAPSE for end in move.end
    }
    return tuple(each for each in State if each in ends and each is not state)


def rank(created_at: datetime, confidence: float | None, tags: Iterable[str], settings: QueueSettings) -> float:
    """Return the item's place in the queue: its submission time in seconds, earlier the riskier; lower comes first.

    An answer of confidence 0 counts as `head_start_s` older than one of confidence 1, times the weight of its heaviest
    tag. So the riskiest come first, and a safe item that has waited that much longer still gets its turn. An answer
    without a confidence counts as one of confidence 0.
    """
    weight = max((settings.tag_weights.get(tag, 1.0) for tag in tags), default=1.0)
    risk = 1.0 - (confidence or 0.0)
    return created_at.timestamp() - risk * weight * settings.head_start_s


class AtExpiry(StrEnum):
    """What becomes of an item that was not judged before its deadline."""

    EXPIRE = "expire"
    """No verdict: the caller is told that it expired."""
    APPROVE = "approve"
    """The answer is approved as it is."""
    REJECT = "reject"
    """The answer is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answer in the queue, as lists show it."""

    id: ReviewId
    exchange_id: ExchangeId
    state: State
    version: int
    """Grows by one with every change; a change made from an older version is refused."""
    title: str
    """Start of the question."""
    preview: str
    """Start of the answer."""
    rank: float
    """Place in the queue, in seconds; lower is judged sooner."""
    confidence: float | None
    rule: str
    tags: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    assignee: str | None
    holder: str | None
    """Who claimed it."""
    held_until: datetime | None
    deadline_at: datetime | None
    at_expiry: AtExpiry
    ruling_id: int | None
    resolved_at: datetime | None
    delivered_at: datetime | None
    """When a waiting caller took the verdict."""
    erased_at: datetime | None
    """When the personal data of the item was removed."""

    @property
    def is_open(self) -> bool:
        """True while the item needs a verdict."""
        return self.state in OPEN

    def is_held_by_other(self, reviewer: str, now: datetime) -> bool:
        """True while another reviewer holds the item."""
        return self.holder not in {None, reviewer} and self.held_until is not None and self.held_until > now


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A reviewer's comment on an item."""

    id: int
    by: str
    at: datetime
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDetail:
    """One item with everything that a reviewer sees; the document is `None` after the item was erased."""

    item: Item
    document: Document | None
    ruling: Ruling | None
    comments: tuple[Comment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One event in the life of an item. It holds no text that a person wrote, so erasing need not touch it."""

    seq: int
    item_id: ReviewId
    version: int | None
    """The item's version after the event; `None` for events that change nothing."""
    event: Event
    from_state: State | None
    to_state: State | None
    by: str
    at: datetime
    detail: Mapping[str, Json]


class Sort(StrEnum):
    """Orders of a list."""

    RISK = "risk"
    """Riskiest first: low confidence, heavy tags and a long wait move an item up."""
    NEWEST = "newest"
    OLDEST = "oldest"
    DEADLINE = "deadline"
    """Nearest deadline first; items without one are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which items a list shows; an empty field matches all."""

    states: frozenset[State] = frozenset()
    tags: frozenset[str] = frozenset()
    """An item must have all of them."""
    assignee: str | None = None
    holder: str | None = None
    rule: str | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    text: str = ""
    """Words to find in question, answer, passages or comments; all must occur."""


OPEN_ITEMS = Filters(states=OPEN)
ALL_ITEMS = Filters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list."""

    items: tuple[Item, ...]
    next_cursor: str | None
    """Pass it to get the next page; `None` on the last page."""


_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """How a queue behaves; every duration is in seconds."""

    lease_s: float = 900.0
    """How long a claim lasts."""
    undo_s: float = 60.0
    """How long a verdict can be undone, unless a caller already has it."""
    deadline_s: float | None = None
    """Time for a verdict when the submitter gives none; `None` waits for ever."""
    at_expiry: AtExpiry = AtExpiry.EXPIRE
    least_deadline_s: float | None = None
    """Shortest time for a verdict that a program may ask for at the review site; see `shortest_deadline_s`."""
    retention_s: float | None = None
    """Age at which the review site erases the texts of settled items; `None` keeps them."""
    retry_s: float = 5.0
    """How long to keep trying a busy or unreachable database."""
    head_start_s: float = 86_400.0
    """How much earlier an answer of confidence 0 counts as submitted than one of confidence 1, before tag weights."""
    tag_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Tag -> factor on the head start, 1 for other tags; an item's largest counts."""

    @property
    def shortest_deadline_s(self) -> float:
        """Shortest time that a program may ask for at the review site.

        Where a deadline approves, a program must not approve its own answers by a deadline that nobody can keep: unless
        `least_deadline_s` says otherwise, it is the queue's own deadline, or an hour.
        """
        if self.least_deadline_s is not None:
            return self.least_deadline_s
        if self.at_expiry is not AtExpiry.APPROVE:
            return 0.0
        return _HOUR_S if self.deadline_s is None else self.deadline_s
