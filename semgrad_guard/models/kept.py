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
        n_states = 0 if self.states is None else self.states.shape[1] - (self.n_tokens - n)
        states = None if self.states is None or n_states < 1 else self.states[:, :n_states]
        return replace(self, cache=self.prefix(n), ids=self.ids[:n], states=states)

    def states_from(self, start: int) -> Tensor | None:
        """Return the recorded states of the tokens from `start` on, `None` when they do not reach back so far."""
        n = self.n_tokens - start
        return None if self.states is None or not 0 < n <= self.states.shape[1] else self.states[:, -n:]


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
