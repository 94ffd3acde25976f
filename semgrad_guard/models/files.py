"""Loading a model from safetensors files: a local folder or a Hugging Face id."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from semgrad_guard.errors import ModelError, ModelFilesError, ModelNotFoundError
from semgrad_guard.models.packaged import PACKAGED

if TYPE_CHECKING:
    from collections.abc import Generator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.models.options import LoadOptions

Loaded = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]

NO_FAULT_OF_THE_FILES = (MemoryError, torch.OutOfMemoryError)


def from_folder(folder: Path, options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a local folder.

    Raises:
        ModelFilesError: something is missing or damaged.
    """
    check_folder(folder)
    return _load(str(folder), options)


def from_hub(name: str, options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a Hugging Face id.

    Raises:
        ModelNotFoundError: neither the local cache nor the hub has it, or the hub cannot be reached.
        ModelFilesError: it has no weights in safetensors, or none that can be used.
    """
    try:
        AutoConfig.from_pretrained(name, **options.for_files())
    except OSError as error:
        looked = [
            f"the built-in names {', '.join(PACKAGED)}",
            f"the path {Path(name).absolute()}",
            "the Hugging Face cache and hub",
        ]
        advice = (
            "check the spelling, download it first, or give the path of a folder or .gguf file "
            "(HF_HUB_OFFLINE=1 and a closed network forbid downloads)"
        )
        raise ModelNotFoundError(name, looked, advice) from error
    except Exception as error:  # readers of config, tokenizer and weights raise whatever they like
        raise _unusable(name, error) from error
    return _load(name, options)


def check_folder(folder: Path) -> None:
    """Look at a model folder before transformers does, to say plainly what it lacks.

    Raises:
        ModelFilesError: no config or no weights that may be loaded.
    """
    if not (folder / "config.json").is_file():
        raise ModelFilesError(
            folder, "no config.json in it", "give the folder that `save_pretrained` wrote, or a .gguf file"
        )
    if any(folder.glob("*.safetensors")):
        return
    if any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        why, advice = "only pickled weights in it, which may run code", "convert them: load once and save_pretrained()"
    else:
        why, advice = "no weights in it", "it needs *.safetensors files: copy them there or save_pretrained() again"
    raise ModelFilesError(folder, why, advice)


@contextmanager
def quiet() -> Generator[None]:
    """Keep transformers from drawing its progress bars; put back afterwards."""
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
            source, f"no usable tokenizer ({_short(error)})", "save the tokenizer beside the weights"
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
    lacking = sorted(map(str, report.get("missing_keys", ())))
    if lacking:
        why = f"{len(lacking)} weights are missing, first {lacking[0]}: the answers would be noise"
        raise ModelFilesError(source, why, "copy the complete files again")
    return model, tokenizer


def _unusable(source: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{source} brings its own Python code: read it, and if you trust it pass trust_remote_code=True"
        )
    advice = "copy the complete files again, or use a causal language model that this version of transformers knows"
    return ModelFilesError(source, _short(error), advice)


def _not_quantised(source: str, config: object, error: Exception) -> ModelError:
    """Blame the quantisation and not the files: each kind has kernels of its own, for some machines only."""
    msg = (
        f"{source} cannot be loaded with {type(config).__name__} ({_short(error)}): use a kind of quantisation whose "
        "kernels this machine has, or leave quantization_config out, which also shows whether the files are sound"
    )
    return ModelError(msg)


def _short(error: Exception) -> str:
    """Return the first line of an error, which is what it says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
