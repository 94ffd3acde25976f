"""Recordings that go block by block: behind an answer's writing, and of what would take too much memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from semgrad_guard.models.cache import KeptCache, full_cache, recorded
from semgrad_guard.scoring.attention import unwatched
from semgrad_guard.scoring.budget import LEAN, MemoryBudget, unhurried
from semgrad_guard.scoring.layout import Segment, Tokens, lay_out
from semgrad_guard.scoring.model_lease import hooked, standing_in, wide_states
from semgrad_guard.scoring.model_parts import Band, model_parts_of
from semgrad_guard.scoring.recording import band_bytes, forward_no_grad, record, recorded_bytes, state_norms
from semgrad_guard.scoring.written_out import (
    CommonBlock,
    Surroundings,
    common_block,
    gradient_by_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from semgrad_guard.scoring.layout import Layout
    from semgrad_guard.scoring.model_parts import ModelParts
    from semgrad_guard.scoring.recording import Recorded, Recording


@dataclass(frozen=True, slots=True)
class _Call:
    """How a model calls a block."""

    block: nn.Module
    args: tuple[Any, ...]
    """Positional arguments after the state."""
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TopRecorded:
    """A recording of the last blocks of the band, and how the others were called."""

    top: Recording
    calls: tuple[_Call, ...]
    """Calls of the other blocks, first to last."""
    states: Tensor
    """States that entered the blocks of the band, ``(block, token, hidden)``."""

    @property
    def z(self) -> Tensor:
        """The input of the output head."""
        return self.top.z

    def state(self, number: int) -> Tensor:
        """Return the state that enters a block of the band."""
        return self.states[number][None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseRecording(_TopRecorded):
    """A recording of the last blocks, and how to run the blocks below them."""

    model: PreTrainedModel
    cache: Cache
    n_together: int
    """How many blocks are run and differentiated at a time."""

    def gradients(
        self, at_head: Tensor, *, keep: bool = False, check: Callable[[], None] = unhurried
    ) -> tuple[Tensor, ...]:
        """Return the gradients by the states of the band, the last blocks' first."""
        gradients = self.top.gradients(at_head, keep=keep, check=check)
        by_last = gradients[0]
        before = [(layer, vars(layer).copy()) for layer in self.cache.layers]
        for end in range(len(self.calls), 0, -self.n_together):
            check()
            calls = self.calls[max(0, end - self.n_together) : end]
            leaf = self.states[end - len(calls)][None].to(by_last).detach().requires_grad_()
            states, output = [leaf], leaf
            with wide_states(self.model), torch.enable_grad():
                for call in calls:
                    output = call.block(output, *call.args, **call.kwargs)
                    states.append(output)
            found = torch.autograd.grad(output, states[:-1], by_last)
            gradients, by_last = gradients + found, found[0]
            for layer, content in before:  # the blocks have added their keys and values, which are not read again
                vars(layer).update(content)
        return gradients


def record_blockwise(  # noqa: PLR0913, PLR0917 - what `record` takes, and how many blocks at a time
    model: PreTrainedModel,
    anatomy: ModelParts,
    segment: Segment,
    cache: Cache,
    band: Band,
    states: Tensor,
    n_together: int = 1,
) -> BlockwiseRecording:
    """Run the last blocks on the tokens that follow a cache, and note how the other blocks are called.

    Args:
        model: a model for which `can_record_blockwise` is true.
        anatomy: its parts.
        segment: the tokens.
        cache: cache of the earlier tokens.
        band: blocks to differentiate.
        states: states that entered its blocks, ``(block, token, hidden)``.
        n_together: how many blocks are recorded at a time; fewer than the band has.
    """
    notes = _Notes()
    below = anatomy.blocks[band.first : band.last + 1 - n_together]
    with hooked([(block, notes.at_block) for block in below]):
        last = Band(band.last + 1 - n_together, band.last)
        top = record(model, anatomy, segment, cache, last, states[len(band) - n_together :][:1])
    return BlockwiseRecording(
        model=model, top=top, calls=tuple(notes.calls), states=states, cache=cache, n_together=n_together
    )


