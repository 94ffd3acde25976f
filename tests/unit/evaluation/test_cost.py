"""The cost report, on a tiny model: what it measures, not how fast this machine is."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
from torch.profiler import ProfilerActivity, profile

from semgrad_guard.evaluation.cost import measure_cost, n_steps, peak_memory, plain_score
from semgrad_guard.evaluation.cost_report import BatchCost, CostReport, CostRow
from semgrad_guard.flow import Exchange
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from semgrad_guard.evaluation.cost_report import Way


@pytest.fixture(name="local", scope="module")
def _local():
    return local_model()


def test_every_way_is_measured_for_every_length(local):
    """A comparison that leaves a way out cannot be trusted."""
    steps = []
    report = measure_cost(local, (16, 24), (4,), repeats=1, advance=steps.append)
    ways = {"generation", "answer forward", "forward", "plain", "cold", "single pass", "SemGrad alone", "five samples"}
    assert {(row.context, row.answer, row.way) for row in report.rows} == {(c, 4, w) for c in (16, 24) for w in ways}
    assert len(steps) == n_steps((16, 24), (4,))
    assert report.batch.speedup > 0
    written = json.loads(json.dumps(report.to_json()))
    assert written["rows"][0]["way"] == "generation"
    assert report.table().row_count == 2
    assert [t["what"] for t in written["targets"]] == [t.what for t in report.targets()]
    assert report.targets_table().row_count == len(report.targets())


def _report(single: float, growth: float) -> CostReport:
    """Return a report of numbers that are easy to divide; only the single pass and its memory differ."""
    seconds: dict[Way, float] = {
        "generation": 1.0,
        "answer forward": 0.04,
        "single pass": single,
        "SemGrad alone": single,
        "forward": 0.2,
        "cold": 0.25,
        "plain": 0.75,
    }
    rows = [
        CostRow(context, 32, way, value, value, growth if context == 2048 else 0.0)
        for context in (512, 2048)
        for way, value in seconds.items()
    ]
    return CostReport("tiny", "float32", 1, "2", tuple(rows), BatchCost(16, 5.0, 2.0))


def test_targets_are_judged_and_bounded():
    """A reader must see at once what was missed, and what no exact way could reach."""
    good, bad = ({t.what: t for t in _report(*numbers).targets()} for numbers in ((0.1, 32.0), (0.11, 33.0)))
    single, memory = "512 + 32: single pass, share of generation", "single pass, extra MiB at the longest context less"
    assert [good[single].met, bad[single].met] == [True, False]
    growth = [next(t for what, t in found.items() if what.startswith(memory)) for found in (good, bad)]
    assert [t.met for t in growth] == [True, False]
    assert good["512 + 32: limit: one forward of the answer's tokens, share of generation"].value == 0.04
    assert good["512 + 32: plain definition / cold path"].met is False
    assert good["512 + 32: limit: plain definition / one forward of the whole text"].value == pytest.approx(3.75)
    assert good["2048 + 32: cold path, forward passes of the whole text"].met is False
    assert good["512 + 32: cold path, forward passes of the whole text"].met is None
    assert good["batch of short exchanges, times the throughput of one by one"].met is True


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


def _peak_bytes(seen: profile) -> int:
    """Return the most bytes of tensors that were held at a time."""
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    memory: list[Any] = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held: accumulate[int] = accumulate(event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns()))
    return max(held)


def test_memory_of_the_single_pass_grows_with_the_context_by_one_block_only():
    """What was read stays where the writing put it; one block at a time looks at all of it, however deep the model.

    One block's attention holds its keys and values four times over: joined with the answer's, repeated for the query
    heads, and the gradients by both; recording the whole band would hold them for each of its blocks.
    """
    n_blocks, n_kv_heads, head_dim, n_bytes = 16, 2, 8, 4
    local = local_model(max_position_embeddings=4096, num_hidden_layers=n_blocks)
    scorer = SemGradScorer(local)
    peaks = []
    for n in (64, 2048):
        written = local.generate(prompt_ids=[7] * n, max_new_tokens=8, states_of=scorer.band_blocks)
        scorer.score_generated(written)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            scorer.score_generated(written)
        peaks.append(_peak_bytes(seen))
    one_block = 2 * n_kv_heads * head_dim * n_bytes * (2048 - 64)
    assert peaks[1] - peaks[0] < n_blocks // 2 * one_block
