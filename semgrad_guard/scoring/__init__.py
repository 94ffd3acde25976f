"""Tokens -> score: one backward pass through a local model, and the signals read from it and from the texts."""

from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.signals import SIGNALS, Signal

__all__ = ["SIGNALS", "SemGradScorer", "Signal"]
