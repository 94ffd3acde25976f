"""Recording an answer behind the KV cache of its writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.scoring.gradients import record
from semgrad_guard.scoring.model_parts import anatomy_of
from semgrad_guard.scoring.walk import can_walk, walk

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from semgrad_guard.models.cache import KeptCache
    from semgrad_guard.scoring.gradients import Band, Recorded
    from semgrad_guard.scoring.layout import Layout, Tokens
    from semgrad_guard.scoring.model_parts import Anatomy


def record_behind(
    model: PreTrainedModel,
    layout: Layout,
    read: tuple[int, ...],
    band: Band,
    kept: KeptCache,
    *,
    once: bool,
) -> Recorded | None:
    """Record the rest of one exchange behind a kept cache, by the cheapest way that what was kept allows.

    With the states of the whole band: block by block. With those that entered it: without the blocks below. With none:
    all blocks, on the answer alone.

    Args:
        model: the model that wrote the answer.
        layout: of the exchange.
        read: its token ids.
        band: what to differentiate.
        kept: what the writing left.
        once: a single backward pass is wanted.

    Returns:
        `None` when the cache is of other tokens or cannot be cropped.
    """
    anatomy, start = anatomy_of(model), layout.starts[0]
    if not (anatomy.has_cache and kept.supports_crop and kept.ids[:start] == read[:start]):
        return None
    cache = kept.prefix(start)
    states = _states(anatomy, kept, read, start, band)
    if states is not None and once and len(states) == len(band) > 1 and can_walk(model, anatomy):
        return walk(model, anatomy, layout.rest, cache, band, states)
    return record(model, anatomy, layout.rest, cache, band, None if states is None else states[:1])


def known_outputs(kept: KeptCache, tokens: Tokens) -> Tensor | None:
    """Return what the head gave for each token of the answer when it was written, ``(token, vocabulary)``, if kept."""
    if kept.ids[: len(tokens)] != tokens.read:
        return None
    return kept.crop(len(tokens)).outputs_from(len(tokens.prompt) - 1)


def _states(anatomy: Anatomy, kept: KeptCache, read: tuple[int, ...], start: int, band: Band) -> Tensor | None:
    """Return the kept states of the rest that entered the blocks of the band, or its first one, or nothing."""
    wanted = anatomy.blocks[band.first : band.last + 1]
    if not anatomy.plain_blocks or kept.ids[: len(read)] != read or wanted[0] not in kept.states_of:
        return None
    states = kept.crop(len(read)).states_from(start)
    at = kept.states_of.index(wanted[0])
    n = len(wanted) if kept.states_of[at : at + len(wanted)] == wanted else 1
    return None if states is None else states[at : at + n]
