"""The output head: how it makes logits, and a pass over the vocabulary in blocks for likelihoods and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import nn

from semgrad_guard.errors import NonFiniteScoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

PROBE_PEAK = 60.0
"""Largest value of the probe: large enough to reveal a soft cap (30 to 50 in published models)."""


@dataclass(frozen=True, slots=True)
class LogitMap:
    """`logits = scale * raw`, or `cap * tanh(scale * raw / cap)` where there is a soft cap."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, raw: Tensor) -> Tensor:
        """Turn, in place, the head's raw output into logits."""
        if self.scale != 1.0:
            raw.mul_(self.scale)
        return raw if self.cap is None else raw.div_(self.cap).tanh_().mul_(self.cap)

    def pull_back_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn, in place, a gradient by the logits into the gradient by the head's raw output."""
        if self.cap is not None:
            gradient.mul_(1.0 - (logits / self.cap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def probe_values(n: int, dtype: torch.dtype) -> Tensor:
    """Return `n` head outputs for a model to turn into logits; the last is the peak, and the one before half of it."""
    values = torch.linspace(-PROBE_PEAK, PROBE_PEAK, n, dtype=torch.float64)
    values[-2] = PROBE_PEAK / 2
    return values.to(dtype)


def fit_logit_map(raw: Tensor, logits: Tensor) -> LogitMap | None:
    """Find from probe values how a model makes its logits; `None` if it is neither a scale nor a soft cap.

    Args:
        raw: values from `probe_values`, ``(vocabulary,)``.
        logits: the model's logits for them, same shape.
    """
    tolerance = 1e-5 if torch.finfo(logits.dtype).bits > 16 else 1e-2
    raw, logits = raw.double(), logits.double()
    linear = LogitMap(_rounded(float((raw @ logits) / (raw @ raw)), tolerance))
    for candidate in (linear, _soft_cap(logits, tolerance)):
        if candidate is None:
            continue
        predicted = candidate.apply_(raw.clone())
        if bool((predicted - logits).abs().max() <= tolerance * logits.abs().max()):
            return candidate
    return None


def _soft_cap(logits: Tensor, tolerance: float) -> LogitMap | None:
    """Return the soft cap that explains the logits of the probe's peak and of half of it.

    With `t = tanh(scale * half / cap)`: half becomes `cap * t`, and the peak `cap * 2t / (1 + t²)`.
    """
    half, peak = float(logits[-2]), float(logits[-1])
    square = 2.0 * half / peak - 1.0 if peak else 0.0
    if not 0.0 < square < 1.0:
        return None
    t = math.sqrt(square)
    cap = _rounded(half / t, tolerance)
    return LogitMap(_rounded(math.atanh(t) * cap / (PROBE_PEAK / 2), tolerance), cap)


def _rounded(value: float, tolerance: float) -> float:
    """Return a round number, as in model configs, if there is one within the tolerance."""
    rounded = float(f"{value:.3g}")
    return rounded if abs(rounded - value) <= tolerance * abs(value) else value


class HeadSource(Protocol):
    """Computes the head's raw output for some tokens and passes gradients back through it."""

    inputs: Tensor
    """The head inputs in the number format of the computation, ``(token, hidden)``."""

    def raw(self, block: slice) -> Tensor:
        """Return the raw output for a block of the vocabulary as a new tensor, ``(token, vocabulary of the block)``."""
        ...

    def push(self, block: slice, errors: Tensor) -> None:
        """Add the gradient by the raw output of a block."""
        ...

    def pull(self) -> Tensor:
        """Return the gradient by the head inputs, ``(token, hidden)``, from all pushed blocks."""
        ...


def head_source(module: nn.Module, z: Tensor) -> HeadSource:
    """Return the source for a head: it uses the weight directly where that is an ordinary matrix, else calls the head.

    Args:
        module: the output head.
        z: head inputs, ``(token, hidden)``.
    """
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter and not hasattr(module, "_hf_hook"):
        return _OpenWeight(module.weight, module.bias, z)
    return _Module(module, z)


def _at_least_float32(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


class _OpenWeight:
    """Uses slices of the weight, at least in float32, so that no tensor as large as the vocabulary is needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, z: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self.inputs = _at_least_float32(z.to(weight.device))
        self._pull = torch.zeros_like(self.inputs)

    def raw(self, block: slice) -> Tensor:
        output = self.inputs @ self._rows(block).T
        return output if self._bias is None else output.add_(self._bias[block].to(output.dtype))

    def push(self, block: slice, errors: Tensor) -> None:
        self._pull.addmm_(errors, self._rows(block))

    def pull(self) -> Tensor:
        return self._pull

    def _rows(self, block: slice) -> Tensor:
        return self._weight[block].to(self.inputs.dtype)


class _Module:
    """Calls the head itself, because it is quantised, offloaded, adapted or otherwise not a plain matrix."""

    def __init__(self, module: nn.Module, z: Tensor) -> None:
        self.inputs = _at_least_float32(z)
        self._leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            self._output: Tensor = module(self._leaf)
        self._errors = torch.zeros_like(self._output)

    def raw(self, block: slice) -> Tensor:
        output = self._output[:, block].detach()
        return output.to(torch.promote_types(output.dtype, torch.float32), copy=True)

    def push(self, block: slice, errors: Tensor) -> None:
        self._errors[:, block] = errors.to(self._errors.dtype)

    def pull(self) -> Tensor:
        (gradient,) = torch.autograd.grad(self._output, self._leaf, self._errors)
        return gradient.to(self.inputs.dtype)


BLOCK_ENTRIES = 2**21
"""Entries of the weight's gradient held at a time (8 MB in float32): more would not fit the processor's caches."""
STORED_ENTRIES = 2**26
"""Most logits kept between the two passes over the vocabulary (256 MB in float32); more are computed twice."""


@dataclass(frozen=True, slots=True)
class OutputHead:
    """A model's output head, and how its output becomes logits."""

    module: nn.Module
    logit_map: LogitMap
    n_vocabulary: int


class WeightNorms(NamedTuple):
    """Mean absolute gradient of the objective by the head's weight, for a run of answer tokens; else `None`."""

    paragrad: float | None = None
    """Each token weighted by its entropy."""
    exgrad: float | None = None
    """Each token weighted 1."""


WeightNorm = Literal["paragrad", "exgrad"]
WEIGHT_NORMS: tuple[WeightNorm, WeightNorm] = ("paragrad", "exgrad")
"""Each costs as much as an extra pass over the vocabulary."""


class HeadPass(NamedTuple):
    """Results of the head for some answer tokens; the first axis is the token."""

    nll: Tensor
    """Negative log-likelihood in nats, ``(token,)``, float64."""
    entropy: Tensor
    """Entropy of the softmax, in nats, ``(token,)``, float64."""
    top: Tensor
    """Largest probability, ``(token,)``, float64."""
    is_top: Tensor
    """True where the answer's token is the likeliest, ``(token,)``."""
    pull: Tensor
    """Gradient of each token's NLL by its own head input, ``(token, hidden)``."""
    norms: tuple[WeightNorms, ...]
    """One for each requested run of tokens."""


class _Softmax(NamedTuple):
    """Sums over the whole vocabulary for each token's softmax."""

    peak: Tensor
    log_total: Tensor
    """Logarithm of the sum of `exp(logit - peak)`."""
    moment: Tensor
    """Mean of `logit - peak` under the softmax."""
    own: Tensor
    """The target's logit."""


def run_head(
    head: OutputHead,
    z: Tensor,
    targets: Tensor,
    parts: Sequence[slice],
    known: Tensor | None = None,
    *,
    norms: Sequence[WeightNorm] = WEIGHT_NORMS,
) -> HeadPass:
    """Return likelihoods, entropies and gradients of some answer tokens.

    Args:
        head: the output head.
        z: head inputs, ``(token, hidden)``.
        targets: the answer's token ids, ``(token,)``.
        parts: runs of tokens for which to compute the gradient by the weight.
        known: the head's output for these inputs, if it is already known, ``(token, vocabulary)``.
        norms: which gradients by the weight to compute.

    Raises:
        NonFiniteScoreError: hidden states or logits are NaN or infinite.
    """
    _require_finite(z, "the hidden state before the output head")
    width = max(64, BLOCK_ENTRIES // (2 * z.shape[1]) // 64 * 64)
    blocks = [slice(start, min(start + width, head.n_vocabulary)) for start in range(0, head.n_vocabulary, width)]
    logits = _Logits(head, head_source(head.module, z), blocks, known)
    softmax = _first_pass(logits, targets)
    nll = softmax.log_total - (softmax.own - softmax.peak)
    entropy = softmax.log_total - softmax.moment
    _require_finite(nll + entropy, "the log-likelihood of the answer")
    entropy.clamp_(min=0.0)
    weights = {"paragrad": entropy, "exgrad": torch.ones_like(entropy)}
    by_weight = _second_pass(logits, targets, softmax, {name: weights[name] for name in norms}, parts)
    top = (-softmax.log_total).exp()
    return HeadPass(nll, entropy, top, softmax.own >= softmax.peak, logits.source.pull(), by_weight)


class _Logits:
    """The logits of some tokens, a block of the vocabulary at a time, kept for a second pass if there is room."""

    def __init__(self, head: OutputHead, source: HeadSource, blocks: Sequence[slice], known: Tensor | None) -> None:
        self.head, self.source, self.blocks = head, source, blocks
        self._kept: list[Tensor] = []
        self._keeps = len(source.inputs) * head.n_vocabulary <= STORED_ENTRIES
        if known is not None:
            logits = known if head.logit_map == LogitMap() else head.logit_map.apply_(known.clone())
            self._kept = [logits[:, block] for block in blocks]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each block and its logits, ``(token, vocabulary of the block)``."""
        if self._kept:
            yield from zip(self.blocks, self._kept, strict=True)
            return
        for block in self.blocks:
            logits = self.head.logit_map.apply_(self.source.raw(block))
            if self._keeps:
                self._kept.append(logits)
            yield block, logits


def _first_pass(blocks: _Logits, targets: Tensor) -> _Softmax:
    """Return the softmax sums relative to the peak, so that the tiny entropy of a sure token is exact too.

    The peak's own 1 is added in float64, so that the small terms of the others are not rounded away.
    """
    own = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    peaks, totals, moments = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    for block, logits in blocks:
        rows, columns = _targets_in(block, targets)
        own[rows] = logits[rows, columns].double()
        peak, at = logits.max(dim=1, keepdim=True)
        below = logits - peak
        powers = below.exp().scatter_(1, at, 0.0)
        peaks.append(peak[:, 0].double())
        totals.append(1.0 + powers.sum(dim=1).double())
        moments.append(below.mul_(powers).sum(dim=1).double())
    by_block = torch.stack(peaks)
    peak = by_block.amax(dim=0)
    below = by_block - peak
    powers = below.exp()
    total = (powers * torch.stack(totals)).sum(dim=0)
    moment = (powers * (torch.stack(moments) + below * torch.stack(totals))).sum(dim=0)
    return _Softmax(peak, total.log(), moment / total, own)


def _second_pass(
    blocks: _Logits, targets: Tensor, softmax: _Softmax, weights: Mapping[WeightNorm, Tensor], parts: Sequence[slice]
) -> tuple[WeightNorms, ...]:
    """Pass every token's error back to its head input, and sum the absolute gradient by the weight."""
    inputs = blocks.source.inputs
    weighted = [inputs * weight.to(inputs.dtype)[:, None] for weight in weights.values()]
    side_by_side = torch.cat([inputs[:, :0], *weighted], dim=1)
    log_total = (softmax.peak + softmax.log_total).to(inputs.dtype)[:, None]
    buffer = inputs.new_empty(blocks.blocks[0].stop, side_by_side.shape[1])
    sums = torch.zeros(len(parts), len(weights), dtype=torch.float64, device=inputs.device)
    for block, logits in blocks:
        errors = (logits - log_total).exp_()
        errors[_targets_in(block, targets)] -= 1.0
        blocks.head.logit_map.pull_back_(errors, logits)
        blocks.source.push(block, errors)
        for number, part in enumerate(parts if weights else ()):
            gradient = torch.mm(errors[part].T, side_by_side[part], out=buffer[: errors.shape[1]]).abs_()
            # a float32 sum over the vocabulary would lose up to 2 %; over one row of hidden dimensions it does not
            sums[number] += gradient.view(-1, len(weights), inputs.shape[1]).sum(dim=2).sum(dim=0, dtype=torch.float64)
    n_entries = blocks.head.n_vocabulary * inputs.shape[1]
    lengths = [len(range(*part.indices(len(targets)))) for part in parts]
    return tuple(
        WeightNorms(**{name: value / (n_entries * length) for name, value in zip(weights, values, strict=True)})
        for values, length in zip(sums.tolist(), lengths, strict=True)
    )


def _targets_in(block: slice, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens whose target is in a block, and its index there."""
    rows = ((targets >= block.start) & (targets < block.stop)).nonzero(as_tuple=True)[0]
    return rows, targets[rows] - block.start


def _require_finite(values: Tensor, where: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteScoreError(where)
