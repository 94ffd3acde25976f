"""Recorded forward passes and their gradients by the band's hidden states.

Shapes, for the whole package: `h[l]` is the state entering decoder block `l` (`hidden_states[l]` of transformers),
``(exchange, token, hidden)``; `z` is the input of the output head, same shape. Only the tokens from the earliest
recorded position on, and only the blocks from the band's first on, are recorded.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.models.device import widest_float
from semgrad_guard.scoring.attention import unwatched
from semgrad_guard.scoring.budget import unhurried
from semgrad_guard.scoring.model_lease import hooked, passed_over, standing_in, wide_states

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from semgrad_guard.scoring.layout import Segment
    from semgrad_guard.scoring.model_parts import Band, ModelParts


class Recorded(Protocol):
    """A recorded forward pass, from which the gradients by the band's states can be computed."""

    @property
    def z(self) -> Tensor:
        """The input of the output head."""
        ...

    def state(self, number: int) -> Tensor:
        """Return the state that enters a block, counted from the band's first, ``(exchange, token, hidden)``."""
        ...

    def gradients(
        self, at_head: Tensor, *, keep: bool = False, check: Callable[[], None] = unhurried
    ) -> tuple[Tensor, ...]:
        """Return the gradients by the states of the band, one for each block.

        Args:
            at_head: gradient by `z`.
            keep: allow another call.
            check: called at every block; what it raises ends the work.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recording:
    """A forward pass whose whole band is recorded."""

    states: tuple[Tensor, ...]
    """`h[l]` for each block of the band."""
    z: Tensor

    def state(self, number: int) -> Tensor:
        """Return the state that enters a block of the band."""
        return self.states[number].detach()

    def gradients(
        self, at_head: Tensor, *, keep: bool = False, check: Callable[[], None] = unhurried
    ) -> tuple[Tensor, ...]:
        """Return the gradients by the states."""

        def look(_gradient: Tensor) -> None:
            check()

        with ExitStack() as undo:
            for state in self.states:
                hooks_of: Any = state
                undo.callback(hooks_of.register_hook(look).remove)
            return torch.autograd.grad(self.z, self.states, at_head, retain_graph=keep)


def forward_no_grad(model: PreTrainedModel, anatomy: ModelParts, segment: Segment, cache: Cache | None) -> Tensor:
    """Run tokens, adding them to the cache if there is one, and return `z`; no gradients or logits are computed."""
    watch = _Watch()
    with unwatched(), wide_states(model), hooked([(anatomy.head.module, watch.at_head)]):
        model(**_arguments(anatomy, segment, cache))
    if watch.z is None:
        why = "its forward pass does not call the output head"
        raise GradientsUnavailableError(type(model).__name__, why)
    return watch.z


def record(
    model: PreTrainedModel,
    anatomy: ModelParts,
    segment: Segment,
    cache: Cache | None,
    band: Band,
    entering: Tensor | None = None,
) -> Recording:
    """Run the tokens that follow a cache and record the band.

    Args:
        model: the model.
        anatomy: its parts.
        segment: the tokens.
        cache: cache of the earlier tokens.
        band: blocks to record.
        entering: the states that enter the band, if they are known; the blocks below it are then skipped.

    Raises:
        GradientsUnavailableError: no gradient can flow from the head's input to the band.
    """
    watch = _Watch(entering)
    blocks = band.of(anatomy.blocks)
    below = () if entering is None else anatomy.blocks[: band.first]
    hooks: list[tuple[nn.Module, Callable[..., object]]] = [(block, watch.at_block) for block in blocks]
    hooks.append((anatomy.head.module, watch.at_head))
    with wide_states(model), hooked(hooks), passed_over(below), torch.enable_grad():
        model(**_arguments(anatomy, segment, cache))
    if watch.z is None or not watch.z.requires_grad or len(watch.states) != len(band):
        why = "its forward pass does not lead from the decoder blocks to the output head in one recorded line"
        raise GradientsUnavailableError(type(model).__name__, why)
    return Recording(tuple(watch.states), watch.z)


@contextmanager
def computed_again(blocks: Iterable[nn.Module]) -> Generator[None]:
    """Let a recording keep only what enters these blocks: each runs again, in this context, for its gradient.

    For recordings without a cache, which running again would change.
    """
    with ExitStack() as undo:
        for block in blocks:
            run = partial(copy_context().run, block.forward)
            again = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            undo.enter_context(standing_in([block], again))
        yield


_LEAST_EXPONENT = -100
"""Of a gradient that is still scaled up to 1: its inverse fits into float32 too."""


def state_norms(
    recording: Recorded, at_head: Tensor, places: Tensor, *, keep: bool, check: Callable[[], None] = unhurried
) -> Tensor:
    """Return mean absolute gradients by the band's states, ``(exchange, place)``, on the device of `z`.

    They are NaN or infinite where a gradient is; nothing here waits for the device.

    Args:
        recording: the recorded forward pass.
        at_head: gradient of each exchange's objective by `z`.
        places: places in the recording of the tokens to use, ``(exchange, place)``.
        keep: allow another call with this recording.
        check: called at every block; what it raises ends the work.
    """
    # a power of two changes no digit, and keeps small gradients from vanishing in float16
    wide = widest_float(at_head.device)
    exponent = torch.frexp(at_head.abs().amax().to(wide)).exponent.clamp_(min=_LEAST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=wide), -exponent)
    seed = (at_head * scale).to(recording.z.dtype)
    gradients = recording.gradients(seed, keep=keep, check=check)
    where = {device: _rows(places.to(device)) for device in {gradient.device for gradient in gradients}}
    chosen = torch.stack([gradient[where[gradient.device]].to(seed.device) for gradient in gradients])
    sums = chosen.abs_().sum(dim=-1, dtype=wide).sum(dim=0)
    return sums / (scale * (len(gradients) * gradients[0].shape[-1]))


def _rows(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return places as an index of ``(exchange, token)``."""
    return torch.arange(len(places), device=places.device)[:, None], places


