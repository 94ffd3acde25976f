"""Where a model's weights and inputs are, also when `accelerate` spreads it over devices or keeps parts on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its token ids: the place of its input embeddings, or where those are computed."""
    embeddings = model.get_input_embeddings()
    weight: Tensor | None = getattr(embeddings, "weight", None)
    if weight is not None and not weight.is_meta:
        return weight.device
    computed: Any = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return model.device if computed is None else torch.device(computed)


def offloaded_weight(model: nn.Module, name: str) -> Tensor | None:
    """Return a weight that is not in memory, by its name in the model; `None` when it is nowhere."""
    path, _, own = name.rpartition(".")
    weights: Any = next((hook.weights_map for hook in _hooks(model.get_submodule(path)) if hook.weights_map), None)
    try:
        return None if weights is None else weights[own]
    except KeyError:
        return None


def missing_weight(model: nn.Module) -> str | None:
    """Return the name of a weight that is neither in memory nor offloaded, `None` when all are there."""
    names = (name for name, weight in model.named_parameters() if weight.is_meta)
    return next((name for name in names if offloaded_weight(model, name) is None), None)


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook: Any = getattr(module, "_hf_hook", None)
    several: Any = getattr(hook, "hooks", (hook,))
    yield from (one for one in several if getattr(one, "weights_map", None) is not None)
