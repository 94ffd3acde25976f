"""Carries out decisions: one handler for each action."""

from semgrad_guard.deadline import Deadline
from semgrad_guard.routing.steps import (
    NO_RESOURCES,
    DocumentMap,
    PostponedError,
    Resources,
    Settled,
    hand_over,
    next_attempt,
    settle,
    settle_review,
)

__all__ = [
    "NO_RESOURCES",
    "Deadline",
    "DocumentMap",
    "PostponedError",
    "Resources",
    "Settled",
    "hand_over",
    "next_attempt",
    "settle",
    "settle_review",
]