def _arguments(anatomy: ModelParts, segment: Segment, cache: Cache | None) -> dict[str, Any]:
    given = {
        "input_ids": segment.ids,
        "attention_mask": segment.mask,
        "position_ids": None if segment.mask is None else segment.positions,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    return {name: value for name, value in given.items() if name in anatomy.takes and value is not None}


@dataclass(slots=True)
class _Watch:
    """Captures states on their way through a model."""

    entering: Tensor | None = None
    states: list[Tensor] = field(default_factory=list[torch.Tensor])
    z: Tensor | None = None

    def at_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Keep the state that enters a block; recording begins at the first, which is detached from earlier blocks."""
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        if state.dim() != 3:
            why = f"its blocks pass on states of {state.dim()} axes, not (exchange, token, hidden)"
            raise GradientsUnavailableError(type(block).__name__, why)
        if self.states:
            self.states.append(state)
            return None
        leaf = (state if self.entering is None else self.entering.to(state)).detach().requires_grad_()
        self.states.append(leaf)
        return ((leaf, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": leaf})

    def at_head(self, _head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Keep the head's input, and give the head no tokens: its part is computed in closed form."""
        z: Tensor = args[0] if args else next(iter(kwargs.values()))
        self.z = z
        nothing = z[..., :0, :]
        return ((nothing, *args[1:]), kwargs) if args else ((), dict.fromkeys(kwargs, nothing))


def band_bytes(model: PreTrainedModel, anatomy: ModelParts, band: Band, n_tokens: int) -> int:
    """Return about how much memory the recording of a whole band takes."""
    return len(band) * recorded_bytes(model, anatomy.blocks[band.last], None, n_tokens)


def recorded_bytes(model: PreTrainedModel, block: nn.Module, layer: Any, n_tokens: int) -> int:
    """Return about how much memory the recording of one decoder block takes.

    Autograd keeps the inputs and outputs of its matrix products in float32, and a copy of the earlier tokens' keys and
    values, repeated for each query head that shares them.

    Args:
        model: the model.
        block: the block.
        layer: its cache of the earlier tokens.
        n_tokens: how many tokens are recorded.
    """
    config = model.config.get_text_config(decoder=True)
    n_heads: int = getattr(config, "num_attention_heads", None) or 1
    n_shared: int = n_heads // (getattr(config, "num_key_value_heads", None) or n_heads)
    numbers = sum(sum(weight.shape[-2:]) for weight in block.parameters() if weight.dim() > 1)
    keys: Tensor | None = getattr(layer, "keys", None)
    values: Tensor | None = getattr(layer, "values", None)
    read = sum(one.numel() * one.element_size() for one in (keys, values) if one is not None)
    return n_tokens * numbers * 4 + read * (1 + n_shared)
