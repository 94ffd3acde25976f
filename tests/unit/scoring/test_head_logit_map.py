"""Reading from a probe what a model does to its output head's numbers."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.scoring.head import LogitMap, fit_logit_map, probe_values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "true",
    [LogitMap(), LogitMap(0.0625), LogitMap(cap=30.0), LogitMap(cap=50.0), LogitMap(cap=15.0), LogitMap(2.0, 30.0)],
)
def test_scales_and_caps_are_read_from_what_comes_out(true, dtype):
    """No list of architectures: the model itself is asked."""
    raw = probe_values(400, dtype)
    found = fit_logit_map(raw, true.apply_(raw.clone()))
    assert found is not None
    assert found.scale == pytest.approx(true.scale, rel=1e-3)
    assert found.cap == (None if true.cap is None else pytest.approx(true.cap, rel=1e-3))


def test_anything_else_is_not_taken_for_one_of_them():
    """An unknown map would give wrong gradients without a sign."""
    raw = probe_values(400, torch.float32)
    assert fit_logit_map(raw, raw.relu()) is None
    assert fit_logit_map(raw, raw + 1) is None
    assert fit_logit_map(raw, torch.zeros_like(raw)) is None or fit_logit_map(raw, torch.zeros_like(raw)).scale == 0
