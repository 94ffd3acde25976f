"""What a score asks of an accelerator, counted on a processor with the memory budget of an accelerator."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring import measure as measure_module
from semgrad_guard.scoring.budget import MemoryBudget, budget_for
from semgrad_guard.scoring.head import LogitMap, OutputHead, run_head
from tests.device_work import counted
from tests.models_for_tests import local_model

ROOMY = partial(SemGradScorer, max_extra_mb=10_000.0)
MOST_WAITS = 10
MOST_BY_BLOCK = 60
MOST_IN_HEAD = 60


LASTING = 1
"""Seed of models none of which ends its answer early."""


def written(local, scorer, n_answer, n_prompt=57):
    """Return an answer and the exchange that it makes, once everything about the model was looked up."""
    generated = local.generate(prompt_ids=range(3, 3 + n_prompt), max_new_tokens=n_answer, states_of=scorer.band_blocks)
    assert len(generated.answer_ids) == n_answer
    scorer.score_generated(generated)
    exchange = Exchange(
        prompt_ids=generated.prompt_ids, answer_ids=generated.answer_ids, answer=generated.text, on_policy=True
    )
    scorer.score(exchange)
    return generated, exchange


def work_of(arch="llama", n_answer=8, n_prompt=57, **sizes):
    """Return what a score behind the writing and a cold one ask for."""
    windows = {"use_sliding_window": False} if arch == "qwen2" else {}  # each kind of window takes masks of its own
    local = local_model(arch, eos_token_id=None, seed=LASTING, **windows, **sizes)
    scorer = ROOMY(local)
    generated, exchange = written(local, scorer, n_answer, n_prompt)
    with counted() as behind:
        assert scorer.score_generated(generated).path == "reused"
    with counted() as cold:
        assert scorer.score(exchange).path == "cold"
    return behind, cold


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_waits_are_few_and_independent_of_vocabulary_depth_and_length(arch, dtype):
    """Each wait lets the device run dry."""
    grid = [{}, {"vocab_size": 5000}, {"num_hidden_layers": 10}, {"n_answer": 60}, {"n_prompt": 200}]
    found = [work_of(arch, dtype=dtype, **sizes) for sizes in grid]
    for behind, cold in found:
        assert len(behind.waits) <= MOST_WAITS, behind.waits
        assert len(cold.waits) <= MOST_WAITS, cold.waits
    assert len({len(behind.waits) for behind, _ in found}) == 1
    assert len({len(cold.waits) for _, cold in found}) == 1


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_grow_with_the_blocks_of_the_band_only(arch, dtype):
    """A launch takes longer than the arithmetic of a short answer."""
    base, _ = work_of(arch, dtype=dtype, num_hidden_layers=4)
    deeper, _ = work_of(arch, dtype=dtype, num_hidden_layers=12)
    assert by_block(base, deeper) <= MOST_BY_BLOCK
    for sizes in ({"vocab_size": 5000}, {"n_answer": 60}, {"n_prompt": 200}):
        assert len(work_of(arch, dtype=dtype, num_hidden_layers=4, **sizes)[0].operations) == len(base.operations)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, MOST_BY_BLOCK + 1), (torch.bfloat16, MOST_BY_BLOCK + 5)])
def test_norms_of_heads_take_eleven_operations_a_block(dtype, most):
    """Those of queries and keys go together."""
    with_them, without = (
        by_block(*(work_of(arch, dtype=dtype, num_hidden_layers=n)[0] for n in (4, 12))) for arch in ("qwen3", "llama")
    )
    assert with_them <= most
    assert with_them - without == 11


def by_block(base, deeper):
    """Return the operations of a block, from a score with a band of 2 blocks and one with 6."""
    return (len(deeper.operations) - len(base.operations)) / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_by_passage_are_five_operations_a_block(dtype):
    """A product and a sum for keys and for values, and the scaling; and no wait."""
    passage = Passage("The tower was built in 1889 by Eiffel.")
    prompt = (Message("user", f"{passage.text}\n\nWho built it?"),)
    found = []
    for n_layers, with_passages in ((4, True), (12, True), (4, False), (12, False)):
        local = local_model(eos_token_id=None, dtype=dtype, num_hidden_layers=n_layers)
        scorer = ROOMY(local, passage_gradients=with_passages)
        exchange = Exchange(prompt=prompt, passages=(passage,))
        generated = local.generate(prompt, max_new_tokens=8, states_of=scorer.band_blocks)
        scorer.score_generated(generated, exchange)
        with counted() as work:
            score = scorer.score_generated(generated, exchange)
        assert bool(score.passage_gradients) == with_passages
        assert len(work.waits) <= MOST_WAITS
        found.append(work)
    with_them, without = by_block(*found[:2]), by_block(*found[2:])
    assert with_them <= MOST_BY_BLOCK
    assert with_them - without == 5


def test_a_batch_waits_no_more_than_one_exchange():
    """Sixteen answers must not be read from the device one by one."""
    local = local_model()
    scorer = ROOMY(local)
    batch = [Exchange(prompt_ids=tuple(range(5, 30 + n)), answer_ids=(5, 6, 7), on_policy=True) for n in range(16)]
    scorer.score_batch(batch)
    with counted() as work:
        scorer.score_batch(batch)
    assert len(work.waits) <= MOST_WAITS, work.waits


@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.5, 20.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_a_fixed_number_of_operations_where_one_block_fits(logit_map, dtype):
    """Blocks for a processor's cache made it thousands."""
    counts = set()
    for n_vocabulary, n_tokens in ((300, 4), (9000, 4), (9000, 70)):
        linear = torch.nn.Linear(16, n_vocabulary, bias=False, dtype=dtype).requires_grad_(requires_grad=False)
        head = OutputHead(linear, logit_map, n_vocabulary)
        z, targets = torch.randn(n_tokens, 16), torch.randint(n_vocabulary, (n_tokens,))
        with counted() as work:
            run_head(head, z, targets, [slice(0, n_tokens)], budget=MemoryBudget(2**30))
        assert not work.waits
        counts.add(len(work.operations))
    assert len(counts) == 1
    assert counts.pop() <= MOST_IN_HEAD


