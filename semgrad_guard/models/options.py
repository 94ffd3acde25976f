"""How a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from semgrad_guard.errors import ModelSettingError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What the caller of `load_model` asked for."""

    dtype: torch.dtype | None = torch.float32
    """Number format of the weights; `None` keeps that of the files."""
    device: str | torch.device | None = None
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None
    trust_remote_code: bool = False
    revision: str | None = None
    cache_dir: str | Path | None = None

    def for_model(self) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` of a model."""
        chosen = {"device_map": self.device_map, "quantization_config": self.quantization_config}
        return {
            **self.for_files(),
            **{key: value for key, value in chosen.items() if value is not None},
            "dtype": self.dtype or "auto",
            "use_safetensors": True,
        }

    def for_files(self) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` that say where files come from."""
        chosen = {"revision": self.revision, "cache_dir": self.cache_dir}
        return {
            "trust_remote_code": self.trust_remote_code,
            **{key: value for key, value in chosen.items() if value is not None},
        }


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a number format by its name; `None` for that of the files.

    Raises:
        ModelSettingError: no such format, or not one for weights.
    """
    if dtype is None or dtype == "auto":
        return None
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        allowed = "float32, bfloat16, float16, float64, or None for the format of the files"
        raise ModelSettingError("dtype", dtype, allowed)
    return known
