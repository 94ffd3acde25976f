"""Half-precision weights put answers in the order in which float32 puts them."""

from __future__ import annotations

import json
import os

import pytest
from scipy.stats import spearmanr

from semgrad_guard import Exchange
from semgrad_guard.models import load_model
from semgrad_guard.scoring import SemGradScorer

AT_LEAST = 0.98

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        "SEMGRAD_TEST_HALF" not in os.environ,
        reason="takes minutes on a processor that has to imitate half precision (set SEMGRAD_TEST_HALF)",
    ),
]


@pytest.fixture(name="reference", scope="module")
def _reference(shared_dir):
    return json.loads((shared_dir / "reference" / "semgrad_reference.json").read_text())["exchanges"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_order_is_that_of_float32(reference, dtype):
    """Thresholds and rankings are what a score is for, and the published numbers are float32."""
    scorer = SemGradScorer(load_model("smollm2-135m", dtype=dtype))
    exchanges = [
        Exchange(prompt_ids=tuple(row["prompt_ids"]), answer_ids=tuple(row["answer_ids"]), on_policy=True)
        for row in reference
    ]
    scores = [scorer.score(exchange).signals for exchange in exchanges]
    found = {
        method: float(spearmanr([row[method] for row in reference], [score[method] for score in scores]).statistic)
        for method in ("semgrad", "paragrad", "hybridgrad", "exgrad")
    }
    assert min(found.values()) >= AT_LEAST, found
