"""Tiny models with a tokenizer of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from semgrad_guard.models import LocalModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|start|>", "<|end|>"]
_TEXTS = [
    "the answer to the question is in the passage",
    "a passage about colours: red, green, blue. An answer",
]


def make_tokenizer(
    *, template: str | None = TEMPLATE, bos: bool = True, prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that reads any text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_TEXTS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **names,
        additional_special_tokens=SPECIAL[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(arch: str = "llama", **changes: Any) -> PreTrainedModel:
    """Return a random two-layer model whose vocabulary is the tokenizer's."""
    sizes: dict[str, Any] = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **{**sizes, **changes}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # fresh models are all but uniform: every answer would be one token over and over
                weight.mul_(1.2 / (weight.std() * weight.shape[-1] ** 0.5))
    return model.eval()


class Scripted:
    """Makes a model write given token ids: the output head's numbers are replaced step by step."""

    def __init__(self, model: PreTrainedModel, ids: list[int]) -> None:
        """Hook the model's output head."""
        self._left = list(ids)
        self.handle = model.get_output_embeddings().register_forward_hook(self._replace)

    def _replace(self, _module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        token = self._left.pop(0) if self._left else 2
        scores = torch.full_like(output, -50.0)
        scores[..., token] = 50.0
        return scores


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a chat model's tokenizer."""
    return make_tokenizer()


@pytest.fixture(name="local")
def _local(tokenizer: PreTrainedTokenizerFast) -> LocalModel:
    """Return a tiny chat model."""
    return LocalModel(make_model(), tokenizer, "tiny")


@pytest.fixture(name="base")
def _base() -> LocalModel:
    """Return a tiny base model: no template."""
    return LocalModel(make_model(), make_tokenizer(template=None), "tiny-base")


@pytest.fixture(name="writes")
def _writes(local: LocalModel) -> Callable[[str | list[int]], LocalModel]:
    """Return a function that makes the tiny chat model write a given text, then end its turn."""

    def writes(text: str | list[int]) -> LocalModel:
        ids = local.tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else text
        Scripted(local.model, [*ids, 4])
        return local

    return writes
