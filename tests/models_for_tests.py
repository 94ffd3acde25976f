"""Tiny random language models of many architectures, made on the spot: no download, the same numbers every time."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

if os.environ.get("SEMGRAD_TEST_DEVICE") == "pretend":
    import tests.pretend_device  # noqa: F401 - makes the device known
DEVICE = torch.device(os.environ.get("SEMGRAD_TEST_DEVICE", "cpu"))
"""Where the models are; `make test-gpu` and `make test-device` set it."""
N_VOCABULARY = 83
_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_WINDOW = 7
"""Sliding windows are shorter than the test prompts, so that they matter."""
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_EXTRA: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": _WINDOW},
    "mixtral": {"sliding_window": _WINDOW, **_EXPERTS},
    "phi3": {"sliding_window": _WINDOW},
    "starcoder2": {"sliding_window": _WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": _WINDOW, "max_window_layers": 2},
    "gemma2": {"sliding_window": _WINDOW},
    "gemma3_text": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING},
    "cohere2": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING},
    "olmo3": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING},
    "exaone4": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING},
    "gpt_oss": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING, **_EXPERTS},
    "gemma3n_text": {"sliding_window": _WINDOW, "layer_types": _ALTERNATING, "num_kv_shared_layers": 0},
    "llama4_text": {
        "attention_chunk_size": _WINDOW,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 1, 0],
        "intermediate_size_mlp": 48,
    },
    "qwen2_moe": {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, **_EXPERTS},
    "qwen3_moe": {"moe_intermediate_size": 24, **_EXPERTS},
    "granite": {
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 4.0,
        "attention_multiplier": 0.3,
    },
    "falcon": {"head_dim": None, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gptj": {"rotary_dim": 4, "n_head": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": _WINDOW},
    "gpt_neox": {"use_parallel_residual": True, "rotary_pct": 0.5},
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "use_mamba_kernels": False,
        **_EXPERTS,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "attn_layer_indices": [1, 3],
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "qwen3_next": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "cohere": {"logit_scale": 0.5},
}
"""What an architecture needs beside the common sizes; `None` leaves a common one out."""


def tiny_config(arch: str, **changes: Any):
    """Return the config of a tiny model."""
    sizes = {**_SIZES, **_EXTRA.get(arch, {}), **changes}
    return AutoConfig.for_model(arch, **{key: value for key, value in sizes.items() if value is not None})


def build(
    arch: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, device: str | None = None, **changes: Any
) -> PreTrainedModel:
    """Return a fresh tiny model in eval mode; `device` is where the tests' models are unless it is given."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(arch, **changes))
    spread(model, seed)
    return model.to(device=DEVICE if device is None else device, dtype=dtype).eval()


@cache
def tiny_lm(arch: str) -> PreTrainedModel:
    """Return a tiny float32 model in eval mode, shared by all tests of a run: leave no trace on it."""
    return build(arch)


def note_kept_states(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets the `states_of` of each answer that is written from now on."""
    kept: list[Any] = []
    generate = LocalModel.generate
    monkeypatch.setattr(LocalModel, "generate", lambda *a, **k: kept.append(k["states_of"]) or generate(*a, **k))
    return kept


def refuse_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no scorer be made from now on."""

    def impossible(*_: object, **__: object) -> None:
        raise GradientsUnavailableError("tiny", "test")

    monkeypatch.setattr(SemGradScorer, "__init__", impossible)


def fail_while_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scoring of written answers fail from now on with an error that is none of ours."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SemGradScorer, "score_generated", broken)


@contextmanager
def in_use(local: LocalModel) -> Iterator[None]:
    """Let another thread hold a model as long as the context lasts."""
    taken, done = threading.Event(), threading.Event()

    def use() -> None:
        with local.lock:
            taken.set()
            done.wait(timeout=60)

    other = threading.Thread(target=use)
    other.start()
    taken.wait(timeout=60)
    try:
        yield
    finally:
        done.set()
        other.join()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
N_BYTE_TOKENS = 259
_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte: it reads any text, and offsets can be counted by hand."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE({token: i for i, token in enumerate([*_SPECIAL, *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        additional_special_tokens=[_SPECIAL[1]],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def local_model(arch: str = "llama", *, template: str | None = CHATML, **changes: Any) -> LocalModel:
    """Return a fresh tiny chat model (base model without a template) that reads bytes."""
    tokenizer = byte_tokenizer(template)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    return LocalModel(build(arch, **{**sizes, **changes}), tokenizer, f"tiny-{arch}")


@torch.no_grad()
def spread(model: torch.nn.Module, seed: int) -> None:
    """Give a model's weights a size at which its predictions differ: fresh models are all but uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            weight.copy_(noise * 1.2 / weight.shape[-1] ** 0.5)
        elif "norm" in name or "ln_" in name:
            weight.add_(0.1 * noise)
        else:
            weight.add_(0.05 * noise)
