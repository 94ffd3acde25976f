"""Backwards through the band one block at a time, from states that the writing kept.

Each block is run again from the state that entered it, differentiated and forgotten, so memory holds the attention of
one block instead of the whole band's: what is needed does not grow with the depth, and hardly with the context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from semgrad_guard.models.cache import KeptCache, full_cache, recorded
from semgrad_guard.scoring.gradients import Band, record, run_blind, state_norms, upper_half
from semgrad_guard.scoring.layout import Tokens, lay_out
from semgrad_guard.scoring.model_lease import hooked, wide_states

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from semgrad_guard.scoring.gradients import Recording
    from semgrad_guard.scoring.layout import Segment
    from semgrad_guard.scoring.model_parts import Anatomy


@dataclass(frozen=True, slots=True)
class _Call:
    """How a model calls a block."""

    block: nn.Module
    args: tuple[Any, ...]
    """What follows the state."""
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Walk:
    """A recording of the last block, and how to run those below it; good for one backward pass."""

    model: PreTrainedModel
    top: Recording
    calls: tuple[_Call, ...]
    """Of the other blocks of the band, first to last."""
    states: Tensor
    """What entered the blocks of the band, ``(block, token, hidden)``."""
    cache: Cache

    @property
    def z(self) -> Tensor:
        """The input of the output head."""
        return self.top.z

    def gradients(self, at_head: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
        """Return the gradients by the states of the band, last block first."""
        gradients = self.top.gradients(at_head, keep=keep)
        before = [(layer, vars(layer).copy()) for layer in self.cache.layers]
        for call, state in zip(reversed(self.calls), reversed(self.states[:-1]), strict=True):
            leaf = state[None].to(gradients[-1]).detach().requires_grad_()
            with wide_states(self.model), torch.enable_grad():
                output = call.block(leaf, *call.args, **call.kwargs)
            gradients += torch.autograd.grad(output, leaf, gradients[-1])
            for layer, content in before:  # the block has added its keys and values, which nobody reads again
                vars(layer).update(content)
        return gradients


def walk(model: PreTrainedModel, anatomy: Anatomy, segment: Segment, cache: Cache, band: Band, states: Tensor) -> Walk:
    """Run the last block on tokens behind a cache, and note how the others are called.

    Args:
        model: a model for which `can_walk` is true.
        anatomy: its parts.
        segment: the tokens.
        cache: of the tokens before them.
        band: what to differentiate.
        states: what entered its blocks, ``(block, token, hidden)``.
    """
    notes = _Notes()
    below = anatomy.blocks[band.first : band.last]
    with hooked([(block, notes.at_block) for block in below]):
        top = record(model, anatomy, segment, cache, Band(band.last, band.last), states[-1:])
    return Walk(model, top, tuple(notes.calls), states, cache)


@dataclass(slots=True)
class _Notes:
    calls: list[_Call] = field(default_factory=list[_Call])

    def at_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note how a block is called, whether its state comes by place or by name."""
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append(_Call(block, args[1:], named))


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_PROBE = Tokens(tuple(range(1, 25)), tuple(range(1, 9)))
_N_RECORDED = 4


def can_walk(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Tell whether a model's blocks depend on each other only through their states.

    Some architectures share keys and values between blocks; a walk would miss those gradients. The first question
    costs two short passes, inside `borrowed`.
    """
    if model not in _known:
        _known[model] = anatomy.plain_blocks and anatomy.has_cache and _agrees(model, anatomy)
    return _known[model]


def _agrees(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Compare a walk with a recording on a few tokens."""
    band = upper_half(len(anatomy.blocks))
    layout = lay_out([_PROBE], _N_RECORDED, anatomy.device)
    cache = full_cache(model)
    if layout.prefix is None or cache is None:
        return False
    run_blind(model, anatomy, layout.prefix, cache)
    kept = KeptCache(cache, _PROBE.read[: layout.starts[0]])
    with recorded(anatomy.blocks[band.first : band.last + 1]) as seen:
        run_blind(model, anatomy, layout.rest, kept.prefix(kept.n_tokens))
    states = torch.cat([one.states() for one in seen])
    whole = record(model, anatomy, layout.rest, kept.prefix(kept.n_tokens), band)
    steps = walk(model, anatomy, layout.rest, kept.prefix(kept.n_tokens), band, states)
    seed = torch.ones_like(whole.z).detach()
    one, other = (state_norms(recording, seed, layout.recorded, keep=False) for recording in (whole, steps))
    tolerance = 1e-4 if torch.finfo(model.dtype).bits > 16 else 5e-2
    return bool((one - other).abs().max() <= tolerance * one.abs().max())
