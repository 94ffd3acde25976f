"""Shares of passages in the gradients by cached keys and values, against a plain definition.

The whole text runs once, with autograd, and every attention function gets the keys and values of the cached tokens as
leaves. Their gradients are taken by autograd, multiplied by the leaves, and summed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface

from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import written_out
from semgrad_guard.scoring.budget import MemoryBudget
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from semgrad_guard.scoring.prompt_parts import PromptParts
from tests.differential.test_attention_definition import NONE, ROLES, _exchanges
from tests.differential.test_plain_definition import CACHED, WHOLE
from tests.models_for_tests import N_BYTE_TOKENS, build, byte_tokenizer, tiny_lm

N_RECORDED = 5
WITH = [arch for arch in CACHED + WHOLE if arch not in NONE]
EXACT = {"rel": 5e-4, "abs": 1e-5}
WRITTEN_OUT = ["llama", "mistral", "qwen2", "qwen3"]


def _spec(model, **changes) -> GradientSpec:
    n_blocks = model.config.get_text_config(decoder=True).num_hidden_layers
    spec = GradientSpec(upper_half(n_blocks), N_RECORDED, attention=True, passages=True)
    return replace(spec, **changes)


def _with_leaves(attend, n_cached, leaves):
    """Return the attention function with the first keys and values as leaves, which are kept by module."""

    def attending(module, query, key, value, *args, **kwargs):
        own = [one[:, :, :n_cached].detach().requires_grad_() for one in (key, value)]
        leaves[id(module)] = own
        both = zip(own, (key, value), strict=True)
        key, value = (torch.cat([leaf, one[:, :, n_cached:]], dim=2) for leaf, one in both)
        return attend(module, query, key, value, *args, **kwargs)

    return attending


def _plain(model, tokens: Tokens, monkeypatch) -> tuple[float, ...]:
    """Return the share of each passage by the definition."""
    n_cached, leaves = len(tokens.prompt) - N_RECORDED, {}
    fetch = AttentionInterface.get_interface
    with monkeypatch.context() as patched:
        patched.setattr(
            AttentionInterface,
            "get_interface",
            lambda *args: _with_leaves(fetch(*args), n_cached, leaves),
        )
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        ids = torch.tensor([tokens.prompt + tokens.answer], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
    log_p = torch.log_softmax(logits[len(tokens.prompt) - 1 : -1].float(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).detach()
    loss = -(entropy * log_p.gather(-1, ids[0, len(tokens.prompt) :, None])[:, 0]).mean()
    band = model_parts_of(model).blocks[-len(upper_half(len(model_parts_of(model).blocks))) :]
    wanted = [leaf for block in band for module in block.modules() for leaf in leaves.get(id(module), ())]
    gradients = torch.autograd.grad(loss, wanted)
    by_token = torch.zeros(n_cached, dtype=torch.float64)
    for leaf, gradient in zip(wanted, gradients, strict=True):
        by_token += (leaf.detach().double() * gradient.double()).sum(dim=-1).abs().sum(dim=(0, 1)).cpu()
    total = by_token[1:].sum()
    roles = tokens.parts.roles[1:n_cached]
    return tuple(
        float(sum(by_token[i + 1] for i, role in enumerate(roles) if role == passage) / total) for passage in (2, 3)
    )


@pytest.mark.parametrize("arch", WITH)
def test_the_shares_equal_the_plain_definition(arch, monkeypatch):
    """Alone, padded in a batch, and block by block; a prompt that is not cached has none."""
    model, batch = tiny_lm(arch), _exchanges()
    in_batch = measure(model, batch, _spec(model))
    plain = build(arch)
    assert len(batch[1].prompt) < N_RECORDED
    assert in_batch[1].passage_gradients == ()
    for number in (0, 2):
        tokens = batch[number]
        expected = _plain(plain, tokens, monkeypatch)
        (alone,) = measure(model, [tokens], _spec(model))
        (by_blocks,) = measure(model, [tokens], _spec(model, budget=MemoryBudget(0, 0)))
        for one in (alone, in_batch[number], by_blocks):
            assert one.passage_gradients == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("arch", [arch for arch in CACHED if arch not in NONE])
@pytest.mark.parametrize("n_kept", [0, 1, 2])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_behind_the_writing_the_shares_are_those_of_the_plain_definition(arch, n_kept, implementation, monkeypatch):
    """Whichever states were kept, and however the model computes attention."""
    model = build(arch, vocab_size=N_BYTE_TOKENS)
    if implementation == "sdpa" and model.config.get_text_config(decoder=True)._attn_implementation != "sdpa":
        pytest.skip("this architecture is always eager")
    model.set_attn_implementation(implementation)
    kept_blocks = model_parts_of(model).blocks[_spec(model).band.first :][:n_kept]
    written = LocalModel(model, byte_tokenizer(), arch).generate(
        prompt_ids=range(3, 33), max_new_tokens=9, states_of=kept_blocks
    )
    tokens = Tokens(written.prompt_ids, written.answer_ids, PromptParts(ROLES, 2))
    (reused,) = measure(model, [tokens], _spec(model), kept=written.kept)
    assert reused.path == "reused"
    expected = _plain(build(arch, vocab_size=N_BYTE_TOKENS), tokens, monkeypatch)
    assert reused.passage_gradients == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "gpt2"])
def test_a_common_beginning_changes_no_share(arch, monkeypatch):
    """It is run once, and what differs of the prompts is recorded with the answers."""
    model, parts = tiny_lm(arch), PromptParts(ROLES, 2)
    common = tuple(range(5, 25))
    batch = [Tokens((*common, *range(n, n + 10)), (9, 7, n), parts) for n in (30, 50)]
    found = measure(model, batch, _spec(model))
    plain = build(arch)
    for tokens, one in zip(batch, found, strict=True):
        assert one.passage_gradients == pytest.approx(_plain(plain, tokens, monkeypatch), **EXACT)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_parts_of_an_answer_leave_the_shares_to_the_whole(arch):
    """Each part has a backward pass of its own through the same blocks."""
    model, tokens = tiny_lm(arch), _exchanges()[0]
    (whole,) = measure(model, [tokens], _spec(model))
    for budget in (MemoryBudget(), MemoryBudget(0, 0)):
        (by_parts,) = measure(model, [tokens], _spec(model, budget=budget), parts=[[slice(0, 1), slice(4, 5)]])
        assert by_parts.passage_gradients == pytest.approx(whole.passage_gradients, **EXACT)


@pytest.mark.parametrize("arch", WRITTEN_OUT)
def test_runs_of_a_long_answer_add_up(arch, monkeypatch):
    """A run sees only the tokens before it."""
    model = build(arch, vocab_size=N_BYTE_TOKENS, num_hidden_layers=6)
    spec = _spec(model)
    blocks = model_parts_of(model).blocks[spec.band.first :]
    written = LocalModel(model, byte_tokenizer(), arch).generate(
        prompt_ids=range(3, 33), max_new_tokens=9, states_of=blocks
    )
    tokens = Tokens(written.prompt_ids, written.answer_ids, PromptParts(ROLES, 2))
    (whole,) = measure(model, [tokens], spec, kept=written.kept)
    monkeypatch.setattr(written_out, "ATTENTION_BYTES", 4 * 3 * len(tokens) * 4 * 3)  # three tokens of four heads
    (by_runs,) = measure(model, [tokens], spec, kept=written.kept)
    assert sum(whole.passage_gradients) > 0
    assert by_runs.passage_gradients == pytest.approx(whole.passage_gradients, **EXACT)


@pytest.mark.parametrize("arch", sorted(NONE))
def test_models_that_compute_attention_in_their_own_way_have_no_shares(arch):
    """Absent, not wrong."""
    (found,) = measure(tiny_lm(arch), _exchanges()[:1], _spec(tiny_lm(arch)))
    assert found.passage_gradients == ()


@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "gpt2"])
def test_noting_them_changes_no_score(arch):
    """Neither alone nor in a batch."""
    for batch in (_exchanges()[:1], _exchanges()):
        plain = measure(tiny_lm(arch), batch, _spec(tiny_lm(arch), passages=False))
        found = measure(tiny_lm(arch), batch, _spec(tiny_lm(arch)))
        for one, other in zip(found, plain, strict=True):
            assert one.parts == other.parts
            assert other.passage_gradients == ()


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2"])
def test_half_precision_is_near(arch):
    """Rounded gradients move a share by some hundredths at most."""
    tokens = _exchanges()[0]
    (exact,) = measure(tiny_lm(arch), [tokens], _spec(tiny_lm(arch)))
    model = build(arch, dtype=torch.bfloat16)
    (found,) = measure(model, [tokens], _spec(model))
    assert found.passage_gradients == pytest.approx(exact.passage_gradients, abs=0.05)


def test_passages_that_the_prompt_does_not_show_have_none():
    """And where it shows none at all, nothing is computed."""
    model = tiny_lm("llama")
    tokens = _exchanges()[0]
    partly = replace(tokens, parts=PromptParts(tuple(min(role, 2) for role in ROLES), 2))
    (found,) = measure(model, [partly], _spec(model))
    assert found.passage_gradients[1] is None
    assert 0 < found.passage_gradients[0] < 1
    without = replace(tokens, parts=PromptParts(tuple(min(role, 1) for role in ROLES), 2))
    assert measure(model, [without], _spec(model))[0].passage_gradients == ()
