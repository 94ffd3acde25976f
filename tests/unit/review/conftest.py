"""Fixtures of the review queue's tests."""

from __future__ import annotations

from tests.review_queues import _clock, _empty_url, _memory_queue, _open_here, _queue, _queue_url

__all__ = ["_clock", "_empty_url", "_memory_queue", "_open_here", "_queue", "_queue_url"]