@dataclass(slots=True)
class _Notes:
    calls: list[_Call] = field(default_factory=list[_Call])

    def at_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note how a block is called, with its state as a positional or as a keyword argument."""
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append(_Call(block, args[1:], named))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOutRecording(_TopRecorded):
    """A recording of the last block, and what is needed to differentiate the blocks below it without autograd."""

    blocks: tuple[CommonBlock, ...]
    """The parts of the other blocks."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of all tokens for each of the other blocks, ``(1, head, token, head dimension)``."""

    def gradients(
        self, at_head: Tensor, *, keep: bool = False, check: Callable[[], None] = unhurried
    ) -> tuple[Tensor, ...]:
        """Return the gradients by the states of the band, last block first."""
        found = list(self.top.gradients(at_head, keep=keep, check=check))
        gradient, shared = found[0][0].to(self._wide), Surroundings()
        for number in range(len(self.calls) - 1, -1, -1):
            check()
            call = self.calls[number]
            # through the block itself, so that who waits at its door can still end the work
            with standing_in([call.block], partial(self._pulled, number, gradient, shared)):
                gradient = call.block(self.states[number][None].to(self._wide), *call.args, **call.kwargs)
            found.append(gradient[None])
        return tuple(found)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.states.dtype, torch.float32)

    def _pulled(
        self, number: int, gradient: Tensor, shared: Surroundings, state: Tensor, *_: object, **named: Any
    ) -> Tensor:
        """Return the gradient by the state that enters one block; this stands in for its forward pass."""
        block, (keys, values) = self.blocks[number], self.layers[number]
        n_groups, n_all, head_dim = keys.shape[1:]
        n_shared: int = block.attention.q_proj.out_features // (head_dim * n_groups)
        return gradient_by_state(
            block,
            state[0],
            gradient,
            keys=keys[0],
            values=values[0],
            rotary=shared.rotary(named["position_embeddings"], self._wide),
            mask=shared.mask(named.get("attention_mask"), (n_shared, state.shape[1], n_all), gradient),
        )


def record_written_out(  # noqa: PLR0913, PLR0917 - what `record` takes, and the whole cache
    model: PreTrainedModel,
    anatomy: ModelParts,
    segment: Segment,
    kept: KeptCache,
    start: int,
    band: Band,
    states: Tensor,
) -> WrittenOutRecording | None:
    """Run the last block on the tokens that follow a cache, and note what the blocks below it need.

    Args:
        model: the model.
        anatomy: its parts.
        segment: the tokens.
        kept: cache of the earlier tokens and of these.
        start: how many earlier tokens there are.
        band: blocks to differentiate.
        states: states that entered its blocks, ``(block, token, hidden)``.

    Returns:
        `None` where a block is of another kind.
    """
    n_new = segment.ids.shape[1]
    below = anatomy.blocks[band.first : band.last]
    parts = _common_blocks(model, below)
    whole: list[Any] = kept.prefix(start + n_new).layers[band.first : band.last]
    layers = tuple((layer.keys, layer.values) for layer in whole if layer.keys is not None and layer.values is not None)
    if parts is None or len(layers) < len(parts):
        return None
    notes = _Notes()
    with hooked([(block, notes.at_block) for block in below]):
        top = record(model, anatomy, segment, kept.prefix(start), Band(band.last, band.last), states[-1:])
    if not all("position_embeddings" in call.kwargs for call in notes.calls):
        return None
    return WrittenOutRecording(top=top, calls=tuple(notes.calls), blocks=parts, states=states, layers=layers)


