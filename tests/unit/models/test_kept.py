"""The kept KV cache gives the model's state after any earlier token."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.models import LocalModel
from tests.unit.models.conftest import make_model, make_tokenizer

PROMPT = "red, green, blue: what is the answer to the question in the passage about colours"
WINDOW = {"sliding_window": 4}


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("mistral", WINDOW),
        ("gemma3_text", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_going_on_from_a_prefix_equals_reading_everything(arch: str, changes: dict[str, object]) -> None:
    """Also where layers look back only a few tokens: the cache must not have forgotten what came before."""
    local = LocalModel(make_model(arch, **changes), make_tokenizer(), arch)
    answer = local.generate(PROMPT, max_new_tokens=10)
    kept, ids = answer.kept, torch.tensor([answer.prompt_ids + answer.answer_ids])
    assert kept is not None
    start = len(answer.prompt_ids) - 3
    with torch.no_grad():
        whole = local.model(ids, use_cache=False).logits[:, start:]
        rest = local.model(ids[:, start:], past_key_values=kept.prefix(start)).logits
    assert torch.allclose(rest, whole, atol=1e-4, rtol=1e-4)


def test_it_covers_all_but_the_last_token(local: LocalModel) -> None:
    """The last token was written but never read."""
    answer = local.generate(PROMPT, max_new_tokens=5)
    assert answer.kept is not None
    assert answer.kept.ids == (answer.prompt_ids + answer.answer_ids)[:-1]
    assert answer.kept.n_tokens == answer.kept.cache.get_seq_length()


def test_a_prefix_can_grow_without_touching_what_is_kept(local: LocalModel) -> None:
    """One kept cache serves several scores: of sentences, of positions."""
    kept = local.generate(PROMPT, max_new_tokens=5).kept
    assert kept is not None
    before = [layer.keys.clone() for layer in kept.cache.layers]
    part = kept.prefix(4)
    local.model(torch.tensor([[7, 8, 9]]), past_key_values=part)
    assert part.get_seq_length() == 7
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(kept.cache.layers, before, strict=True))


def test_cropping_keeps_the_first_tokens(local: LocalModel) -> None:
    """The ids stay in step with the tensors."""
    kept = local.generate(PROMPT, max_new_tokens=5).kept
    assert kept is not None
    cropped = kept.crop(6)
    assert cropped.ids == kept.ids[:6]
    assert cropped.cache.get_seq_length() == cropped.n_tokens == 6


def test_an_empty_prefix_is_an_empty_cache(local: LocalModel) -> None:
    """A position at the very start of the prompt has nothing before it."""
    kept = local.generate(PROMPT, max_new_tokens=5).kept
    assert kept is not None
    assert kept.prefix(0).get_seq_length() == 0


def test_a_recurrent_model_keeps_nothing() -> None:
    """Its state can't be taken back to an earlier token; scoring then reads the prompt again."""
    local = LocalModel(make_model("mamba", num_attention_heads=None), make_tokenizer(), "mamba")
    assert local.generate(PROMPT, max_new_tokens=3).kept is None


def test_nothing_is_kept_unless_asked(local: LocalModel) -> None:
    """A cache holds memory in proportion to the context."""
    assert local.generate(PROMPT, max_new_tokens=3, keep=False).kept is None
