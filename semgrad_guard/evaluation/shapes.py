"""Models of known shapes with random weights, to measure: what scoring costs depends on the shape alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import ModelSettingError

if TYPE_CHECKING:
    import torch

    from semgrad_guard.models import LocalModel

_LONGEST = 16_384
"""Context window of the models: longer than what is measured."""

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
    },
    "qwen-32b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 5_120,
        "intermediate_size": 27_648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
}
"""Configs of SmolLM2-135M, Llama-3-8B and Qwen2.5-32B, as their publishers give them."""


def random_model(
    shape: str,
    *,
    device: str | torch.device,
    dtype: str,
    n_layers: int | None = None,
    tied: bool | None = None,
    seed: int = 0,
) -> LocalModel:
    """Return a model of a known shape with random weights, and a tokenizer that can read nothing.

    Args:
        shape: one of `SHAPES`.
        device: where its weights are made.
        dtype: their number format.
        n_layers: build only so many decoder blocks.
        tied: whether the head's weight is that of the embeddings, instead of what the shape's publishers chose.
        seed: makes the weights repeatable on one device.

    Raises:
        ModelSettingError: there is no such shape, device or number format.
    """
    import torch  # heavy: loaded only to measure
    from transformers import AutoConfig, AutoModelForCausalLM

    from semgrad_guard.models import LocalModel
    from semgrad_guard.models.device import require_device
    from semgrad_guard.models.files import parse_dtype

    if shape not in SHAPES:
        raise ModelSettingError("shape", shape, ", ".join(SHAPES))
    require_device(device)
    sizes = {**SHAPES[shape], "max_position_embeddings": _LONGEST}
    if n_layers is not None:
        sizes["num_hidden_layers"] = n_layers
    if tied is not None:
        sizes["tie_word_embeddings"] = tied
    kind = str(sizes.pop("model_type"))
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM
    with torch.device(device):
        model = make.from_config(config, dtype=parse_dtype(dtype))
    model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return LocalModel(model, _tokenizer(), f"{shape} with random weights")


def _tokenizer() -> Any:
    """Return a tokenizer with nothing but special tokens; prompts are given as ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    inner = Tokenizer(WordLevel({text: number for number, text in enumerate(special.values())}))
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=inner, **special)
