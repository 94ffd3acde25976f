"""Load a local model by name, from files, or from a live object of another library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from semgrad_guard.errors import ModelError, ModelSettingError
from semgrad_guard.model_names import LANGUAGE_MODELS, check_language_model, gguf_in
from semgrad_guard.models.device import require_device
from semgrad_guard.models.files import Loaded, LoadOptions, from_folder, from_hub, parse_dtype
from semgrad_guard.models.gguf import from_gguf
from semgrad_guard.models.local import LocalModel

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_MAX_DEPTH = 8
"""How many nested wrappers around a model are unwrapped."""

ACCEPTED = (
    "a model name or path, a (model, tokenizer) pair, a transformers text-generation pipeline, "
    "a LangChain ChatHuggingFace or HuggingFacePipeline, or a LlamaIndex HuggingFaceLLM"
)


def from_live(source: object) -> LocalModel:
    """Return the model inside a live object.

    Raises:
        ModelError: it contains no local causal language model.
    """
    found = _open(source)
    if isinstance(found, LocalModel):
        return found
    model, tokenizer = found
    if not isinstance(model, nn.Module) or not hasattr(model, "generate"):
        raise _refusal(source, f"its model is a {type(model).__name__}, not a transformers model in this process")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _refusal(source, "it has no transformers tokenizer")
    untyped: Any = model
    if untyped.config.is_encoder_decoder:
        raise _refusal(source, f"{type(model).__name__} is an encoder-decoder; a score needs a decoder-only model")
    return LocalModel(untyped, tokenizer, name_of(untyped))


def name_of(model: Any) -> str:
    """Return a readable name of a live model."""
    path = str(getattr(model.config, "_name_or_path", "") or "")
    return path or type(model).__name__


def _open(source: object) -> LocalModel | tuple[object, object]:
    """Return the model and tokenizer inside all wrappers."""
    inner: object = source
    for _ in range(_MAX_DEPTH):
        if isinstance(inner, LocalModel):
            return inner
        if isinstance(inner, tuple) and len(inner) == 2:
            return inner[0], inner[1]
        inner = next((found for way in _WAYS if (found := way(inner)) is not None), None)
    raise _refusal(source, "it contains no local model")


def _refusal(source: object, why: str) -> ModelError:
    return ModelError(f"cannot use {type(source).__name__} as a local model: {why}; give {ACCEPTED}")


def _pipeline(source: Any) -> object:
    """Unwrap a transformers pipeline."""
    model, tokenizer = getattr(source, "model", None), getattr(source, "tokenizer", None)
    return (model, tokenizer) if isinstance(model, nn.Module) and tokenizer is not None else None


def _chat_langchain(source: Any) -> object:
    """Unwrap a LangChain `ChatHuggingFace`, whose tokenizer has the template that it applies."""
    inner: Any = getattr(getattr(source, "llm", None), "pipeline", None)
    if not isinstance(getattr(inner, "model", None), nn.Module):
        return None
    return inner.model, getattr(source, "tokenizer", None) or inner.tokenizer


def _llm_langchain(source: Any) -> object:
    """Unwrap a LangChain `HuggingFacePipeline`."""
    inner = getattr(source, "pipeline", None)
    return inner if isinstance(getattr(inner, "model", None), nn.Module) else None


def _llm_llama_index(source: Any) -> object:
    """Unwrap a LlamaIndex `HuggingFaceLLM`."""
    model, tokenizer = getattr(source, "_model", None), getattr(source, "_tokenizer", None)
    return (model, tokenizer) if isinstance(model, nn.Module) and tokenizer is not None else None


def _ours(source: Any) -> object:
    """Unwrap an adapter of this package, which holds a `LocalModel`."""
    local = getattr(source, "local_model", None)
    return local if isinstance(local, LocalModel) else None


def _bound(source: Any) -> object:
    """Unwrap a LangChain runnable with bound arguments."""
    return getattr(source, "bound", None)


_WAYS: tuple[Callable[[Any], object], ...] = (
    _ours,
    _pipeline,
    _chat_langchain,
    _llm_langchain,
    _llm_llama_index,
    _bound,
)


def load_model(  # noqa: PLR0913 - each passes one argument of transformers through
    source: object,
    *,
    dtype: str | torch.dtype | None = "float32",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> LocalModel:
    """Load a local causal language model, ready to generate and score answers.

    Args:
        source: `smollm2-135m` or `gemma3-270m` (models that come as Python packages), a Hugging Face id, a folder, the
            path of a .gguf file, a (model, tokenizer) pair, a transformers pipeline, a LangChain `ChatHuggingFace` or
            `HuggingFacePipeline`, a LlamaIndex `HuggingFaceLLM`, or a `LocalModel`. A live object is shared, never
            loaded again, moved or converted; the other arguments have no effect on it.
        dtype: number format of the weights; `None` or `auto` keeps that of the files (float32 for .gguf).
        device: where to put the model, for example `cuda`.
        device_map: spread it over devices instead, as `accelerate` does.
        quantization_config: a quantisation config of transformers, for weights only. Eight bits nearly keep the order
            of float32 scores; on small models, four bits do not. A profile is valid only for the weights that it was
            fitted with.
        trust_remote_code: run Python code that comes with the model's files.
        revision: branch, tag or commit of a Hugging Face id.
        cache_dir: folder for downloads and converted weights, instead of the usual ones.

    Raises:
        ModelNotFoundError: there is no model of that name.
        ModelFilesError: files are missing, damaged, pickled or of an unknown kind.
        ModelSettingError: there is no such `dtype` or `device`, or both `device` and `device_map` are given.
        ModelError: a live object contains no local causal language model.
    """
    options = LoadOptions(
        dtype=parse_dtype(dtype),
        device=device,
        device_map=device_map,
        quantization_config=quantization_config,
        trust_remote_code=trust_remote_code,
        revision=revision,
        cache_dir=cache_dir,
    )
    if not isinstance(source, str | os.PathLike):
        return from_live(source)
    if device is not None and device_map is not None:
        raise ModelSettingError("device_map", device_map, "either device or device_map, not both")
    require_device(device)
    name = str(os.fspath(source))
    name = name.lower() if name.lower() in LANGUAGE_MODELS else name
    model, tokenizer = _from_files(name, options)
    loaded: Any = model
    if options.device is not None:
        loaded.to(options.device)
    loaded.eval()
    return LocalModel(model, tokenizer, name)


def _from_files(name: str, options: LoadOptions) -> Loaded:
    check_language_model(name)
    packaged = LANGUAGE_MODELS.get(name)
    if packaged:
        return from_gguf(packaged.paths(), options)
    path = Path(name).expanduser()
    if path.is_dir():
        gguf = gguf_in(path)
        return from_gguf([gguf], options) if gguf else from_folder(path, options)
    if path.suffix.lower() == ".gguf":
        return from_gguf([path], options)
    return from_hub(name, options)
