"""The numbers of the method's published code on real exchanges of the demo model."""

from __future__ import annotations

import json

import pytest

from semgrad_guard import Exchange
from semgrad_guard.models import load_model
from semgrad_guard.scoring import SemGradScorer

COLUMNS = ("semgrad", "paragrad", "hybridgrad", "exgrad", "mean_entropy", "loss")
RELATIVE = 2e-4
"""Float32 against float32 on other kernels, with L1 norms summed in float64."""

pytestmark = pytest.mark.end_to_end


@pytest.fixture(name="reference", scope="module")
def _reference(shared_dir):
    return json.loads((shared_dir / "reference" / "semgrad_reference.json").read_text())


@pytest.fixture(name="scorer", scope="module")
def _scorer():
    return SemGradScorer(load_model("smollm2-135m", dtype="float32"))


def _exchange(row) -> Exchange:
    return Exchange(prompt_ids=tuple(row["prompt_ids"]), answer_ids=tuple(row["answer_ids"]), on_policy=True)


def test_every_score_equals_the_published_code(reference, scorer):
    """The method is only worth its name if its numbers are the published ones, in every column."""
    for row in reference["exchanges"]:
        signals = scorer.score(_exchange(row)).signals
        for column in COLUMNS:
            assert signals[column] == pytest.approx(row[column], rel=RELATIVE), (row["id"], column)
