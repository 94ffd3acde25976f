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


METHODS = ("semgrad", "paragrad", "hybridgrad", "exgrad")


@pytest.fixture(name="half", scope="module", params=["float16", "bfloat16"])
def _half(request):
    return load_model("smollm2-135m", dtype=request.param)


def _likeness(exact, found):
    """Return the rank correlation of each gradient score."""
    return {
        method: float(spearmanr([one[method] for one in exact], [one[method] for one in found]).statistic)
        for method in METHODS
    }


def test_the_order_is_that_of_float32(reference, half):
    """Thresholds and rankings are what a score is for, and the published numbers are float32."""
    scorer = SemGradScorer(half)
    exchanges = [
        Exchange(prompt_ids=tuple(row["prompt_ids"]), answer_ids=tuple(row["answer_ids"]), on_policy=True)
        for row in reference
    ]
    found = _likeness(reference, [scorer.score(exchange).signals for exchange in exchanges])
    assert min(found.values()) >= AT_LEAST, found


def test_behind_the_writing_the_order_is_that_of_float32_too(reference, half):
    """Keys, values and states that the writing kept are half precision; what is scored from them is not."""
    scorer, exact = SemGradScorer(half), SemGradScorer(load_model("smollm2-135m"))
    scores, wanted = [], []
    for row in reference:
        written = half.generate(
            prompt_ids=row["prompt_ids"], max_new_tokens=len(row["answer_ids"]), states_of=scorer.band_blocks
        )
        score = scorer.score_generated(written)
        assert score.path == "reused"
        scores.append(score.signals)
        exchange = Exchange(prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, on_policy=True)
        wanted.append(exact.score(exchange).signals)
    found = _likeness(wanted, scores)
    assert min(found.values()) >= AT_LEAST, found
