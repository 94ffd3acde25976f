"""The guard: judges exchanges and carries out the policy."""

from __future__ import annotations


class Guard:
    """Judges exchanges and carries out the policy."""
