"""What probes read, against the plain definition: hidden states and attention weights that the model gives out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from semgrad_guard.models import LocalModel
from semgrad_guard.scoring.attention import watched_blocks
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import STATE_DEPTH, GradientSpec, measure
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from semgrad_guard.scoring.prompt_parts import PromptParts
from tests.differential.test_attention_definition import NONE, ROLES, _exchanges
from tests.differential.test_plain_definition import CACHED, WHOLE
from tests.models_for_tests import N_BYTE_TOKENS, build, byte_tokenizer, tiny_lm

if TYPE_CHECKING:
    import numpy as np

EXACT = {"rel": 1e-4, "abs": 2e-5}


def _spec(model) -> GradientSpec:
    n_blocks = model.config.get_text_config(decoder=True).num_hidden_layers
    return GradientSpec(upper_half(n_blocks), 5, attention=True, state=True)


def _depth(model) -> int:
    """Return the block whose entering state is read."""
    n_blocks = len(model_parts_of(model).blocks)
    band = upper_half(n_blocks)
    return min(max(round(STATE_DEPTH * n_blocks), band.first), band.last)


@torch.no_grad()
def _mean_state(model, tokens: Tokens) -> np.ndarray:
    """Return the mean of the states entering the block, where the answer's tokens are predicted, by a hook."""
    seen = []
    block = model_parts_of(model).blocks[_depth(model)]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(input_ids=torch.tensor([tokens.prompt + tokens.answer], device=model.device), use_cache=False)
    hook.remove()
    first = len(tokens.prompt) - 1
    return seen[0][0, first : first + len(tokens.answer)].double().mean(dim=0).cpu().numpy()


@pytest.mark.parametrize("arch", CACHED + WHOLE)
def test_the_state_is_the_mean_where_the_answer_is_predicted(arch):
    """Of every architecture, alone and padded in a batch."""
    model, batch = tiny_lm(arch), _exchanges()
    in_batch = measure(model, batch, _spec(model))
    for tokens, padded in zip(batch, in_batch, strict=True):
        expected = _mean_state(model, tokens)
        (alone,) = measure(model, [tokens], _spec(model))
        for one in (alone, padded):
            assert one.state is not None
            assert one.state == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("arch", CACHED)
@pytest.mark.parametrize("n_kept", [0, 1, 2])
def test_behind_the_writing_the_state_is_the_cold_one(arch, n_kept):
    """Whichever states were kept."""
    model = build(arch, vocab_size=N_BYTE_TOKENS)
    spec = _spec(model)
    kept_blocks = model_parts_of(model).blocks[spec.band.first :][:n_kept]
    written = LocalModel(model, byte_tokenizer(), arch).generate(
        prompt_ids=range(3, 33), max_new_tokens=9, states_of=kept_blocks
    )
    tokens = Tokens(written.prompt_ids, written.answer_ids, PromptParts(ROLES, 2))
    (reused,) = measure(model, [tokens], spec, kept=written.kept)
    (cold,) = measure(model, [tokens], spec)
    assert reused.path == "reused"
    assert reused.state == pytest.approx(cold.state, **EXACT)
    if arch not in NONE:
        assert reused.attention is not None
        assert cold.attention is not None
        assert reused.attention.by_head == pytest.approx(cold.attention.by_head, **EXACT)


@pytest.mark.parametrize("arch", [arch for arch in CACHED + WHOLE if arch not in NONE])
def test_what_heads_read_adds_up_to_the_sums(arch):
    """Head by head, in shares of all the attention that a token has; the rest of the prompt is what is missing."""
    model, batch = tiny_lm(arch), _exchanges()
    for tokens, one in zip(batch, measure(model, batch, _spec(model)), strict=True):
        assert one.attention is not None
        by_head = one.attention.by_head.reshape(-1, 4)
        n_blocks = len(model_parts_of(model).blocks)
        n_heads = len(by_head) // len(watched_blocks(n_blocks, upper_half(n_blocks)))
        assert n_heads >= 1
        sums = one.attention.sums.sum(axis=0) / len(tokens.answer)
        grouped = [sums[0], sums[1], sums[3], sums[4:].sum()]
        assert by_head.sum(axis=0) == pytest.approx(grouped, abs=1e-4)
