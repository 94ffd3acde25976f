"""Token ids of several exchanges -> padded tensors: a prefix that is only read, and a rest that is differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from semgrad_guard.errors import EmptyAnswerError, EmptyPromptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PAD = 0
"""Id put where there is no token; it is masked, so any id does."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One exchange as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        if not self.answer:
            raise EmptyAnswerError
        if not self.prompt:
            raise EmptyPromptError

    def __len__(self) -> int:
        """Return the number of tokens that the model has to read: the answer's last one predicts nothing."""
        return len(self.prompt) + len(self.answer) - 1

    @property
    def read(self) -> tuple[int, ...]:
        """The ids that the model has to read."""
        return self.prompt + self.answer[:-1]


@dataclass(frozen=True, slots=True)
class Segment:
    """Equally long stretches of several exchanges, padded: what one forward pass reads."""

    ids: Tensor
    """``(exchange, token)``"""
    positions: Tensor
    """Position of each token in its exchange, ``(exchange, token)``."""
    mask: Tensor | None
    """1 for every token up to and in this stretch, 0 for padding, ``(exchange, earlier and present token)``.

    `None` where there is no padding.
    """


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies: prefixes are padded on the left and rests on the right, so all rests begin together."""

    prefix: Segment | None
    """The tokens before the earliest recorded position; `None` where there are none."""
    rest: Segment
    starts: tuple[int, ...]
    """Length of each exchange's prefix: position in the exchange of its first recorded token."""


def lay_out(batch: Sequence[Tokens], n_recorded: int, device: torch.device, *, split: bool = True) -> Layout:
    """Return the tensors for some exchanges.

    Args:
        batch: the exchanges.
        n_recorded: how many of the last prompt tokens belong to the differentiated rest.
        device: where the model takes its ids.
        split: False puts everything in the rest, for models without a KV cache.
    """
    starts = tuple(max(0, len(tokens.prompt) - n_recorded) if split else 0 for tokens in batch)
    n_prefix, n_rest = max(starts), max(len(t) - s for t, s in zip(batch, starts, strict=True))
    begin = torch.tensor(starts, device=device)[:, None]
    end = torch.tensor([len(tokens) for tokens in batch], device=device)[:, None]
    places = torch.arange(-n_prefix, n_rest, device=device)[None, :] + begin
    mask = (places >= 0) & (places < end)
    ids = torch.full(places.shape, PAD, device=device)
    ids[mask] = torch.tensor([token for tokens in batch for token in tokens.read], device=device)
    # padded places keep counting, but never from outside what learned positions cover
    positions = places.clamp(min=0).minimum(end - 1)
    padding = None if bool(mask.all()) else mask.long()
    rest = Segment(ids[:, n_prefix:], positions[:, n_prefix:], padding)
    if not n_prefix:
        return Layout(None, rest, starts)
    before = None if padding is None or bool(mask[:, :n_prefix].all()) else padding[:, :n_prefix]
    return Layout(Segment(ids[:, :n_prefix], positions[:, :n_prefix], before), rest, starts)
