"""Keep what a model computed: the KV cache of a prompt or an answer, and the hidden states of some blocks."""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from semgrad_guard.models.device import in_this_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelView(Protocol):
    """The parts of a `LocalModel` that generating an answer needs."""

    @property
    def model(self) -> PreTrainedModel:
        """The live model."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        ...

    @property
    def lock(self) -> threading.RLock:
        """Lock to hold while running the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that the model expects token ids on."""
        ...

    @property
    def context_limit(self) -> int | None:
        """Maximum number of tokens of prompt and answer; `None` if there is no limit."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ...

    @property
    def pad_id(self) -> int:
        """Token id that pads shorter rows of a batch."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class KeptCache:
    """The KV cache of a prompt and of the answer generated for it.

    The tensors are shared and never written to: `prefix` returns a new cache of views, so one kept cache serves several
    scores. Its memory grows with the number of tokens; drop it once the answer is scored.
    """

    cache: Cache
    ids: tuple[int, ...]
    """The token ids that it covers: the prompt and the answer without its last token."""
    supports_crop: bool = True
    """True if every layer keeps every token, so that the cache can be cut after any token."""
    states: Tensor | None = None
    """Inputs of some blocks, ``(block, token, hidden)``, for the last covered tokens."""
    states_of: tuple[nn.Module, ...] = ()
    """The blocks that `states` belong to."""
    outputs: Tensor | None = None
    """Outputs of the output head for the last covered tokens, ``(token, vocabulary)``."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens that it covers."""
        return len(self.ids)

    def prefix(self, n: int) -> Cache:
        """Return a new cache of the first `n` tokens; appending to it does not change this one.

        Args:
            n: from 0 to `n_tokens`.
        """
        layers = [_first(layer, n) if isinstance(layer, DynamicLayer) else layer for layer in self.cache.layers]
        part = DynamicCache()
        part.layers = layers
        return part

    def crop(self, n: int) -> KeptCache:
        """Return the kept cache, states and outputs of the first `n` tokens."""
        n_lost = self.n_tokens - n
        states, outputs = _without_last(self.states, n_lost), _without_last(self.outputs, n_lost)
        return replace(self, cache=self.prefix(n), ids=self.ids[:n], states=states, outputs=outputs)

    def states_from(self, start: int) -> Tensor | None:
        """Return the recorded states of the tokens from `start` on, or `None` if they begin later."""
        return _last(self.states, self.n_tokens - start)

    def outputs_from(self, start: int) -> Tensor | None:
        """Return the head's outputs for the tokens from `start` on, or `None` if they begin later."""
        return _last(self.outputs, self.n_tokens - start)


