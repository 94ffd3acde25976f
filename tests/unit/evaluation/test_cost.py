"""The cost report, on a tiny model: what it measures, not how fast this machine is."""

from __future__ import annotations

import json

import pytest

from semgrad_guard.evaluation.cost import measure_cost, n_steps
from semgrad_guard.evaluation.peak_memory import peak_memory
from semgrad_guard.evaluation.plain_scoring import plain_score
from semgrad_guard.flow import Exchange
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model


@pytest.fixture(name="local", scope="module")
def _local():
    return local_model()


def test_every_way_is_measured_for_every_length(local):
    """A comparison that leaves a way out cannot be trusted."""
    steps = []
    report = measure_cost(local, (16, 24), (4,), repeats=1, advance=steps.append)
    ways = {"generation", "forward", "plain", "cold", "single pass", "five samples"}
    assert {(row.context, row.answer, row.way) for row in report.rows} == {(c, 4, w) for c in (16, 24) for w in ways}
    assert len(steps) == n_steps((16, 24), (4,))
    assert report.batch.speedup > 0
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["way"] == "generation"
    assert report.table().row_count == 2


def test_the_yardstick_computes_the_same_score(local):
    """A slow way that computed something else would be no yardstick."""
    scorer = SemGradScorer(local)
    prompt, answer = tuple(range(3, 23)), (30, 40, 50)
    signals = scorer.score(Exchange(prompt_ids=prompt, answer_ids=answer, on_policy=True)).signals
    semgrad, paragrad = plain_score(local, prompt, answer, scorer.position)
    assert semgrad == pytest.approx(signals["semgrad"], rel=2e-4)
    assert paragrad == pytest.approx(signals["paragrad"], rel=2e-4)


def test_peak_memory_sees_what_was_freed_again():
    """The peak is over when the work is done."""
    with peak_memory() as peak:
        size = len(bytearray(b"1") * 2**26)
    if peak.extra_mb is None:
        pytest.skip("this system does not tell its peak memory")
    assert peak.extra_mb == pytest.approx(size / 2**20, abs=16)