def test_the_count_sees_a_wait_that_comes_back():
    """A counter that sees nothing would hold every promise."""
    values = torch.arange(4.0)
    with counted() as work:
        values[values > 1]
        values.max().item()
        values.tolist()
        torch.tensor([1.0])
        values.nonzero()
    assert work.waits == ["index", "_local_scalar_dense", "tolist", "tensor", "nonzero"]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("max_extra_mb", [0.0, 0.2, 10_000.0])
def test_no_number_depends_on_the_memory(arch, max_extra_mb):
    """One block of the vocabulary or many, the band as a whole or block by block: the same score."""
    local = local_model(arch, num_hidden_layers=8, vocab_size=1200)
    usual, other = SemGradScorer(local), SemGradScorer(local, max_extra_mb=max_extra_mb)
    generated, exchange = written(local, usual, 8)
    expected = usual.score_generated(generated).signals
    assert other.score_generated(generated).signals == pytest.approx(expected, rel=2e-4)
    assert other.score(exchange).signals == pytest.approx(expected, rel=2e-4)


def test_a_processor_keeps_its_own_sizes_and_an_accelerator_has_a_usual_budget():
    """Blocks that fit the caches are the fastest on a processor; on an accelerator few large ones are."""
    assert budget_for(torch.device("cpu"), None).extra_bytes is None
    assert budget_for(torch.device("cuda"), None).extra_bytes == 512 * 2**20
    assert budget_for(torch.device("cpu"), 3.0).extra_bytes == 3 * 2**20


@pytest.mark.parametrize(("extra_mb", "n_blocks"), [(0.0, 1), (1e4, 8)])
def test_the_budget_decides_how_much_is_recorded_together(extra_mb, n_blocks, monkeypatch):
    """A band of eight blocks is recorded whole where it fits, else by one block at a time."""
    local = local_model("gpt2", num_hidden_layers=16, eos_token_id=None)
    scorer, noted = SemGradScorer(local, max_extra_mb=extra_mb), []
    generated, _ = written(local, scorer, 6)
    real = measure_module.record_from_cache

    def noting(*args, **kwargs):
        noted.append(real(*args, **kwargs))
        return noted[-1]

    monkeypatch.setattr(measure_module, "record_from_cache", noting)
    scorer.score_generated(generated)
    assert getattr(noted[0], "n_together", 8) == n_blocks
