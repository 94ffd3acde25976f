"""Picking the next token at random, without touching the process's random state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor
from typing_extensions import override

from semgrad_guard.errors import NonFiniteScoreError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sampler(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one.

    Every row has its own generator, so an answer depends on the seed and its row alone: not on the batch it shares,
    nor on other threads that draw at the same time.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None, rows: Sequence[int]) -> None:
        """Take the settings and the number of each row among all that share the seed.

        Without a seed, torch's global random state decides.
        """
        self._temperature, self._top_p = temperature, top_p
        start = int(torch.randint(2**62, (1,)).item()) if seed is None else seed
        self._generators = [torch.Generator().manual_seed(_row_seed(start, row)) for row in rows]
        self._nlls: list[torch.Tensor] = []

    def nlls(self, row: int, n_tokens: int) -> tuple[float, ...]:
        """Return the negative log-likelihoods of a row's first tokens in nats, by the model's own distribution.

        Temperature and `top_p` change what is drawn, not how likely the model finds it.
        """
        return tuple(float(step[row]) for step in self._nlls[:n_tokens])

    @override
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Return scores of minus infinity everywhere but at the drawn tokens."""
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1).cpu()
        if not torch.isfinite(probabilities).all():
            raise NonFiniteScoreError("the distribution of the next token")
        if self._top_p < 1:
            probabilities = nucleus(probabilities, self._top_p)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, self._generators, strict=True)
        ]
        tokens = torch.stack(drawn).to(scores.device)
        self._nlls.append(-torch.log_softmax(scores.float(), dim=-1).gather(-1, tokens)[:, 0].cpu())
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(-1, tokens, 0.0)  # type: ignore[return-value] # torch types it as Tensor


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities with all but the smallest set of tokens that reaches `top_p` set to 0."""
    ranked, order = probabilities.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ranked)


def _row_seed(seed: int, row: int) -> int:
    """Return a seed for one row; neighbouring seeds and rows share nothing."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
