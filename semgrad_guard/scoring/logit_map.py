"""What a model does to the numbers of its output head before they are logits: scaling, soft-capping, or nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PROBE_PEAK = 60.0
"""Largest value of the probe: wide enough that a soft cap (30 to 50 in published models) shows."""


@dataclass(frozen=True, slots=True)
class LogitMap:
    """`logits = scale * raw`, or `cap * tanh(scale * raw / cap)` where there is a soft cap."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, raw: Tensor) -> Tensor:
        """Turn, in place, the head's raw output into logits."""
        if self.scale != 1.0:
            raw.mul_(self.scale)
        return raw if self.cap is None else raw.div_(self.cap).tanh_().mul_(self.cap)

    def pull_back_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn, in place, a gradient by the logits into the gradient by the head's raw output."""
        if self.cap is not None:
            gradient.mul_(1.0 - (logits / self.cap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def probe_values(n: int, dtype: torch.dtype) -> Tensor:
    """Return `n` head outputs for the model to turn into logits; the last is the peak, the one before half of it."""
    values = torch.linspace(-PROBE_PEAK, PROBE_PEAK, n, dtype=torch.float64)
    values[-2] = PROBE_PEAK / 2
    return values.to(dtype)


def fit_logit_map(raw: Tensor, logits: Tensor) -> LogitMap | None:
    """Return what turns probe values into what the model made of them; `None` when it is neither scale nor soft cap.

    Args:
        raw: what `probe_values` gave, shape ``(vocabulary,)``.
        logits: the model's logits for them, same shape.
    """
    tolerance = 1e-5 if torch.finfo(logits.dtype).bits > 16 else 1e-2
    raw, logits = raw.double(), logits.double()
    linear = LogitMap(_rounded(float((raw @ logits) / (raw @ raw)), tolerance))
    for candidate in (linear, _soft_cap(logits, tolerance)):
        if candidate is None:
            continue
        made = candidate.apply_(raw.clone())
        if bool((made - logits).abs().max() <= tolerance * logits.abs().max()):
            return candidate
    return None


def _soft_cap(logits: Tensor, tolerance: float) -> LogitMap | None:
    """Return the soft cap that sends the probe's peak and half of it where they went.

    With `t = tanh(scale * half / cap)`: half becomes `cap * t`, and the peak `cap * 2t / (1 + t²)`.
    """
    half, peak = float(logits[-2]), float(logits[-1])
    square = 2.0 * half / peak - 1.0 if peak else 0.0
    if not 0.0 < square < 1.0:
        return None
    t = math.sqrt(square)
    cap = _rounded(half / t, tolerance)
    return LogitMap(_rounded(math.atanh(t) * cap / (PROBE_PEAK / 2), tolerance), cap)


def _rounded(value: float, tolerance: float) -> float:
    """Return a round number, as configs have them, if there is one within the tolerance."""
    rounded = float(f"{value:.3g}")
    return rounded if abs(rounded - value) <= tolerance * abs(value) else value
