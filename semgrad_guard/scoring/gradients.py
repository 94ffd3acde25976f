"""One recorded forward pass, and the gradients by the hidden states of the layer band.

Shapes, for the whole package: `h[l]` is the state entering decoder block `l` (`hidden_states[l]` of transformers),
``(exchange, token, hidden)``; `z` is the input of the output head, same shape. Only the tokens from the earliest
recorded position on, and only the blocks from the band's first on, are recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from semgrad_guard.errors import GradientsUnavailableError, NonFiniteScoreError
from semgrad_guard.scoring.model_lease import hooked, passed_over, wide_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from semgrad_guard.scoring.layout import Segment
    from semgrad_guard.scoring.model_parts import Anatomy


@dataclass(frozen=True, slots=True)
class Band:
    """A run of decoder blocks whose entering states are differentiated."""

    first: int
    last: int
    """Included."""

    def __len__(self) -> int:
        """Return how many blocks it holds."""
        return self.last - self.first + 1


def upper_half(n_blocks: int) -> Band:
    """Return the band of the method: the states entering the upper half of the blocks.

    Source: SemGrad (arXiv 2605.04638), layers L - floor(L/2) .. L - 1. A model of a single block uses that one.
    """
    return Band(n_blocks - max(1, n_blocks // 2), n_blocks - 1)


class Recorded(Protocol):
    """What a recorded forward pass leaves: enough for the gradients by the band's states."""

    @property
    def z(self) -> Tensor:
        """The input of the output head."""
        ...

    def gradients(self, at_head: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
        """Return the gradients by the states of the band, one for each block.

        Args:
            at_head: gradient by `z`.
            keep: leave it usable for another call.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recording:
    """A forward pass whose whole band is recorded."""

    states: tuple[Tensor, ...]
    """`h[l]` for each block of the band."""
    z: Tensor

    def gradients(self, at_head: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
        """Return the gradients by the states."""
        return torch.autograd.grad(self.z, self.states, at_head, retain_graph=keep)


def run_blind(model: PreTrainedModel, anatomy: Anatomy, segment: Segment, cache: Cache | None) -> Tensor:
    """Run tokens, into the cache where there is one, and return `z`: no gradients, no logits."""
    watch = _Watch()
    with wide_states(model), hooked([(anatomy.head.module, watch.at_head)]):
        model(**_arguments(anatomy, segment, cache))
    if watch.z is None:
        why = "its forward pass does not call the output head"
        raise GradientsUnavailableError(type(model).__name__, why)
    return watch.z


def record(
    model: PreTrainedModel,
    anatomy: Anatomy,
    segment: Segment,
    cache: Cache | None,
    band: Band,
    entering: Tensor | None = None,
) -> Recording:
    """Run tokens behind a cache and record the band.

    Args:
        model: the model.
        anatomy: its parts.
        segment: the tokens.
        cache: of the tokens before them.
        band: what to record.
        entering: the states of the tokens that enter the band, where they are known: no block below it runs then.

    Raises:
        GradientsUnavailableError: no gradient can flow from the head's input to the band.
    """
    watch = _Watch(entering)
    blocks = anatomy.blocks[band.first : band.last + 1]
    below = () if entering is None else anatomy.blocks[: band.first]
    hooks: list[tuple[nn.Module, Callable[..., object]]] = [(block, watch.at_block) for block in blocks]
    hooks.append((anatomy.head.module, watch.at_head))
    with wide_states(model), hooked(hooks), passed_over(below), torch.enable_grad():
        model(**_arguments(anatomy, segment, cache))
    if watch.z is None or not watch.z.requires_grad or len(watch.states) != len(band):
        why = "its forward pass does not lead from the decoder blocks to the output head in one recorded line"
        raise GradientsUnavailableError(type(model).__name__, why)
    return Recording(tuple(watch.states), watch.z)


def state_norms(recording: Recorded, at_head: Tensor, places: Tensor, *, keep: bool) -> Tensor:
    """Return mean absolute gradients by the band's states, ``(exchange, place)``, float64.

    Args:
        recording: of the forward pass.
        at_head: gradient of each exchange's objective by `z`.
        places: which tokens of the recording to look at, ``(exchange, place)``.
        keep: leave the recording usable for another call.

    Raises:
        NonFiniteScoreError: a gradient is NaN or infinite.
    """
    # a power of two changes no digit, and keeps small gradients from vanishing in float16
    peak = float(at_head.abs().max())
    scale = 2.0 ** -torch.frexp(torch.tensor(peak)).exponent.item() if peak else 1.0
    seed = (at_head * scale).to(recording.z.dtype)
    gradients = recording.gradients(seed, keep=keep)
    sums = torch.stack([_sum(gradient, places) for gradient in gradients]).sum(dim=0)
    if not bool(torch.isfinite(sums).all()):
        where = "the gradient by the hidden states"
        raise NonFiniteScoreError(where)
    return sums / (len(gradients) * gradients[0].shape[-1] * scale)


def _sum(gradient: Tensor, places: Tensor) -> Tensor:
    exchanges = torch.arange(len(places), device=places.device)[:, None]
    chosen = gradient[exchanges.to(gradient.device), places.to(gradient.device)]
    return chosen.abs().sum(dim=-1, dtype=torch.float64).cpu()


def _arguments(anatomy: Anatomy, segment: Segment, cache: Cache | None) -> dict[str, Any]:
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
    """Catches states on their way through a model."""

    entering: Tensor | None = None
    states: list[Tensor] = field(default_factory=list[torch.Tensor])
    z: Tensor | None = None

    def at_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Keep the state that enters a block; the first one is cut from what was before, and recording begins there."""
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
        """Keep the head's input, and give the head no tokens to work on: its part is done in closed form."""
        z: Tensor = args[0] if args else next(iter(kwargs.values()))
        self.z = z
        nothing = z[..., :0, :]
        return ((nothing, *args[1:]), kwargs) if args else ((), dict.fromkeys(kwargs, nothing))
