"""How much a hostile test tries: little with every change, as much as is wanted by `--hostile-cases`."""

from __future__ import annotations

import os

CASES = int(os.environ.get("SEMGRAD_HOSTILE_CASES", "60"))
"""Cases of each hostile test."""
