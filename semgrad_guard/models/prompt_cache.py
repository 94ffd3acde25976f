"""Reading a prompt once for several answers to it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from semgrad_guard.models.kept import full_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.cache_utils import Cache

    from semgrad_guard.models.kept import KeptCache
    from semgrad_guard.models.local import LocalModel


def pad_left(
    prompts: Sequence[tuple[int, ...]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of prompts that all end together, and 1 for each token, 0 for padding."""
    longest = max(len(ids) for ids in prompts)
    padded = [[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def prompt_cache(local: LocalModel, prompts: Sequence[tuple[int, ...]], kept: KeptCache | None) -> Cache | None:
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


def _read(local: LocalModel, prompts: Sequence[tuple[int, ...]]) -> Cache | None:
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
