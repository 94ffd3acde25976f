"""The guard: judges an exchange, carries out the policy and records what happened."""

from semgrad_guard.guard.guard import Guard, in_thread
from semgrad_guard.guard.question_run import Parts

__all__ = ["Guard", "Parts", "in_thread"]
