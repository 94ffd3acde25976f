"""Answered questions as `evaluate` writes them, made up: how well each method does on them is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.fakes import FINGERPRINT

if TYPE_CHECKING:
    from pathlib import Path


def answered(n: int = 200, *, seed: int = 0, n_sampled: int = 0) -> list[dict[str, Any]]:
    """Return rows in which semgrad and grounding each know a part of the truth, and mean_nll knows nothing."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        right = bool(rng.random() < 0.5)
        row: dict[str, Any] = {
            "row_digest": str(i),
            "question": f"question {i // 2}",
            "answers": ["yes"],
            "answer": "yes" if right else "no",
            "semgrad": float(np.exp(rng.normal(-1.2 * right, 1))),
            "paragrad": float(np.exp(rng.normal(-0.4 * right, 1))),
            "mean_nll": float(rng.gamma(2.0)),
            "max_nll": float(rng.gamma(2.0)),
            "grounding": float(np.clip(rng.normal(0.4 + 0.3 * right, 0.3), 0, 1)),
            "copied_span": float(rng.random()),
            "context_gain": float(rng.normal()),
            "fingerprint": asdict(FINGERPRINT),
            "seconds": {"answer": 1.0, "score": 0.25, "context_gain": 0.5},
        }
        if i < n_sampled:
            row["samples"] = [{"text": row["answer"], "mean_nll": 0.1}] * 3 + [
                {"text": "maybe so", "mean_nll": 0.2}
            ] * 2
            row["seconds"]["samples"] = 5.0
        rows.append(row)
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