def record_cold_by_blocks(
    model: PreTrainedModel,
    layout: Layout,
    read: tuple[int, ...],
    band: Band,
    *,
    once: bool,
    budget: MemoryBudget = LEAN,
) -> Recorded | None:
    """Read one exchange in a single pass without gradients, and record its rest from what was kept of that.

    Args:
        model: the model.
        layout: layout of the exchange.
        read: its token ids.
        band: blocks to differentiate.
        once: whether there is only one backward pass.
        budget: memory that a recording of the whole band may take.

    Returns:
        `None` where recording on the way is faster and does not take too much memory, or where this is not possible.
    """
    anatomy, n_new, start = model_parts_of(model), layout.rest.ids.shape[1], layout.starts[0]
    is_large = band_bytes(model, anatomy, band, n_new) > budget.recorded_bytes
    pays = once and layout.prefix is not None and start >= LEAST_PREFIX * n_new
    if len(layout.starts) > 1 or len(band) < 2 or not (is_large or pays):
        return None
    if not (can_record_written_out(model, anatomy) or (is_large and can_record_blockwise(model, anatomy))):
        return None
    cache = full_cache(model)
    if cache is None:
        return None
    segment = layout.rest
    if layout.prefix is not None:
        pairs = ((layout.prefix.ids, layout.rest.ids), (layout.prefix.positions, layout.rest.positions))
        ids, positions = (torch.cat(pair, dim=1) for pair in pairs)
        segment = Segment(ids, positions, None)
    states = _states_on_the_way(model, anatomy, segment, cache, band, n_new)
    return _record_by_blocks(model, anatomy, layout, KeptCache(cache, read), band, states)


def _states_on_the_way(
    model: PreTrainedModel, anatomy: ModelParts, segment: Segment, cache: Cache, band: Band, n_last: int
) -> Tensor:
    """Run tokens without gradients, and return the states of the last ones that enter the band's blocks."""
    states = list[torch.Tensor]()

    def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        states.append(state[:, -n_last:].clone())

    with hooked([(block, keep) for block in band.of(anatomy.blocks)]):
        forward_no_grad(model, anatomy, segment, cache)
    return torch.cat(states)


def _record_by_blocks(  # noqa: PLR0913, PLR0917 - what `record` takes, and how many blocks at a time
    model: PreTrainedModel,
    anatomy: ModelParts,
    layout: Layout,
    kept: KeptCache,
    band: Band,
    states: Tensor,
    n_together: int = 1,
) -> Recorded | None:
    """Record the rest of an exchange from the states of the whole band, a few blocks at a time.

    Returns:
        `None` where all blocks may be recorded together, or where the model's blocks do not allow it.
    """
    start = layout.starts[0]
    if can_record_written_out(model, anatomy):
        found = record_written_out(model, anatomy, layout.rest, kept, start, band, states)
        if found is not None:
            return found
    if n_together >= len(band) or not can_record_blockwise(model, anatomy):
        return None
    return record_blockwise(model, anatomy, layout.rest, kept.prefix(start), band, states, n_together)


