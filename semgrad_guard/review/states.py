"""The states of a review item and the moves between them, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where a review item stands."""

    PENDING = "pending"
    """Waits for a reviewer."""
    CLAIMED = "claimed"
    """One reviewer holds it until the lease ends."""
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    EXPIRED = "expired"
    """Nobody decided before the deadline."""


OPEN = frozenset({State.PENDING, State.CLAIMED})
"""States in which an item still needs a verdict."""
SETTLED = frozenset(State) - OPEN
"""States in which an item has its verdict."""


class Event(StrEnum):
    """What happens to a review item; each happening is one row of the audit trail."""

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
    """The deadline passed; the item's own setting says what becomes of it."""
    UNDO = "undo"
    COMMENT = "comment"
    VIEW = "view"
    DELIVER = "deliver"
    """A waiting caller took the verdict, so it can't be undone any more."""
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
"""Every allowed change of state. Events that are not here leave the state as it is."""


def allowed_from(state: State) -> tuple[State, ...]:
    """Return the states that a person can bring an item to from `state`, in the order of `State`."""
    ends = {
        end for event, move in MOVES.items() if state in move.start and event is not Event.LAPSE for end in move.end
    }
    return tuple(each for each in State if each in ends and each is not state)
