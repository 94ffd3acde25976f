"""The kept KV cache gives the model's state after any earlier token."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.models import LocalModel, cache
from semgrad_guard.models.cache import N_PROMPT_STATES
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
    kept, ids = answer.kept, torch.tensor([answer.prompt_ids + answer.answer_ids], device=local.device)
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
    local.model(torch.tensor([[7, 8, 9]], device=local.device), past_key_values=part)
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


def test_a_model_without_any_cache_still_writes() -> None:
    """The first GPT reads everything anew for each token."""
    local = LocalModel(make_model("openai-gpt", hidden_size=32), make_tokenizer(), "gpt")
    answer = local.generate(PROMPT, max_new_tokens=3)
    assert len(answer.answer_ids) == 3
    assert answer.kept is None


def test_a_caller_who_chose_a_static_cache_keeps_it(local: LocalModel) -> None:
    """It can't be cropped, so nothing is kept, and the answer is the same."""
    expected = local.generate(PROMPT, max_new_tokens=3)
    local.model.generation_config.cache_implementation = "static"
    answer = local.generate(PROMPT, max_new_tokens=3)
    assert answer.kept is None
    assert answer.answer_ids == expected.answer_ids


def test_nothing_is_kept_unless_asked(local: LocalModel) -> None:
    """A cache holds memory in proportion to the context."""
    assert local.generate(PROMPT, max_new_tokens=3, keep=False).kept is None


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_the_states_entering_a_block_are_those_of_one_whole_pass(arch: str) -> None:
    """Scoring starts from them instead of running the lower blocks again."""
    local = LocalModel(make_model(arch), make_tokenizer(), arch)
    blocks = next(module for module in local.model.modules() if isinstance(module, torch.nn.ModuleList))
    answer = local.generate(PROMPT, max_new_tokens=6, states_of=[blocks[1]])
    assert answer.kept is not None
    with torch.no_grad():
        whole = local.model(
            torch.tensor([answer.kept.ids], device=local.device), output_hidden_states=True
        ).hidden_states[1]
    start = len(answer.prompt_ids) - 3
    found = answer.kept.states_from(start)
    assert found is not None
    assert torch.allclose(found, whole[:, start:], atol=1e-5)


def test_states_reach_back_a_few_prompt_tokens_only(local: LocalModel) -> None:
    """A long prompt's states would be large, and scoring looks at its end."""
    kept = local.generate(PROMPT * 2, max_new_tokens=4, states_of=[local.model.model.layers[1]]).kept
    assert kept is not None
    reach = len(kept.ids) - 3 - N_PROMPT_STATES
    assert kept.states_from(reach) is not None
    assert kept.states_from(reach - 1) is None
    assert not local.model.model.layers[1]._forward_pre_hooks


def test_cropping_takes_the_states_along(local: LocalModel) -> None:
    """They stay those of the last tokens that are covered."""
    kept = local.generate(PROMPT, max_new_tokens=6, states_of=[local.model.model.layers[1]]).kept
    assert kept is not None
    start, end = kept.n_tokens - 4, kept.n_tokens - 2
    whole, part = kept.states_from(start), kept.crop(end).states_from(start)
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[:, :2])
    assert kept.crop(2).states is None


def test_without_states_asked_there_are_none(local: LocalModel) -> None:
    """Only scoring knows which block it begins with."""
    kept = local.generate(PROMPT, max_new_tokens=3).kept
    assert kept is not None
    assert kept.states_from(kept.n_tokens - 1) is None


# --- outputs of the head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_heads_outputs_are_those_that_chose_the_answer(arch: str) -> None:
    """Scoring takes them instead of running the head again."""
    local = LocalModel(make_model(arch), make_tokenizer(), arch)
    blocks = next(module for module in local.model.modules() if isinstance(module, torch.nn.ModuleList))
    answer = local.generate(PROMPT, max_new_tokens=6, states_of=[blocks[1]])
    assert answer.kept is not None
    start = len(answer.prompt_ids) - 1
    outputs = answer.kept.outputs_from(start)
    assert outputs is not None
    assert tuple(outputs.argmax(dim=1).tolist()) == answer.answer_ids
    with torch.no_grad():
        whole = local.model(torch.tensor([answer.kept.ids], device=local.device)).logits[0, start:]
    assert torch.allclose(outputs, whole, atol=1e-4)
    assert answer.kept.outputs_from(start - 1) is None
    part = answer.kept.crop(start + 2).outputs_from(start)
    assert part is not None
    assert torch.equal(part, outputs[:2])
    assert not local.model.lm_head._forward_hooks


def test_too_many_outputs_are_not_kept(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long answer over a large vocabulary would fill the memory; part of it would serve nobody."""
    layer = local.model.model.layers[1]
    n_vocabulary = local.model.config.vocab_size
    monkeypatch.setattr(cache, "MAX_OUTPUTS", 4 * n_vocabulary)
    outputs = []
    for n in (4, 5):
        kept = local.generate(PROMPT, max_new_tokens=n, states_of=[layer]).kept
        assert kept is not None
        outputs.append(kept.outputs)
    assert outputs[0] is not None
    assert outputs[0].shape == (4, n_vocabulary)
    assert outputs[1] is None


def test_half_precision_outputs_are_not_kept() -> None:
    """Scoring computes the head in single precision."""
    local = LocalModel(make_model("llama").bfloat16(), make_tokenizer(), "llama")
    kept = local.generate(PROMPT, max_new_tokens=3, states_of=[local.model.model.layers[1]]).kept
    assert kept is not None
    assert kept.states is not None
    assert kept.outputs is None
