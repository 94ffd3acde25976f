"""How much an answer hangs on each passage: its gradients by the prompt's cached keys and values.

The answer's tokens know the prompt only by the keys and values that its tokens left in the cache. The gradient of
SemGrad's objective by a key or value, times that key or value, says by how much the objective would change, to first
order, if one head of one block saw less of one token. The backward pass for the scores has these gradients in hand,
and they are reduced at once to one number for each head and token. A passage's number is the sum of their absolute
values over its tokens and all heads of the band; its share is of all tokens in the cache but the first.

The cache is constant: what a token does by way of the keys and values of later tokens of the prompt does not count as
its own. Source: gradient times input, arXiv 1605.01713; for values it equals attention times its gradient
(arXiv 2103.15679, without the products over blocks). Absolute values and sums over heads are our choice.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semgrad_guard.models.device import widest_float
from semgrad_guard.scoring.prompt_parts import FIRST_PASSAGE, IN_PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from semgrad_guard.scoring.layout import Layout, Tokens

_KEY, _VALUE = 0, 1


class CacheGradients:
    """Notes the gradients by keys and values of one batch, in the first backward pass through each block."""

    def __init__(self, blocks: Sequence[nn.Module], layout: Layout, batch: Sequence[Tokens], n_recorded: int) -> None:
        """Prepare for a batch.

        Args:
            blocks: the blocks of the band.
            layout: layout of the batch.
            batch: its exchanges.
            n_recorded: how many of the last prompt tokens are recorded; those before them are in the cache.
        """
        self._number = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
        n_rest, n_late = layout.rest.ids.shape[1], n_recorded
        n_prefix = 0 if layout.prefix is None else layout.prefix.ids.shape[1]
        self._shape = (len(batch), n_prefix + n_rest)
        self._end = layout.recorded[:, :1] + n_prefix
        """Where the cache of each exchange ends, ``(exchange, 1)``."""
        starts = zip(batch, layout.starts, strict=True)
        self._is_part_of_rest = any(len(tokens.prompt) - n_late > start for tokens, start in starts)
        self._found: dict[tuple[int, int], Tensor] = {}

    def listen(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values that an attention function is to use, so that their gradients are noted.

        Args:
            module: the attention module.
            key: keys of all tokens, ``(exchange, head, token, head dimension)``.
            value: their values.
        """
        number = self._number.get(id(module))
        if number is None or key.dim() != 4 or key.shape[::2] != self._shape:
            return key, value
        return self._heard((number, _KEY), key), self._heard((number, _VALUE), value)

    def _heard(self, what: tuple[int, int], tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        heard: Any = tensor.view_as(tensor)
        heard.register_hook(partial(self._at_gradient, what, tensor.detach()))
        found: Tensor = heard
        return found

    def _at_gradient(self, what: tuple[int, int], seen: Tensor, gradient: Tensor) -> Tensor | None:
        """Note a gradient; where a batch computes a part of the prompt with the answer, let none go on into it."""
        if what not in self._found:
            self._found[what] = _products(gradient, seen)
        if not self._is_part_of_rest:
            return None
        return gradient.masked_fill(self._in_cache(gradient.device)[:, None, :, None], 0.0)

    def wants(self, module: nn.Module) -> bool:
        """Return whether the gradients by a module's keys and values are still to be noted."""
        number = self._number.get(id(module))
        return number is not None and (number, _KEY) not in self._found

    def note(
        self, module: nn.Module, by_key: Tensor, by_value: Tensor, key: Tensor, value: Tensor, *, scaling: float
    ) -> None:
        """Note gradients that somebody else computed for a single exchange, each ``(head, token, head dimension)``.

        Args:
            module: the attention module.
            by_key: the gradient by the keys, still to be multiplied by `scaling`.
            by_value: the gradient by the values.
            key: the keys.
            value: the values.
            scaling: what the products of queries and keys are multiplied by.
        """
        number = self._number[id(module)]
        self._found[number, _KEY] = _products(by_key[None], key[None], scaling)
        self._found[number, _VALUE] = _products(by_value[None], value[None])

    def numbers(self, by_column: Tensor) -> Tensor | None:
        """Return the sums of all, ``(exchange, column)``; `None` where no gradient was noted.

        Args:
            by_column: 1 where a token belongs to a column, ``(exchange, token, column)``, on the device of the input.
        """
        if not self._found:
            return None
        found = [self._found[what].to(by_column.device) for what in sorted(self._found)]
        by_token = torch.cat(found, dim=1).abs_().sum(dim=1)
        by_token = by_token.masked_fill_(~self._in_cache(by_token.device), 0.0)
        return torch.matmul(by_token[:, None], by_column.to(by_token.dtype))[:, 0].to(widest_float(by_token.device))

    def _in_cache(self, device: torch.device) -> Tensor:
        """Return where the keys and values are those of the cache, ``(exchange, token)``."""
        return torch.arange(self._shape[1], device=device) < self._end.to(device)


def _products(gradient: Tensor, by: Tensor, scaling: float = 1.0) -> Tensor:
    """Return gradient times input, summed over the head dimension, at least float32."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    found = (gradient.to(wide) * by.to(wide)).sum(dim=-1)
    return found if scaling == 1.0 else found.mul_(scaling)


def shares_of_gradients(sums: NDArray[np.float64], tokens: Tokens) -> tuple[float | None, ...]:
    """Return the share of each passage; `None` for one that the prompt does not show.

    Empty where it cannot be told, or the prompt shows no passage.

    Args:
        sums: of one exchange, by column.
        tokens: the exchange.
    """
    shown = tokens.parts.shown if tokens.parts else ()
    rest = float(sums[1:].sum())
    if not any(shown) or not np.isfinite(rest) or rest <= 0:
        return ()
    passages = sums[IN_PROMPT + FIRST_PASSAGE :]
    return tuple(float(one) / rest if there else None for one, there in zip(passages, shown, strict=False))
