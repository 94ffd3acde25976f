"""What a local model says about itself."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from semgrad_guard.models import LocalModel
from semgrad_guard.models.device import evaluating, weights_digest
from tests.unit.models.conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def test_the_digest_is_equal_in_another_process() -> None:
    """A profile made on one machine must fit the same model on another."""
    code = (
        "from tests.unit.models.conftest import make_model\n"
        "from semgrad_guard.models.device import evaluating, weights_digest\n"
        "print(weights_digest(make_model()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == weights_digest(make_model())


def change_a_weight(model: Any) -> None:
    """Fine-tune a little."""
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1e-4)


def change_a_norm(model: Any) -> None:
    """Change the smallest weight there is."""
    with torch.no_grad():
        model.model.norm.weight[5] += 1e-3


def change_the_config(model: Any) -> None:
    """Change how the weights are used."""
    model.config.rms_norm_eps = 1e-3


def halve(model: nn.Module) -> None:
    """Round the weights."""
    model.half()


@pytest.mark.parametrize("change", [change_a_weight, change_a_norm, change_the_config, halve])
def test_another_model_has_another_digest(change: Callable[[Any], None]) -> None:
    """A profile must never be applied to a model that only looks the same."""
    model = make_model()
    other = copy.deepcopy(model)
    change(other)
    assert weights_digest(other) != weights_digest(model)


def test_how_a_model_was_loaded_does_not_change_its_digest() -> None:
    """Path, attention kernel and cache settings do not make another model."""
    model = make_model()
    before = weights_digest(model)
    model.config._name_or_path = "/elsewhere"
    model.config.use_cache = False
    model.config._attn_implementation = "eager"
    model.train().requires_grad_(requires_grad=False)
    assert weights_digest(model) == before


def test_weights_that_are_elsewhere_do_not_stop_the_digest() -> None:
    """Offloaded weights have no numbers here."""
    assert weights_digest(make_model().to("meta"))


class Packed(torch.Tensor):
    """A weight that can't be indexed before it is unpacked, as the quantised ones of torchao."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what needs plain numbers."""
        if function in {torch.Tensor.reshape, torch.Tensor.__getitem__}:
            raise NotImplementedError
        return super().__torch_function__(function, types, args, kwargs or {})

    def dequantize(self) -> torch.Tensor:
        """Return the plain numbers."""
        return self.as_subclass(torch.Tensor)


def test_packed_weights_are_unpacked_for_the_digest() -> None:
    """A quantised model needs a digest as any other."""
    model, other = make_model(), make_model()
    for packed in (model, other):
        weight = packed.model.layers[0].mlp.up_proj.weight
        packed.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.data.as_subclass(Packed))
    assert weights_digest(model) == weights_digest(other) == weights_digest(make_model())
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert weights_digest(model) != weights_digest(other)


def test_the_template_has_a_digest_of_its_own() -> None:
    """Scores under another template are other scores."""
    model = make_model()
    digests = {
        template: LocalModel(model, make_tokenizer(template=template), "").template_digest
        for template in (None, "{{ a }}", "{{ b }}")
    }
    assert len(set(digests.values())) == 3
    assert digests[None] == LocalModel(model, make_tokenizer(template=""), "").template_digest


@pytest.mark.parametrize(
    ("arch", "changes", "limit"),
    [("llama", {"max_position_embeddings": 77}, 77), ("gpt2", {"n_positions": 55}, 55), ("mamba", {}, None)],
)
def test_the_context_limit_is_read_from_the_config(arch: str, changes: dict[str, int], limit: int | None) -> None:
    """Architectures name it differently; a recurrent model has none."""
    sizes = {} if arch == "llama" else {"num_attention_heads": None, "max_position_embeddings": None}
    if arch == "gpt2":
        sizes = {"hidden_size": 32, "max_position_embeddings": 55}
    local = LocalModel(make_model(arch, **{**sizes, **changes}), make_tokenizer(), arch)
    assert local.context_limit == limit


def test_end_tokens_come_from_template_tokenizer_and_generation_settings() -> None:
    """Checkpoints name only some of them in each place."""
    model = make_model()
    model.generation_config.eos_token_id = [2, 7]
    assert LocalModel(model, make_tokenizer(), "").end_ids == {4, 2, 7}
    model.generation_config.eos_token_id = None
    assert LocalModel(model, make_tokenizer(template=None), "").end_ids == {2}


def test_a_model_without_padding_token_pads_with_its_end_token() -> None:
    """Padding is masked, so any token does, but there has to be one."""
    tokenizer = make_tokenizer(template=None)
    tokenizer.pad_token = None
    local = LocalModel(make_model(), tokenizer, "")
    assert local.pad_id == 2
    assert len(local.generate_batch(["a", "a longer one"], max_new_tokens=3)) == 2


def test_locks_die_with_their_model() -> None:
    """A server that loads models now and then must not keep them all."""
    import gc
    import weakref

    from semgrad_guard.models import device

    local = LocalModel(make_model(), make_tokenizer(), "")
    watched, before = weakref.ref(local.model), len(device._locks)
    del local
    gc.collect()
    assert watched() is None
    assert len(device._locks) < before


def test_four_bit_layers_are_kept_from_packing_their_weights_for_good() -> None:
    """Bitsandbytes packs them on some processors at the first run in eval mode, and no gradient passes afterwards."""
    layer = torch.nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    model = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
    with evaluating(model):
        assert layer.support_avx512bf16_for_cpu is False
    assert layer.support_avx512bf16_for_cpu is True
    assert not hasattr(model[1], "support_avx512bf16_for_cpu")
