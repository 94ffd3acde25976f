"""A cheap and stable digest of a model: its architecture and a sample of every weight."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from semgrad_guard.models.placement import offloaded_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 64
"""How many entries of each weight are looked at."""
_PASSING = {"_name_or_path", "_attn_implementation", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Config keys that say how a model was loaded, not what it is."""


def weights_digest(model: PreTrainedModel) -> str:
    """Return a digest of the config and of evenly spaced entries of every weight.

    It is the same in every process and for every copy of the same files. Other weights of the same architecture, a
    fine-tuned or quantised copy, and another number format give another digest.
    """
    digest = hashlib.sha256(_config_text(model).encode())
    for name, weight in sorted(model.state_dict(keep_vars=False).items()):
        digest.update(f"{name}{tuple(getattr(weight, 'shape', ()))}".encode())
        offloaded = offloaded_weight(model, name) if getattr(weight, "is_meta", False) else None
        digest.update(_sample(weight if offloaded is None else offloaded))
    return digest.hexdigest()


def _config_text(model: PreTrainedModel) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _PASSING}
    return json.dumps(config, sort_keys=True, default=str)


def _sample(weight: object) -> bytes:
    """Return a few entries of a weight as bytes; nothing for one that holds no numbers."""
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.numel():
        return b""
    flat = _unpacked(weight.detach()).reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
    return flat[places.to(flat.device)].to("cpu", torch.float32).numpy().tobytes()


def _unpacked(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as plain numbers; quantised ones of torchao are tensors that can't be indexed."""
    return weight if type(weight) in {torch.Tensor, torch.nn.Parameter} else weight.dequantize()
