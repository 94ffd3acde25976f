"""Finding the model inside the objects that people already have, without importing their frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from semgrad_guard.errors import ModelError
from semgrad_guard.models.local import LocalModel

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_DEPTH = 8
"""How many wrappers around a model are opened before giving up."""

ACCEPTED = (
    "a model name or path, a (model, tokenizer) pair, a transformers text-generation pipeline, "
    "a LangChain ChatHuggingFace or HuggingFacePipeline, or a LlamaIndex HuggingFaceLLM"
)


def from_live(source: object) -> LocalModel:
    """Return the model inside a live object.

    Raises:
        ModelError: there is no local causal language model in it.
    """
    found = _open(source)
    if isinstance(found, LocalModel):
        return found
    model, tokenizer = found
    if not isinstance(model, nn.Module) or not hasattr(model, "generate"):
        raise _refusal(source, f"its model is a {type(model).__name__}, not a model of transformers in this process")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _refusal(source, "it has no tokenizer of transformers")
    known: Any = model
    if known.config.is_encoder_decoder:
        raise _refusal(source, f"{type(model).__name__} is an encoder-decoder; a score needs a decoder-only model")
    return LocalModel(known, tokenizer, name_of(known))


def name_of(model: Any) -> str:
    """Return a readable name of a live model."""
    path = str(getattr(model.config, "_name_or_path", "") or "")
    return path or type(model).__name__


def _open(source: object) -> LocalModel | tuple[object, object]:
    """Return what is left when all wrappers around a model are opened."""
    inner: object = source
    for _ in range(_MAX_DEPTH):
        if isinstance(inner, LocalModel):
            return inner
        if isinstance(inner, tuple) and len(inner) == 2:
            return inner[0], inner[1]
        inner = next((found for way in _WAYS if (found := way(inner)) is not None), None)
    raise _refusal(source, "no local model was found in it")


def _refusal(source: object, why: str) -> ModelError:
    return ModelError(f"cannot use {type(source).__name__} as a local model: {why}; give {ACCEPTED}")


def _pipeline(source: Any) -> object:
    """Open a transformers pipeline."""
    model, tokenizer = getattr(source, "model", None), getattr(source, "tokenizer", None)
    return (model, tokenizer) if isinstance(model, nn.Module) and tokenizer is not None else None


def _chat_langchain(source: Any) -> object:
    """Open a LangChain `ChatHuggingFace`, whose tokenizer carries the template that it applies."""
    inner: Any = getattr(getattr(source, "llm", None), "pipeline", None)
    if not isinstance(getattr(inner, "model", None), nn.Module):
        return None
    return inner.model, getattr(source, "tokenizer", None) or inner.tokenizer


def _llm_langchain(source: Any) -> object:
    """Open a LangChain `HuggingFacePipeline`."""
    inner = getattr(source, "pipeline", None)
    return inner if isinstance(getattr(inner, "model", None), nn.Module) else None


def _llm_llama_index(source: Any) -> object:
    """Open a LlamaIndex `HuggingFaceLLM`."""
    model, tokenizer = getattr(source, "_model", None), getattr(source, "_tokenizer", None)
    return (model, tokenizer) if isinstance(model, nn.Module) and tokenizer is not None else None


def _ours(source: Any) -> object:
    """Open an adapter of this package, which holds a `LocalModel`."""
    local = getattr(source, "local_model", None)
    return local if isinstance(local, LocalModel) else None


def _bound(source: Any) -> object:
    """Open a LangChain runnable to which arguments were bound."""
    return getattr(source, "bound", None)


_WAYS: tuple[Callable[[Any], object], ...] = (
    _ours,
    _pipeline,
    _chat_langchain,
    _llm_langchain,
    _llm_llama_index,
    _bound,
)
