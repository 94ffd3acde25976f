"""The flow itself: judge an exchange, carry out the policy, record what happened."""

from semgrad_guard.guard.guard import Guard, in_thread
from semgrad_guard.guard.question_run import Parts

__all__ = ["Guard", "Parts", "in_thread"]
