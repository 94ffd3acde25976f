"""What is kept of a model's work: the KV cache of a prompt or an answer, and the states of some blocks."""

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
    """The parts of a `LocalModel` that writing an answer needs."""

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
        """Held by whatever runs the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model takes its token ids."""
        ...

    @property
    def context_limit(self) -> int | None:
        """How many tokens of prompt and answer it can read; `None` when nothing limits it."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ...

    @property
    def pad_id(self) -> int:
        """Token id that fills up shorter rows of a batch."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class KeptCache:
    """What a model remembers of a prompt and of the answer that it wrote.

    The tensors are shared, never written to: `prefix` gives a new cache of views, so one kept cache serves several
    scores. It holds memory in proportion to the tokens; drop it once the answer is scored.
    """

    cache: Cache
    ids: tuple[int, ...]
    """The token ids that it covers: the prompt and the answer without its last token."""
    supports_crop: bool = True
    """True when every layer remembers every token, so that the state after any earlier token can be had."""
    states: Tensor | None = None
    """Hidden states that entered some blocks, ``(block, token, hidden)``, of the last tokens that are covered."""
    states_of: tuple[nn.Module, ...] = ()
    """The blocks that they entered."""
    outputs: Tensor | None = None
    """What the output head gave for the last tokens that are covered, ``(token, vocabulary)``."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it covers."""
        return len(self.ids)

    def prefix(self, n: int) -> Cache:
        """Return a new cache of the first `n` tokens; what is appended to it leaves this one alone.

        Args:
            n: from 0 to `n_tokens`.
        """
        layers = [_first(layer, n) if isinstance(layer, DynamicLayer) else layer for layer in self.cache.layers]
        part = DynamicCache()
        part.layers = layers
        return part

    def crop(self, n: int) -> KeptCache:
        """Return what is kept of the first `n` tokens."""
        n_lost = self.n_tokens - n
        states, outputs = _without_last(self.states, n_lost), _without_last(self.outputs, n_lost)
        return replace(self, cache=self.prefix(n), ids=self.ids[:n], states=states, outputs=outputs)

    def states_from(self, start: int) -> Tensor | None:
        """Return the recorded states of the tokens from `start` on, `None` when they do not reach back so far."""
        return _last(self.states, self.n_tokens - start)

    def outputs_from(self, start: int) -> Tensor | None:
        """Return the head's outputs for the tokens from `start` on, `None` when they do not reach back so far."""
        return _last(self.outputs, self.n_tokens - start)


def full_cache(model: PreTrainedModel) -> Cache | None:
    """Return an empty cache that keeps every token in every layer, or `None` for a model that has no such cache.

    Sliding-window layers keep everything too: their window is a matter of the mask, and a cache that forgets could
    not be cropped. Recurrent and hybrid models carry a state that can't be taken back.
    """
    asked: Any = model
    if getattr(asked, "_is_stateful", False) or not asked._supports_default_dynamic_cache():  # noqa: SLF001 - no public way to ask
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
    """Tell whether a model's forward takes a cache; a wrapper that passes everything on does if what it wraps does."""
    takes = inspect.signature(model.forward).parameters
    return "past_key_values" in takes or any(one.kind is one.VAR_POSITIONAL for one in takes.values())


_CROPPABLE = {"DynamicLayer", "DummyLayer"}


def _without_last(by_token: Tensor | None, n: int) -> Tensor | None:
    """Return all but the last `n` tokens of ``(..., token, number)``, `None` when nothing is left."""
    n_left = 0 if by_token is None else by_token.shape[-2] - n
    return None if by_token is None or n_left < 1 else by_token[..., :n_left, :]


def _last(by_token: Tensor | None, n: int) -> Tensor | None:
    """Return the last `n` tokens of ``(..., token, number)``, `None` when there are fewer."""
    return None if by_token is None or not 0 < n <= by_token.shape[-2] else by_token[..., -n:, :]


def _first(layer: Any, n: int) -> DynamicLayer:
    """Return a layer that holds views of the first `n` tokens."""
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
    """Return the ids of prompts that all end together, and 1 for each token, 0 for padding."""
    longest = max(len(ids) for ids in prompts)
    padded = [[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def prompt_cache(local: ModelView, prompts: Sequence[tuple[int, ...]], kept: KeptCache | None) -> Cache | None:
    """Return the KV cache of all tokens but the last of each prompt, for which equal prompts were read only once.

    Args:
        local: the model; the caller holds its lock.
        prompts: as they come in the batch.
        kept: what the writing of an earlier answer left; a prompt that it covers is not read at all.

    Returns:
        `None` when nothing is saved by it: all prompts differ, or the model has no cache whose rows can be repeated.
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
    given = {
        "attention_mask": mask[:, :-1],
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],
        "logits_to_keep": 1,
    }
    model: Any = local.model
    takes = inspect.signature(model.forward).parameters
    chosen = {name: value for name, value in given.items() if name in takes}
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, **chosen)
    return cache


N_PROMPT_STATES = 16
"""How many of the last prompt tokens are kept: scoring looks at the end of the prompt, and a long prompt is large."""
MAX_OUTPUTS = 2**26
"""Numbers of the head's output that are kept (256 MB in float32); of a longer answer none are."""


class Recorded:
    """What enters one block, forward pass by forward pass."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._seen = list[torch.Tensor]()

    def keep(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the states that enter the block: a hook to be called before it runs."""
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        self._seen.append(state[:, -N_PROMPT_STATES:].clone())

    def states(self) -> Tensor:
        """Return all of them, ``(1, token, hidden)``."""
        return torch.cat(self._seen, dim=1)


class RecordedOutputs:
    """What the output head says of each next token."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._seen = list[torch.Tensor]()
        self._room = MAX_OUTPUTS

    def keep(self, _head: nn.Module, _args: object, output: Tensor) -> None:
        """Keep the output for the last token: a hook to be called after the head ran.

        Numbers of half precision are left to be computed anew, in single.
        """
        self._room -= output.shape[-1]
        if self._room < 0:
            self._seen.clear()
        elif torch.finfo(output.dtype).bits >= 32:
            self._seen.append(output[0, -1:].clone())

    def outputs(self) -> Tensor | None:
        """Return all of them, ``(token, vocabulary)``."""
        return torch.cat(self._seen) if self._seen else None


@contextmanager
def recorded_outputs(local: ModelView, *, wanted: bool) -> Generator[RecordedOutputs]:
    """Record the head's output for each next token while the context lasts, if that is wanted."""
    seen = RecordedOutputs()
    with ExitStack() as undo:
        head = local.model.get_output_embeddings() if wanted else None  # type: ignore[no-untyped-call]
        if head is not None:
            undo.callback(head.register_forward_hook(in_this_thread(seen.keep)).remove)
        yield seen


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Generator[list[Recorded]]:
    """Record the states that enter each block while the context lasts."""
    seen = [Recorded() for _ in blocks]
    with ExitStack() as undo:
        for block, one in zip(blocks, seen, strict=True):
            undo.callback(block.register_forward_pre_hook(in_this_thread(one.keep), with_kwargs=True).remove)
        yield seen
