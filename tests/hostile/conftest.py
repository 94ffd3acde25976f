"""Fixtures of the hostile tests."""

from __future__ import annotations

from tests.review_queues import _clock, _open_here, _queue_url

__all__ = ["_clock", "_open_here", "_queue_url"]