def _common_blocks(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> tuple[CommonBlock, ...] | None:
    """Return the parts of some blocks, or `None` if one is of another kind."""
    interface = str(getattr(model.config.get_text_config(decoder=True), "_attn_implementation", ""))
    found = list[CommonBlock]()
    for block in blocks:
        parts = common_block(block, interface)
        if parts is None:
            return None
        found.append(parts)
    return tuple(found)


LEAST_PREFIX = 2
"""How many times as long as its rest an exchange's prefix must be for a single pass without gradients to pay."""
_blockwise: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_written_out: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_PROBE = Tokens(tuple(range(1, 25)), tuple(range(1, 9)))
_N_RECORDED = 4


def can_record_blockwise(model: PreTrainedModel, anatomy: ModelParts) -> bool:
    """Return whether a model's blocks depend on each other only through their states.

    Some architectures share keys and values between blocks, and going block by block would miss those gradients. The
    first call for a model costs two short passes, inside `borrowed`.
    """
    if model not in _blockwise:
        _blockwise[model] = anatomy.plain_blocks and anatomy.has_cache and _agrees(model, anatomy, written_out=False)
    return _blockwise[model]


def can_record_written_out(model: PreTrainedModel, anatomy: ModelParts) -> bool:
    """Return whether a model's blocks are of the common kind, so that their gradient need not be left to autograd.

    The first call for a model costs two short passes, inside `borrowed`.
    """
    if model not in _written_out:
        if _common_blocks(model, anatomy.blocks) is None:
            return False  # perhaps only because somebody listens to one of them
        _written_out[model] = anatomy.plain_blocks and anatomy.has_cache and _agrees(model, anatomy, written_out=True)
    return _written_out[model]


@unwatched()
def _agrees(model: PreTrainedModel, anatomy: ModelParts, *, written_out: bool) -> bool:
    """Compare a recording by blocks with the whole one on a few tokens."""
    band = Band(0, len(anatomy.blocks) - 1)
    layout = lay_out([_PROBE], _N_RECORDED, anatomy.device)
    cache = full_cache(model)
    if layout.prefix is None or cache is None:
        return False
    start = layout.starts[0]
    forward_no_grad(model, anatomy, layout.prefix, cache)
    with recorded(band.of(anatomy.blocks)) as seen:
        forward_no_grad(model, anatomy, layout.rest, cache)
    kept = KeptCache(cache, _PROBE.read)
    states = torch.cat([one.states() for one in seen])
    whole = record(model, anatomy, layout.rest, kept.prefix(start), band)
    steps: Recorded | None
    if written_out:
        steps = record_written_out(model, anatomy, layout.rest, kept, start, band, states)
    else:
        steps = record_blockwise(model, anatomy, layout.rest, kept.prefix(start), band, states)
    if steps is None:
        return False
    seed = torch.ones_like(whole.z).detach()
    one, other = (state_norms(recording, seed, layout.recorded, keep=False) for recording in (whole, steps))
    tolerance = 1e-4 if torch.finfo(model.dtype).bits > 16 else 5e-2
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


def record_from_cache(  # noqa: PLR0913 - the exchange, what was kept of it, and how to record it
    model: PreTrainedModel,
    layout: Layout,
    read: tuple[int, ...],
    band: Band,
    kept: KeptCache,
    *,
    once: bool,
    budget: MemoryBudget = LEAN,
) -> Recorded | None:
    """Record the rest of one exchange after a kept cache, in the cheapest way that the kept states allow.

    If the states of the whole band were kept, it goes by as many blocks at a time as the budget allows. If only those
    that entered the band were kept, the blocks below it are skipped. If none were kept, all blocks run, but only on the
    rest. Where a recording of the whole band would be too large, it goes by blocks in any case.

    Args:
        model: the model that wrote the answer.
        layout: layout of the exchange.
        read: its token ids.
        band: blocks to differentiate.
        kept: cache and states kept from the generation.
        once: whether there is only one backward pass.
        budget: memory that decides how many blocks are recorded together.

    Returns:
        The recording; `None` when the cache is of other tokens or cannot be cropped.
    """
    anatomy, start = model_parts_of(model), layout.starts[0]
    if not (anatomy.has_cache and kept.supports_crop and kept.ids[:start] == read[:start]):
        return None
    cache, n_new = kept.prefix(start), layout.rest.ids.shape[1]
    states = _states(anatomy, kept, read, start, band)
    is_large = len(band) > 1 and band_bytes(model, anatomy, band, n_new) > budget.recorded_bytes
    if is_large and (states is None or len(states) < len(band)) and can_record_blockwise(model, anatomy):
        kept = KeptCache(cache, read)
        states = _states_on_the_way(model, anatomy, layout.rest, cache, band, n_new)
        cache = kept.prefix(start)
    if states is not None and (once or is_large) and len(states) == len(band) > 1:
        each = recorded_bytes(model, anatomy.blocks[band.last], cache.layers[band.last], n_new)
        n_together = budget.blocks_together(each)
        found = _record_by_blocks(model, anatomy, layout, kept, band, states, n_together)
        if found is not None:
            return found
    return record(model, anatomy, layout.rest, cache, band, None if states is None else states[:1])


def known_outputs(kept: KeptCache, tokens: Tokens) -> Tensor | None:
    """Return the head's outputs kept from the generation of the answer, ``(token, vocabulary)``, or `None`."""
    if kept.ids[: len(tokens)] != tokens.read:
        return None
    return kept.crop(len(tokens)).outputs_from(len(tokens.prompt) - 1)


def _states(anatomy: ModelParts, kept: KeptCache, read: tuple[int, ...], start: int, band: Band) -> Tensor | None:
    """Return the kept states that entered the band's blocks, or only its first block, or `None`."""
    blocks = band.of(anatomy.blocks)
    if not anatomy.plain_blocks or kept.ids[: len(read)] != read or blocks[0] not in kept.states_of:
        return None
    states = kept.crop(len(read)).states_from(start)
    at = kept.states_of.index(blocks[0])
    n = len(blocks) if kept.states_of[at : at + len(blocks)] == blocks else 1
    return None if states is None else states[at : at + n]
