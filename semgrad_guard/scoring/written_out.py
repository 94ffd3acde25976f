"""The gradient of the most common kind of decoder block, written out: half the operations that autograd takes.

Such a block is `h = x + O attention(norm(x))`, then `h + D (silu(G norm(h)) * U norm(h))`, with rotary positions and
heads that may share keys and values: Llama, Mistral, Qwen2, Qwen3, SmolLM and their kin. Keys and values come from the
writing's cache; only what the gradient needs is computed again. A model whose numbers differ from autograd's goes by
autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from semgrad_guard.models.device import has_plain_weight
from semgrad_guard.scoring.attention import ATTENTION_BYTES, MATRICES, note_weights, noted_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NORMS = {"input_layernorm", "post_attention_layernorm"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_SILU = {"SiLU", "SiLUActivation"}
_INTERFACES = {"sdpa", "eager"}
"""Ways of attention whose mask is a matrix that can be added."""


@dataclass(frozen=True, slots=True)
class CommonBlock:
    """The parts of a block of the common kind."""

    norm_in: nn.Module
    attention: Any
    norm_mid: nn.Module
    mlp: Any
    head_dim: int
    scaling: float
    has_head_norms: bool


def common_block(block: nn.Module, interface: str) -> CommonBlock | None:
    """Return the parts of a block, or `None` if it is of another kind or somebody listens to its inside.

    Args:
        block: a decoder block.
        interface: how the model computes attention (`attn_implementation`).
    """
    parts = dict(block.named_children())
    attention, mlp = parts.get("self_attn"), parts.get("mlp")
    if attention is None or mlp is None or parts.keys() != {"self_attn", "mlp", *_NORMS}:
        return None
    inner = dict(attention.named_children())
    linear = [module for name, module in [*inner.items(), *mlp.named_children()] if name.endswith("_proj")]
    fits = (
        interface in _INTERFACES
        and inner.keys() - _HEAD_NORMS == _ATTENTION
        and dict(mlp.named_children()).keys() == _MLP
        and type(mlp.act_fn).__name__ in _SILU
        and all(type(module) is nn.Linear and has_plain_weight(module) for module in linear)
        and all(_epsilon(norm) is not None for name, norm in {**parts, **inner}.items() if name.endswith("norm"))
        and _are_alike(_head_norms(attention), getattr(attention, "head_dim", None))
        and not any(_has_listeners(module) for module in block.modules() if module is not block)
        and not vars(block)["_forward_hooks"]
    )
    untyped: Any = attention
    if not fits or not isinstance(getattr(untyped, "scaling", None), float):
        return None
    return CommonBlock(
        parts["input_layernorm"],
        attention,
        parts["post_attention_layernorm"],
        mlp,
        int(untyped.head_dim),
        untyped.scaling,
        bool(inner.keys() & _HEAD_NORMS),
    )


def _has_listeners(module: nn.Module) -> bool:
    return any(vars(module)[kind] for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))


def _epsilon(norm: Any) -> float | None:
    """Return what a root-mean-square norm adds to the mean square; `None` for another kind of norm."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    only_weight = [name for name, _ in norm.named_parameters()] == ["weight"]
    return found if isinstance(found, float) and only_weight and not isinstance(norm, nn.LayerNorm) else None