def full_cache(model: PreTrainedModel) -> Cache | None:
    """Return an empty cache that keeps every token in every layer, or `None` for a model that has no such cache.

    Sliding-window layers keep everything too: the mask applies their window, and a cache that drops tokens could not
    be cropped. The state of recurrent and hybrid models cannot be rewound.
    """
    untyped: Any = model
    if getattr(untyped, "_is_stateful", False) or not untyped._supports_default_dynamic_cache():  # noqa: SLF001 - not public
        return None
    if not _takes_cache(model):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    layers = [_new_layer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    if not all(type(layer).__name__ in _CROPPABLE for layer in layers):
        return None
    cache.layers = layers
    return cache


def _takes_cache(model: PreTrainedModel) -> bool:
    """Tell whether a model's forward accepts a cache; a wrapper with `*args` is assumed to pass it on."""
    parameters = inspect.signature(model.forward).parameters
    return "past_key_values" in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


_CROPPABLE = {"DynamicLayer", "DummyLayer"}


def _without_last(by_token: Tensor | None, n: int) -> Tensor | None:
    """Return all but the last `n` tokens of ``(..., token, number)``, or `None` if nothing is left."""
    n_left = 0 if by_token is None else by_token.shape[-2] - n
    return None if by_token is None or n_left < 1 else by_token[..., :n_left, :]


def _last(by_token: Tensor | None, n: int) -> Tensor | None:
    """Return the last `n` tokens of ``(..., token, number)``, or `None` if there are fewer."""
    return None if by_token is None or not 0 < n <= by_token.shape[-2] else by_token[..., -n:, :]


def _first(layer: Any, n: int) -> DynamicLayer:
    """Return a cache layer with views of the first `n` tokens."""
    part = _new_layer()
    if layer.is_initialized and n > 0:
        part.lazy_initialization(layer.keys, layer.values)
        part.keys, part.values = layer.keys[..., :n, :], layer.values[..., :n, :]
    return part


def _new_layer() -> DynamicLayer:
    make: Any = DynamicLayer
    layer: DynamicLayer = make()
    return layer


def pad_left(
    prompts: Sequence[tuple[int, ...]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of prompts, padded on the left to one length, and a mask: 1 for tokens, 0 for padding."""
    longest = max(len(ids) for ids in prompts)
    padded = [[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def prompt_cache(local: ModelView, prompts: Sequence[tuple[int, ...]], kept: KeptCache | None) -> Cache | None:
    """Return the KV cache of each prompt without its last token; equal prompts are read only once.

    Args:
        local: the model; the caller holds its lock.
        prompts: the prompts of the batch, in order.
        kept: the kept cache of an earlier answer; a prompt that it covers is not read again.

    Returns:
        `None` if this saves nothing: all prompts differ, or the model has no cache whose rows can be repeated.
    """
    different = list(dict.fromkeys(prompts))
    n = max(len(ids) for ids in different) - 1
    covered = kept is not None and kept.supports_crop and len(different) == 1 and kept.ids[:n] == different[0][:n]
    if n < 1 or not (covered or len(different) < len(prompts)):
        return None
    cache = kept.prefix(n) if kept is not None and covered else _read(local, different)
    if cache is not None:
        cache.batch_select_indices(torch.tensor([different.index(ids) for ids in prompts]))
    return cache


def _read(local: ModelView, prompts: Sequence[tuple[int, ...]]) -> Cache | None:
    cache = full_cache(local.model)
    if cache is None:
        return None
    ids, mask = pad_left(prompts, local.pad_id, local.device)
    arguments = {
        "attention_mask": mask[:, :-1],
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],
        "logits_to_keep": 1,
    }
    model: Any = local.model
    parameters = inspect.signature(model.forward).parameters
    accepted = {name: value for name, value in arguments.items() if name in parameters}
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, **accepted)
    return cache


N_PROMPT_STATES = 16
"""How many of the last prompt tokens have their states kept: scoring needs only the end, and long prompts are large."""
MAX_OUTPUTS = 2**26
"""Most numbers of the head's output that are kept (256 MB in float32); of a longer answer none are."""


class Recorded:
    """Records the inputs of one block, pass by pass."""

    def __init__(self) -> None:
        """Start with no records."""
        self._seen = list[torch.Tensor]()

    def keep(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the states that enter the block; this is a forward pre-hook."""
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        self._seen.append(state[:, -N_PROMPT_STATES:].clone())

    def states(self) -> Tensor:
        """Return all recorded states, ``(1, token, hidden)``."""
        return torch.cat(self._seen, dim=1)


class RecordedOutputs:
    """Records the output head's logits for each next token."""

    def __init__(self) -> None:
        """Start with no records."""
        self._seen = list[torch.Tensor]()
        self._room = MAX_OUTPUTS

    def keep(self, _head: nn.Module, _args: object, output: Tensor) -> None:
        """Keep the output for the last token; this is a forward hook.

        Half-precision outputs are not kept; scoring computes them again in single precision.
        """
        self._room -= output.shape[-1]
        if self._room < 0:
            self._seen.clear()
        elif torch.finfo(output.dtype).bits >= 32:
            self._seen.append(output[0, -1:].clone())

    def outputs(self) -> Tensor | None:
        """Return all recorded outputs, ``(token, vocabulary)``."""
        return torch.cat(self._seen) if self._seen else None


@contextmanager
def recorded_outputs(local: ModelView, *, wanted: bool) -> Generator[RecordedOutputs]:
    """Record the head's output for each next token inside the context, if `wanted`."""
    seen = RecordedOutputs()
    with ExitStack() as undo:
        head = local.model.get_output_embeddings() if wanted else None  # type: ignore[no-untyped-call]
        if head is not None:
            undo.callback(head.register_forward_hook(in_this_thread(seen.keep)).remove)
        yield seen


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Generator[list[Recorded]]:
    """Record the states that enter each block inside the context."""
    records = [Recorded() for _ in blocks]
    with ExitStack() as undo:
        for block, record in zip(blocks, records, strict=True):
            undo.callback(block.register_forward_pre_hook(in_this_thread(record.keep), with_kwargs=True).remove)
        yield records
