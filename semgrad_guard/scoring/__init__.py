"""Tokens -> score: one backward pass through a local model, and the signals read from it and from the texts."""

from semgrad_guard.extras import require

require("torch", extra="local")

from semgrad_guard.scoring.scorer import SemGradScorer  # noqa: E402 - the lines above name a missing extra
from semgrad_guard.signals import SIGNALS, Signal  # noqa: E402

__all__ = ["SIGNALS", "SemGradScorer", "Signal"]
