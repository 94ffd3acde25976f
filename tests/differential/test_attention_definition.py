"""Sums of attention against the plain definition: the whole text once, eagerly, with every weight given out."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.models import LocalModel
from semgrad_guard.scoring.attention import watched_blocks
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from semgrad_guard.scoring.prompt_parts import PromptParts
from tests.differential.test_plain_definition import CACHED, WHOLE
from tests.models_for_tests import N_BYTE_TOKENS, N_VOCABULARY, build, byte_tokenizer, tiny_lm

NONE = {"gptj", "gpt_neo", "codegen", "falcon", "bloom", "mpt", "xglm", "mamba", "mamba2", "rwkv"}
"""Architectures that compute attention in their own way, or have none."""
EXACT = 5e-5
"""Of sums over eight blocks and heads."""
ROLES = (0, 1, 2, 2, 3, 3, 0, 1, 1, 2) * 3
"""Neither, question, first and second passage: any order will do."""


def _exchanges(n_vocabulary: int = N_VOCABULARY) -> list[Tokens]:
    """Return exchanges of mixed lengths: longer than the sliding windows, and of a single token."""
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, n_vocabulary, (n,), generator=generator).tolist())

    sizes = ((30, 5), (3, 1), (14, 9))
    return [Tokens(ids(n_prompt), ids(n_answer), PromptParts(ROLES[:n_prompt], 2)) for n_prompt, n_answer in sizes]


def _spec(model) -> GradientSpec:
    n_blocks = model.config.get_text_config(decoder=True).num_hidden_layers
    return GradientSpec(upper_half(n_blocks), 5, attention=True)


@torch.no_grad()
def _plain(model, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sums ``(token, column)`` and weights on the token before ``(block, token)``, by their definition."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([tokens.prompt + tokens.answer], device=model.device)
    given = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    n_blocks, n_prompt = model.config.get_text_config(decoder=True).num_hidden_layers, len(tokens.prompt)
    blocks = watched_blocks(n_blocks, upper_half(n_blocks))
    by_block = list(given)
    if len(by_block) < n_blocks:  # hybrids give out those of their attention blocks only, of which the last is watched
        by_block = [None] * (n_blocks - 1) + by_block[-1:]
    chosen = [by_block[i][0] for i in blocks if by_block[i] is not None and by_block[i].dim() == 4]
    weights = torch.stack(chosen)[:, :, n_prompt - 1 : n_prompt + len(tokens.answer) - 1].double()
    columns = [weights[..., :1], weights[..., n_prompt:]]
    for role in range(4):
        places = [i for i in range(1, n_prompt) if ROLES[i] == role]
        columns.append(weights[..., places])
    sums = torch.stack([column.sum(dim=(0, 1, 3)) for column in columns], dim=-1)
    before = torch.diagonal(weights[..., n_prompt - 1 :], dim1=2, dim2=3)
    heads = before[..., 1:].sum(dim=-1).argmax(dim=1)
    return sums.cpu(), torch.stack([before[block, head] for block, head in enumerate(heads)]).cpu()


@pytest.mark.parametrize("arch", [arch for arch in CACHED + WHOLE if arch not in NONE])
def test_the_sums_equal_the_plain_definition(arch):
    """Neither padding, batches, windows, caps, sinks nor shared heads may change a number."""
    model, batch = tiny_lm(arch), _exchanges()
    in_batch = measure(model, batch, _spec(model))
    alone = [measure(model, [tokens], _spec(model))[0] for tokens in batch]
    plain = build(arch)
    for tokens, *both in zip(batch, alone, in_batch, strict=True):
        sums, before = _plain(plain, tokens)
        for one in both:
            assert one.attention is not None
            assert one.attention.sums == pytest.approx(sums.numpy(), abs=EXACT)
            assert one.attention.to_previous == pytest.approx(before.numpy(), abs=EXACT)


@pytest.mark.parametrize("arch", sorted(NONE))
def test_models_that_compute_attention_in_their_own_way_have_no_sums(arch):
    """Absent, not wrong; the gradients are there."""
    (found,) = measure(tiny_lm(arch), _exchanges()[:1], _spec(tiny_lm(arch)))
    assert found.attention is None
    assert found.parts[0].semgrad[0] > 0


@pytest.mark.parametrize("arch", [arch for arch in CACHED if arch not in NONE])
@pytest.mark.parametrize("n_kept", [0, 1, 2])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_behind_the_writing_the_sums_are_the_cold_ones(arch, n_kept, implementation):
    """Whichever states were kept, and however the model computes attention."""
    model = build(arch, vocab_size=N_BYTE_TOKENS)
    if implementation == "sdpa" and model.config.get_text_config(decoder=True)._attn_implementation != "sdpa":
        pytest.skip("this architecture is always eager")
    model.set_attn_implementation(implementation)
    blocks = model_parts_of(model).blocks
    spec = _spec(model)
    local = LocalModel(model, byte_tokenizer(), arch)
    kept_blocks = blocks[spec.band.first :][:n_kept]
    written = local.generate(prompt_ids=range(3, 33), max_new_tokens=9, states_of=kept_blocks)
    tokens = Tokens(written.prompt_ids, written.answer_ids, PromptParts(ROLES, 2))
    (reused,) = measure(model, [tokens], spec, kept=written.kept)
    (cold,) = measure(model, [tokens], spec)
    assert reused.path == "reused"
    assert reused.attention is not None
    assert cold.attention is not None
    assert reused.attention.sums == pytest.approx(cold.attention.sums, abs=EXACT)
    assert reused.attention.to_previous == pytest.approx(cold.attention.to_previous, abs=EXACT)
    assert reused.attention.strongest == pytest.approx(cold.attention.strongest, abs=EXACT)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2", "gemma3_text"])
def test_half_precision_is_near_the_plain_definition(arch):
    """Rounded queries and keys move a weight by some hundredths at most, never its place."""
    tokens = _exchanges()[0]
    model = build(arch, dtype=torch.bfloat16)
    (found,) = measure(model, [tokens], _spec(model))
    sums, _ = _plain(build(arch), tokens)
    assert found.attention is not None
    n_weights = found.attention.sums.sum(axis=1)
    assert n_weights == pytest.approx(sums.sum(dim=1).numpy(), rel=1e-3)
    assert found.attention.sums == pytest.approx(sums.numpy(), abs=0.05 * n_weights.max())
