"""The KV cache of a generation, kept so that scoring need not read the prompt again."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


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
