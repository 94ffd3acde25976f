"""Many exchanges -> measures: batches within a budget of tokens, smaller ones when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from semgrad_guard.errors import OutOfMemoryError, ScoringError
from semgrad_guard.scoring.engine import measure
from semgrad_guard.scoring.layout import shared_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from semgrad_guard.models.cache import KeptCache
    from semgrad_guard.scoring.engine import Measure, Reading
    from semgrad_guard.scoring.layout import Tokens
    from semgrad_guard.scoring.model_lease import Turn

MAX_BATCH_TOKENS = 8192
"""Padded tokens that one batch may hold: about 0.4 GB of KV cache for the demo model, 1 GB for a model of 8 billion."""


def measure_many(
    turn: Turn,
    exchanges: Sequence[Tokens],
    reading: Reading,
    *,
    parts: Sequence[Sequence[slice]] = (),
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    kept: KeptCache | None = None,
) -> list[Measure | ScoringError]:
    """Return one measure or error for each exchange, in order.

    The lock is held batch by batch, so that others get their turn. Exchanges whose prompts begin alike (the same
    passages, several answers or questions) come into one batch, where the common part is run once.

    Args:
        turn: the model, and how to wait for it.
        exchanges: the exchanges.
        reading: what to differentiate.
        parts: for each exchange, runs of answer tokens to measure beside the whole answer.
        max_batch_tokens: padded tokens that one batch may hold.
        kept: KV cache of the generation of the answer, for a single exchange.
    """
    wanted = parts or [()] * len(exchanges)
    found: dict[int, Measure | ScoringError] = {}

    def run(group: Sequence[int]) -> None:
        failure = None
        try:
            with turn.taken():
                batch = [exchanges[i] for i in group]
                measured = measure(turn.model, batch, reading, parts=[wanted[i] for i in group], kept=kept)
            found.update(zip(group, measured, strict=True))
        except ScoringError as error:
            failure = error
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            failure = OutOfMemoryError(max(len(exchanges[i]) for i in group))
        # outside of `except`, where the traceback would still hold the tensors that did not fit
        if failure is not None and len(group) == 1:
            found[group[0]] = failure.with_traceback(None)
        elif failure is not None:
            middle = len(group) // 2
            run(group[:middle])
            run(group[middle:])

    for group in batches(exchanges, reading.n_recorded, max_batch_tokens):
        run(group)
    return [found[i] for i in range(len(exchanges))]


def batches(exchanges: Sequence[Tokens], n_recorded: int, max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of each batch: families of like beginnings first, then the others by length."""
    families = list(_families(exchanges, n_recorded))
    for family in families:
        if len(family) > 1:
            yield from _filled(exchanges, family, max_tokens)
    single = [family[0] for family in families if len(family) == 1]
    yield from _filled(exchanges, sorted(single, key=lambda i: len(exchanges[i])), max_tokens)


def _families(exchanges: Sequence[Tokens], n_recorded: int) -> Iterator[list[int]]:
    """Yield runs of exchanges, in order of their prompts, that have all but their last few prefix tokens in common."""
    family = list[int]()
    for i in sorted(range(len(exchanges)), key=lambda i: exchanges[i].prompt):
        if family and not shared_start([exchanges[j] for j in (family[0], family[-1], i)], n_recorded):
            yield family
            family = []
        family.append(i)
    if family:
        yield family


def _filled(exchanges: Sequence[Tokens], order: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield runs of an order whose padded size keeps to the budget, or single exchanges beyond it."""
    group, longest = list[int](), 0
    for i in order:
        wider = max(longest, len(exchanges[i]))
        if group and (len(group) + 1) * wider > max_tokens:
            yield group
            group, wider = [], len(exchanges[i])
        group.append(i)
        longest = wider
    if group:
        yield group


def _is_memory(error: BaseException) -> bool:
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)
