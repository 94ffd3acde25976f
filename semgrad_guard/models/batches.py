"""Writing answers to many prompts, in padded batches that fit the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from semgrad_guard.models.cache import full_cache
from semgrad_guard.models.generation import Row, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.models.cache import KeptCache
    from semgrad_guard.models.generation import Generated, GenerationSettings
    from semgrad_guard.models.local import LocalModel


def generate_batches(
    local: LocalModel,
    prompts: Sequence[tuple[int, ...]],
    settings: GenerationSettings,
    *,
    batch_size: int,
    should_end: Callable[[], bool],
    kept: KeptCache | None = None,
) -> list[Generated]:
    """Return one answer for each prompt, in order.

    Prompts of like length share a batch, so little is padded, and equal ones are read once. A model whose state can't
    ignore padding (recurrent layers) writes one answer at a time.
    """
    size = batch_size if full_cache(local.model) is not None else 1
    rows = sorted(map(Row._make, enumerate(prompts)), key=lambda row: (len(row.ids), row.ids))
    answers: dict[int, Generated] = {}
    for start in range(0, len(rows), size):
        answers |= _write(local, rows[start : start + size], settings, should_end, kept)
    return [answers[number] for number in range(len(prompts))]


def _write(
    local: LocalModel,
    rows: Sequence[Row],
    settings: GenerationSettings,
    should_end: Callable[[], bool],
    kept: KeptCache | None,
) -> dict[int, Generated]:
    """Return the answers of one batch by their number; halved and tried again when it does not fit the memory."""
    try:
        answers = generate(local, rows, settings, should_end=should_end, memory=kept)
        return {row.number: answer for row, answer in zip(rows, answers, strict=True)}
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    first = _write(local, rows[:half], settings, should_end, kept)
    return first | _write(local, rows[half:], settings, should_end, kept)
