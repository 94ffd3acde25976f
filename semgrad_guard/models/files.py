"""Model files: find them, load them, and compute a digest of their content."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from semgrad_guard.errors import ModelError, ModelFilesError, ModelNotFoundError, ModelSettingError
from semgrad_guard.model_names import LANGUAGE_MODELS, check_model_folder

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of `load_model`."""

    dtype: torch.dtype | None = torch.float32
    """Number format of the weights; `None` keeps that of the files."""
    device: str | torch.device | None = None
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None
    trust_remote_code: bool = False
    revision: str | None = None
    cache_dir: str | Path | None = None

    def for_model(self) -> dict[str, Any]:
        """Return the arguments for a model's `from_pretrained`."""
        optional = {"device_map": self.device_map, "quantization_config": self.quantization_config}
        return {
            **self.for_files(),
            **{key: value for key, value in optional.items() if value is not None},
            "dtype": self.dtype or "auto",
            "use_safetensors": True,
        }

    def for_files(self) -> dict[str, Any]:
        """Return those arguments for `from_pretrained` that say where files come from."""
        optional = {"revision": self.revision, "cache_dir": self.cache_dir}
        return {
            "trust_remote_code": self.trust_remote_code,
            **{key: value for key, value in optional.items() if value is not None},
        }


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a number format by its name, or `None` to keep that of the files.

    Raises:
        ModelSettingError: there is no such format, or it cannot hold weights.
    """
    if dtype is None or dtype == "auto":
        return None
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        allowed = "float32, bfloat16, float16, float64, or None for the format of the files"
        raise ModelSettingError("dtype", dtype, allowed)
    return parsed


_BLOCK = 32 * 1024 * 1024


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest of the contents of files, in order: the SHA-256 of the SHA-256 digests of all blocks.

    Raises:
        OSError: a file cannot be read.
    """
    blocks = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), _BLOCK)]
    # hashing and reading release the interpreter lock, so threads use every core
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(_block_digest, blocks))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _block_digest(block: tuple[Path, int]) -> bytes:
    path, start = block
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(_BLOCK)).digest()


Loaded = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]

NO_FAULT_OF_THE_FILES = (MemoryError, torch.OutOfMemoryError)


def from_folder(folder: Path, options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a local folder.

    Raises:
        ModelFilesError: something is missing or damaged.
    """
    check_model_folder(folder)
    return _load(str(folder), options)


def from_hub(name: str, options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a Hugging Face id.

    Raises:
        ModelNotFoundError: neither the local cache nor the hub has it, or the hub cannot be reached.
        ModelFilesError: it has no usable weights in safetensors.
    """
    try:
        AutoConfig.from_pretrained(name, **options.for_files())
    except OSError as error:
        looked = [
            f"the built-in names {', '.join(LANGUAGE_MODELS)}",
            f"the path {Path(name).absolute()}",
            "the Hugging Face cache and hub",
        ]
        advice = (
            "check the spelling, download it first, or give the path of a folder or .gguf file "
            "(HF_HUB_OFFLINE=1 or a closed network prevents downloads)"
        )
        raise ModelNotFoundError(name, looked, advice) from error
    except Exception as error:  # readers of config, tokenizer and weights raise errors of all types
        raise _unusable(name, error) from error
    return _load(name, options)


@contextmanager
def quiet() -> Generator[None]:
    """Hide the progress bars of transformers inside the context."""
    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _load(source: str, options: LoadOptions) -> Loaded:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, **options.for_files())
    except Exception as error:  # the tokenizers library raises bare ones
        raise ModelFilesError(
            source, f"no usable tokenizer ({_short(error)})", "save the tokenizer in the same folder as the weights"
        ) from error
    try:
        with quiet():
            found = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options.for_model())
    except NO_FAULT_OF_THE_FILES:
        raise
    except ImportError as error:
        msg = f"{source} needs a package that is not installed: {_short(error)}"
        raise ModelError(msg) from error
    except Exception as error:  # as above
        if options.quantization_config is not None:
            raise _not_quantised(source, options.quantization_config, error) from error
        raise _unusable(source, error) from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", found)
    missing = sorted(map(str, report.get("missing_keys", ())))
    if missing:
        why = f"{len(missing)} weights are missing, first {missing[0]}: the answers would be noise"
        raise ModelFilesError(source, why, "copy the complete files again")
    return model, tokenizer


def _unusable(source: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{source} contains its own Python code: read it, and if you trust it pass trust_remote_code=True"
        )
    advice = "copy the complete files again, or use a causal language model that this version of transformers knows"
    return ModelFilesError(source, _short(error), advice)


def _not_quantised(source: str, config: object, error: Exception) -> ModelError:
    """Return an error that blames the quantisation, not the files: its kernels exist for some machines only."""
    msg = (
        f"{source} cannot be loaded with {type(config).__name__} ({_short(error)}): use a quantisation that this "
        "machine supports, or leave out quantization_config, which also shows whether the files are intact"
    )
    return ModelError(msg)


def _short(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
