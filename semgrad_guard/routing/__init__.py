"""Decision -> Outcome: one handler per action."""

from semgrad_guard.routing.answer_again import next_attempt
from semgrad_guard.routing.deadline import Deadline
from semgrad_guard.routing.hand_over import hand_over
from semgrad_guard.routing.postponed import PostponedError
from semgrad_guard.routing.resources import NO_RESOURCES, Resources
from semgrad_guard.routing.settle import Settled, settle, settle_review

__all__ = [
    "NO_RESOURCES",
    "Deadline",
    "PostponedError",
    "Resources",
    "Settled",
    "hand_over",
    "next_attempt",
    "settle",
    "settle_review",
]