def _runs(block: CommonBlock, n_new: int, n_all: int) -> list[slice]:
    """Return runs of new tokens whose attention to all tokens fits in memory together; one run where all do."""
    n_heads: int = block.attention.q_proj.out_features // block.head_dim
    length = max(1, ATTENTION_BYTES // (n_heads * n_all * 4 * MATRICES))
    return [slice(start, min(start + length, n_new)) for start in range(0, n_new, length)]


class Surroundings:
    """What the blocks of one pass share: rotary positions and masks, made ready once for each kind of block."""

    def __init__(self) -> None:
        """Start with none."""
        self._ready: dict[tuple[int, ...], Any] = {}

    def rotary(self, angles: tuple[Tensor, Tensor], dtype: torch.dtype) -> _Rotary:
        """Return a block's rotary positions."""
        key = (id(angles[0]), id(angles[1]))
        if key not in self._ready:
            self._ready[key] = angles, _Rotary.of(angles, dtype)  # the angles too, so that the ids stay theirs
        found: _Rotary = self._ready[key][1]
        return found

    def mask(self, mask: Tensor | None, shape: tuple[int, int, int], like: Tensor) -> Mask:
        """Return what gives a block's mask for some of the new tokens.

        Args:
            mask: as the model gives it to the block.
            shape: query heads for each head of keys, new tokens, all tokens.
            like: a tensor of the wanted type, on the block's device.
        """
        key = (id(mask), *shape)
        if key not in self._ready:
            self._ready[key] = mask, Mask(mask, shape, like)
        found: Mask = self._ready[key][1]
        return found


class Mask:
    """What the new tokens of a block may attend to, as numbers to add; kept where it is wanted of all together."""

    def __init__(self, mask: Tensor | None, shape: tuple[int, int, int], like: Tensor) -> None:
        """Take the model's own mask; `None` where every token sees all before it."""
        self._mask = None if mask is None else mask[0, 0]
        self._n_shared, self._n_new, self._n_all = shape
        self._dtype, self._device = like.dtype, like.device
        self._whole: Tensor | None = None
        self._looks_back: bool | None = True if mask is None else None

    def of(self, some: slice) -> Tensor:
        """Return the rows of some new tokens, ``(query head of each head x new token, token)``.

        Tokens after them are left out where the rows are not all and nothing looks ahead.
        """
        if some.stop - some.start < self._n_new:
            return self._rows(some, self._n_seen(some))
        if self._whole is None:
            self._whole = self._rows(some, self._n_all)
        return self._whole

    def _n_seen(self, some: slice) -> int:
        n_old = self._n_all - self._n_new
        if self._looks_back is None:
            allowed = self._mask
            self._looks_back = (
                allowed is not None and allowed.dtype == torch.bool and not bool(allowed.triu(n_old + 1).any())
            )
        return n_old + some.stop if self._looks_back else self._n_all

    def _rows(self, some: slice, n_seen: int) -> Tensor:
        n_rows = some.stop - some.start
        if self._mask is None:
            allowed = torch.ones(n_rows, n_seen, dtype=torch.bool, device=self._device)
            allowed = allowed.tril_(self._n_all - self._n_new + some.start)
        elif self._mask.dtype == torch.bool:
            allowed = self._mask[some, :n_seen]
        else:
            return self._mask[some, :n_seen].to(self._dtype).repeat(self._n_shared, 1)
        zeros = torch.zeros(n_rows, n_seen, dtype=self._dtype, device=self._device)
        return zeros.masked_fill_(~allowed, -torch.inf).repeat(self._n_shared, 1)


@dataclass(frozen=True, slots=True)
class _Rotary:
    """Cosines, and sines with the sign of the turn and of its gradient; each ``(token, head dimension)``."""

    cos: Tensor
    sin: Tensor
    sin_back: Tensor

    @classmethod
    def of(cls, angles: tuple[Tensor, Tensor], dtype: torch.dtype) -> _Rotary:
        cos, sin = (one[0].to(dtype) for one in angles)
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
        return cls(cos, signed, signed.roll(half, dims=-1))

    def turn(self, heads: Tensor) -> Tensor:
        """Return queries or keys, ``(head, token, head dimension)``, turned by their positions."""
        return torch.addcmul(heads * self.cos, heads.roll(self.cos.shape[-1] // 2, dims=-1), self.sin)

    def turn_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by what was turned."""
        return torch.addcmul(gradient * self.cos, gradient.roll(self.cos.shape[-1] // 2, dims=-1), self.sin_back)


@cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((1,), value, dtype=dtype, device=device)


class _Norm:
    """A root-mean-square norm of some numbers, and its gradient."""

    def __init__(self, x: Tensor, weight: Tensor, epsilon: float) -> None:
        """Compute the norm of `x` along its last axis, in the type of `x`, still without the weight."""
        n = x.shape[-1]
        self._weight, self._root = weight, math.sqrt(n)
        self._nothing = _constant(0.0, x.dtype, x.device)
        # the root of n times the mean square, epsilon included
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        self._length = torch.hypot(length, _constant(math.sqrt(n * epsilon), x.dtype, x.device))
        self.scaled = torch.addcdiv(self._nothing, x, self._length, value=self._root)

    @classmethod
    def of(cls, norm: Any, x: Tensor) -> _Norm:
        """Return a module's norm of what it gets."""
        return cls(x, norm.weight, _epsilon(norm) or 0.0)

    def output(self, dtype: torch.dtype) -> Tensor:
        """Return the output, computed as exactly as the input and then rounded."""
        return torch.mul(self.scaled, self._weight, out=torch.empty_like(self.scaled, dtype=dtype))

    def pull(self, gradient: Tensor, onto: Tensor | None = None) -> Tensor:
        """Return the gradient by the input, added to another one."""
        wide = gradient.dtype == self.scaled.dtype
        weighted = gradient * self._weight if wide else torch.addcmul(self._nothing, gradient, self._weight)
        along = (weighted * self.scaled).mean(dim=-1, keepdim=True)
        across = torch.addcmul(weighted, self.scaled, along, value=-1.0)
        return torch.addcdiv(self._nothing if onto is None else onto, across, self._length, value=self._root)


def gradient_by_state(  # noqa: PLR0913 - the block, its state, what comes back, and what it reads
    block: CommonBlock,
    state: Tensor,
    gradient: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    rotary: _Rotary,
    mask: Mask,
) -> Tensor:
    """Return the gradient by the state that enters a block.

    Args:
        block: the block.
        state: the state of the new tokens, ``(token, hidden)``, at least float32.
        gradient: the gradient by the state that leaves it, same shape and type.
        keys: the keys of all tokens, of which the new ones are the last, ``(head, token, head dimension)``.
        values: their values, same shape.
        rotary: positions of the new tokens.
        mask: what the new tokens may attend to.
    """
    attention, n, dim = block.attention, len(state), block.head_dim
    if keys.dtype != state.dtype:
        keys, values = torch.split(_joined_as(state.dtype, [keys, values]), len(keys))
    noted, n_old = noted_gradients(attention), keys.shape[1] - n
    first = n_old if noted is None else 0

    before = _Norm.of(block.norm_in, state)
    head_norm, queries = _queries(block, before.output(attention.q_proj.weight.dtype), state.dtype)
    queries = rotary.turn(queries)
    # through attention, every token depends on itself and on keys and values: all else goes by runs of tokens
    by_run, by_keys, by_values = list[tuple[torch.Tensor, torch.Tensor]](), None, None
    for some in _runs(block, n, keys.shape[1]):
        one = _pulled_run(block, state, gradient, queries, keys, values, mask.of(some), some, first)
        by_run.append((one.by_middle, one.by_queries))
        n_from = keys.shape[1] - first
        by_keys, by_values = _added_up(by_keys, one.by_keys, n_from), _added_up(by_values, one.by_values, n_from)
    by_middle, by_queries = (_joined(pieces, dim) for dim, pieces in enumerate(zip(*by_run, strict=True)))
    if by_keys is None or by_values is None:  # pragma: no cover - there is always a run
        raise AssertionError
    if noted is not None:
        noted.note(attention, by_keys, by_values, keys, values, scaling=block.scaling)
        by_keys, by_values = by_keys[:, n_old:], by_values[:, n_old:]

    turned = rotary.turn_back(torch.cat([by_queries, by_keys]))
    if head_norm is not None:
        turned = head_norm.pull(turned)
    sizes = [dim * len(one) for one in (by_queries, by_keys, by_values)]
    together = _joined_as(attention.v_proj.weight.dtype, [turned.transpose(0, 1), by_values.transpose(0, 1)], dim=1)
    by_query_rows, by_key_rows, by_value_rows = torch.split(together.view(n, -1), sizes, dim=1)
    by_input = _times(by_value_rows, attention.v_proj)
    for by_rows, layer in ((by_query_rows, attention.q_proj), (by_key_rows, attention.k_proj)):
        by_input = torch.addmm(by_input, by_rows.to(layer.weight.dtype), layer.weight, alpha=block.scaling)
    return before.pull(by_input, onto=by_middle)


def _queries(block: CommonBlock, inputs: Tensor, dtype: torch.dtype) -> tuple[_Norm | None, Tensor]:
    """Return the queries of the new tokens before they are turned, ``(head, token, head dimension)``.

    Where heads have norms, that of queries and keys together comes with them.
    """
    attention, dim = block.attention, block.head_dim
    made = _linear(inputs, attention.q_proj)
    if not block.has_head_norms:
        return None, _by_head(made, dim, dtype)
    layers = (made, _linear(inputs, attention.k_proj))
    heads = [one.view(len(one), -1, dim).transpose(0, 1) for one in layers]
    weights = [norm.weight.expand(len(one), 1, dim) for norm, one in zip(_head_norms(attention), heads, strict=True)]
    both = _Norm(_joined_as(dtype, heads), torch.cat(weights), _epsilon(attention.q_norm) or 0.0)
    return both, both.scaled[: len(heads[0])] * attention.q_norm.weight


def _head_norms(attention: Any) -> list[Any]:
    """Return the norms of queries and keys, if there are any."""
    return [norm for norm in (getattr(attention, name, None) for name in ("q_norm", "k_norm")) if norm is not None]


def _are_alike(norms: Sequence[Any], width: int | None) -> bool:
    """Return whether norms of heads are none, or one for queries and one for keys that can be computed together."""
    return len(norms) != 1 and all((_epsilon(one), one.weight.numel()) == (_epsilon(norms[0]), width) for one in norms)


def _joined_as(dtype: torch.dtype, pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors and convert them to a number format, in one operation."""
    shape = list(pieces[0].shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    return torch.cat(list(pieces), dim=dim, out=torch.empty(shape, dtype=dtype, device=pieces[0].device))


@dataclass(frozen=True, slots=True)
class _PulledRun:
    """What a run of new tokens passes back."""

    by_middle: Tensor
    """By its state between attention and MLP, ``(token, hidden)``."""
    by_queries: Tensor
    """``(query head, token, head dimension)``"""
    by_keys: Tensor
    """By the keys, from the first wanted one on, that the run may attend to, ``(head, token, head dimension)``."""
    by_values: Tensor
    """By their values, same shape."""


def _pulled_run(  # noqa: PLR0913, PLR0917 - what the whole is computed from, and which part
    block: CommonBlock,
    state: Tensor,
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    some: slice,
    first: int,
) -> _PulledRun:
    """Return what a run of new tokens passes back through MLP and attention.

    Args:
        block: the block.
        state: the state of all new tokens, ``(token, hidden)``.
        gradient: the gradient by the state that leaves the block, same shape.
        queries: the queries of all new tokens, turned, ``(query head, token, head dimension)``.
        keys: the keys of all tokens, ``(head, token, head dimension)``.
        values: their values, same shape.
        mask: to be added to the attention of the run, ``(query head of each head x token of the run, token)``; tokens
            that none of the run may attend to are left out at the end.
        some: the run.
        first: the first token whose keys and values the gradients are wanted by.
    """
    attention, mlp, n = block.attention, block.mlp, some.stop - some.start
    n_groups, dim = keys.shape[0], block.head_dim
    keys, values = keys[:, : mask.shape[1]], values[:, : mask.shape[1]]
    gradient = gradient[some]

    queries = queries[:, some].reshape(n_groups, -1, dim)
    weights = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=block.scaling).softmax(dim=-1)
    note_weights(attention, weights.view(-1, n, weights.shape[-1]), some.start)
    read = _by_token(weights @ values, n, attention.o_proj.weight.dtype)
    middle = _added_to(state[some], read, attention.o_proj)
    after = _Norm.of(block.norm_mid, middle)
    normed = after.output(mlp.gate_proj.weight.dtype)
    gate, up = _linear(normed, mlp.gate_proj), _linear(normed, mlp.up_proj)

    inner = _times(gradient, mlp.down_proj)
    by_up = inner * nn.functional.silu(gate)
    by_gate = torch.ops.aten.silu_backward(inner.mul_(up), gate)
    by_norm = torch.addmm(_times(by_gate, mlp.gate_proj), by_up, mlp.up_proj.weight)
    by_middle = after.pull(by_norm, onto=gradient)

    by_read = _by_head(_times(by_middle, attention.o_proj), dim, state.dtype).reshape(n_groups, -1, dim)
    by_values = weights[..., first:].transpose(1, 2) @ by_read
    by_weights = by_read @ values.transpose(1, 2)
    by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)  # noqa: SLF001
    by_keys = by_scores[..., first:].transpose(1, 2) @ queries
    return _PulledRun(by_middle, (by_scores @ keys).view(-1, n, dim), by_keys, by_values)


def _added_up(total: Tensor | None, piece: Tensor, n_all: int) -> Tensor:
    """Return the sum over runs of a gradient by keys or values, of which a run sees the first."""
    if total is None:
        n_missing = n_all - piece.shape[1]
        return nn.functional.pad(piece, (0, 0, 0, n_missing)) if n_missing else piece
    total[:, : piece.shape[1]] += piece
    return total


def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=dim)


def _by_token(heads: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Return numbers by head, of which each head has `n` tokens, as ``(token, head x head dimension)``."""
    rows = heads.reshape(-1, n, heads.shape[-1]).transpose(0, 1)
    return rows.to(dtype, memory_format=torch.contiguous_format).reshape(n, -1)  # at most one copy


def _by_head(rows: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Return numbers by token, ``(token, head x head dimension)``, as ``(head, token, head dimension)``."""
    heads = rows.view(len(rows), -1, head_dim).transpose(0, 1)
    return heads.to(dtype, memory_format=torch.contiguous_format)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return nn.functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def _added_to(state: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """Return a state plus a layer's output."""
    if getattr(layer, "bias", None) is None and layer.weight.dtype == state.dtype:
        return torch.addmm(state, x, layer.weight.T)
    return state + _linear(x, layer)


def _times(gradient: Tensor, layer: nn.Linear) -> Tensor:
    """Return the gradient by a layer's input."""
    return gradient.to(layer.weight.dtype) @ layer.weight
