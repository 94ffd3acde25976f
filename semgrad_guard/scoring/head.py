"""The output head: how it makes logits, and a pass over the vocabulary in blocks for likelihoods and gradients.

Nothing here waits for the device: all results stay there until they are read together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from semgrad_guard.errors import NonFiniteScoreError
from semgrad_guard.models.device import has_plain_weight, widest_float
from semgrad_guard.scoring.budget import LEAN, MemoryBudget, unhurried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
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
    raw, logits = raw.cpu().double(), logits.cpu().double()
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
    if type(module) is nn.Linear and has_plain_weight(module) and not hasattr(module, "_hf_hook"):
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
        self._converted: tuple[slice, Tensor] | None = None

    def raw(self, block: slice) -> Tensor:
        output = self.inputs @ self._rows(block).T
        return output if self._bias is None else output.add_(self._bias[block].to(output.dtype))

    def push(self, block: slice, errors: Tensor) -> None:
        self._pull.addmm_(errors, self._rows(block))

    def pull(self) -> Tensor:
        return self._pull

    def _rows(self, block: slice) -> Tensor:
        """Return a block of the weight; where one block is the whole vocabulary, it is converted only once."""
        if self._weight.dtype == self.inputs.dtype:
            return self._weight[block]
        if self._converted is None or self._converted[0] != block:
            self._converted = None  # before the next one takes its place
            self._converted = block, self._weight[block].to(self.inputs.dtype)
        return self._converted[1]


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


@dataclass(frozen=True, slots=True)
class HeadNumbers:
    """What was read of a pass of the head; arrays are ``(token,)``."""

    nll: NDArray[np.float64]
    """Negative log-likelihoods, in nats."""
    entropy: NDArray[np.float64]
    """Entropies of the softmax, in nats."""
    top: NDArray[np.float64]
    """Largest probabilities."""
    is_top: NDArray[np.bool_]
    """True where the answer's token is the likeliest."""
    norms: tuple[WeightNorms, ...]
    """One for each requested run of tokens."""


@dataclass(frozen=True, slots=True)
class HeadPass:
    """Results of the head for some answer tokens, on its device; all but `pull` in its `widest_float`."""

    by_token: Tensor
    """NLL, entropy, largest probability, and 1 where the answer's token has it: ``(4, token)``."""
    pull: Tensor
    """Gradient of each token's NLL by its own head input, ``(token, hidden)``."""
    by_weight: Tensor
    """Absolute gradients by the weight, summed over its entries and the tokens, ``(run of tokens, norm)``."""
    n_summed: tuple[int, ...]
    """How many numbers a mean is taken of, for each run of tokens."""
    flaw: Tensor
    """0, or NaN where an input was NaN or infinite; ``()``."""
    names: tuple[WeightNorm, ...]
    """The norms of `by_weight`."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the softmax, in nats, ``(token,)``."""
        return self.by_token[1]

    def pieces(self) -> list[Tensor]:
        """Return what is to be read, for one transfer together with other numbers."""
        return [self.flaw.reshape(1), self.by_token.flatten(), self.by_weight.flatten()]

    def read(self) -> HeadNumbers:
        """Return the numbers; this waits for the device.

        Raises:
            NonFiniteScoreError: hidden states or logits are NaN or infinite.
        """
        return self.understood(np.array(torch.cat(self.pieces()).tolist()))

    def understood(self, numbers: NDArray[np.float64]) -> HeadNumbers:
        """Return what the transferred `pieces` say.

        Raises:
            NonFiniteScoreError: hidden states or logits are NaN or infinite.
        """
        n_tokens = self.by_token.shape[1]
        if not np.isfinite(numbers[0]):
            raise NonFiniteScoreError("the hidden state before the output head")
        nll, entropy, top, is_top = numbers[1 : 1 + 4 * n_tokens].reshape(4, n_tokens)
        if not np.isfinite(nll + entropy).all():
            raise NonFiniteScoreError("the log-likelihood of the answer")
        sums = numbers[1 + 4 * n_tokens :].reshape(self.by_weight.shape)
        named = tuple(
            WeightNorms(**dict(zip(self.names, (values / n).tolist(), strict=True)))
            for values, n in zip(sums, self.n_summed, strict=True)
        )
        return HeadNumbers(nll, entropy, top, is_top > 0, named)


class _Softmax(NamedTuple):
    """Sums over the whole vocabulary for each token's softmax."""

    peak: Tensor
    log_total: Tensor
    """Logarithm of the sum of `exp(logit - peak)`."""
    moment: Tensor
    """Mean of `logit - peak` under the softmax."""
    own: Tensor
    """The target's logit."""


def run_head(  # noqa: PLR0913 - what is computed, and with how much memory
    head: OutputHead,
    z: Tensor,
    targets: Tensor,
    parts: Sequence[slice],
    known: Tensor | None = None,
    *,
    norms: Sequence[WeightNorm] = WEIGHT_NORMS,
    budget: MemoryBudget = LEAN,
    check: Callable[[], None] = unhurried,
) -> HeadPass:
    """Return likelihoods, entropies and gradients of some answer tokens.

    Args:
        head: the output head.
        z: head inputs, ``(token, hidden)``.
        targets: the answer's token ids, ``(token,)``.
        parts: runs of tokens for which to compute the gradient by the weight.
        known: the head's output for these inputs, if it is already known, ``(token, vocabulary)``.
        norms: which gradients by the weight to compute.
        budget: memory that decides how much of the vocabulary is worked on at a time.
        check: called before each block of the vocabulary; what it raises ends the pass.
    """
    source = head_source(head.module, z)
    converts = isinstance(source, _OpenWeight) and source.inputs.dtype != head.module.weight.dtype
    width = budget.vocabulary_block(head.n_vocabulary, z.shape[1], len(z), n_norms=len(norms), converts=converts)
    blocks = [slice(start, min(start + width, head.n_vocabulary)) for start in range(0, head.n_vocabulary, width)]
    logits = _Logits(head, source, blocks, known, budget, check)
    targets = targets.to(source.inputs.device)[:, None]
    softmax = _first_pass(logits, targets)
    nll = softmax.log_total - (softmax.own - softmax.peak)
    entropy = (softmax.log_total - softmax.moment).clamp_(min=0.0)
    by_weight = _second_pass(logits, targets, softmax, _weights(entropy, norms), parts)
    top, is_top = softmax.log_total.neg().exp_(), (softmax.own >= softmax.peak).to(nll.dtype)
    # zero times a number is zero, times NaN or infinity NaN
    flaw = (source.inputs * 0.0).sum(dtype=nll.dtype)
    by_token = torch.stack([nll, entropy, top, is_top])
    n_summed = tuple(head.n_vocabulary * z.shape[1] * len(range(*part.indices(len(z)))) for part in parts)
    return HeadPass(by_token, source.pull(), by_weight, n_summed, flaw, tuple(norms))


def _weights(entropy: Tensor, norms: Sequence[WeightNorm]) -> dict[WeightNorm, Tensor | None]:
    """Return the weight of each token in each norm; `None` is 1 for all."""
    return {name: entropy if name == "paragrad" else None for name in norms}


class _Logits:
    """The logits of some tokens, a block of the vocabulary at a time, kept for a second pass if there is room."""

    def __init__(
        self,
        head: OutputHead,
        source: HeadSource,
        blocks: Sequence[slice],
        known: Tensor | None,
        budget: MemoryBudget,
        check: Callable[[], None],
    ) -> None:
        self.head, self.source, self.blocks, self._check = head, source, blocks, check
        self._kept: list[Tensor] = []
        self._keeps = len(source.inputs) * head.n_vocabulary <= budget.stored_logits
        if known is not None:
            logits = known if head.logit_map == LogitMap() else head.logit_map.apply_(known.clone())
            self._kept = [logits[:, block] for block in blocks]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each block and its logits, ``(token, vocabulary of the block)``."""
        if self._kept:
            for block, logits in zip(self.blocks, self._kept, strict=True):
                self._check()
                yield block, logits
            return
        for block in self.blocks:
            self._check()
            logits = self.head.logit_map.apply_(self.source.raw(block))
            if self._keeps:
                self._kept.append(logits)
            yield block, logits


def _first_pass(blocks: _Logits, targets: Tensor) -> _Softmax:
    """Return the softmax sums relative to the peak, so that the tiny entropy of a sure token is exact too.

    The peak's own 1 is added in `widest_float`, so that the small terms of the others are not rounded away.
    """
    peaks, totals, moments, own = (list[torch.Tensor]() for _ in range(4))
    for block, logits in blocks:
        at_target, inside = _targets_in(blocks, block, targets)
        found = logits.gather(1, at_target)
        own.append(found if inside is None else found.masked_fill(~inside, 0.0))
        peak, at = logits.max(dim=1, keepdim=True)
        below = logits - peak
        powers = below.exp().scatter_(1, at, 0.0)
        peaks.append(peak)
        totals.append(powers.sum(dim=1, keepdim=True))
        moments.append(below.mul_(powers).sum(dim=1, keepdim=True))
    sums = torch.cat([*peaks, *totals, *moments, *own], dim=1)
    sums = sums.to(widest_float(sums.device))
    peak, total, moment, target = sums.view(-1, 4, len(own)).unbind(dim=1)
    total = total + 1.0
    highest, *joined = (peak, total, moment) if len(own) == 1 else _joined(peak, total, moment)
    total, moment = (one.squeeze(1) for one in joined)
    # a token's logit is in one block, the others hold zeros
    return _Softmax(highest.squeeze(1), total.log(), moment / total, target.sum(dim=1))


def _joined(peak: Tensor, total: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return peak, total and moment of all blocks from those of each, ``(token, block)``, as one column each."""
    highest = peak.amax(dim=1, keepdim=True)
    below = peak - highest
    powers = below.exp()
    moment = (powers * (moment + below * total)).sum(dim=1, keepdim=True)
    return highest, (powers * total).sum(dim=1, keepdim=True), moment


def _second_pass(
    blocks: _Logits,
    targets: Tensor,
    softmax: _Softmax,
    weights: Mapping[WeightNorm, Tensor | None],
    parts: Sequence[slice],
) -> Tensor:
    """Pass every token's error back to its head input, and return the summed absolute gradients by the weight."""
    inputs = blocks.source.inputs
    weighted = [inputs if weight is None else inputs * weight.to(inputs.dtype)[:, None] for weight in weights.values()]
    side_by_side = torch.cat(weighted, dim=1) if weighted and parts else None
    log_total = (softmax.peak + softmax.log_total).to(inputs.dtype)[:, None]
    buffer = None if side_by_side is None else inputs.new_empty(blocks.blocks[0].stop, side_by_side.shape[1])
    sums: list[list[Tensor]] = [[] for _ in parts]
    for block, logits in blocks:
        errors = (logits - log_total).exp_()
        at_target, inside = _targets_in(blocks, block, targets)
        share = errors.gather(1, at_target)
        errors.scatter_(1, at_target, share - 1.0 if inside is None else share - inside.to(share.dtype))
        blocks.head.logit_map.pull_back_(errors, logits)
        blocks.source.push(block, errors)
        if side_by_side is None or buffer is None:
            continue
        for found, part in zip(sums, parts, strict=True):
            gradient = torch.mm(errors[part].T, side_by_side[part], out=buffer[: errors.shape[1]])
            rows = _absolute_sums_(gradient.view(-1, len(weights), inputs.shape[1]))
            # a float32 sum over the vocabulary would lose up to 2 %; over one row of hidden dimensions it does not
            found.append(rows.sum(dim=0, dtype=softmax.peak.dtype))
    if side_by_side is None:
        return inputs.new_zeros(len(parts), len(weights), dtype=softmax.peak.dtype)
    by_block = torch.stack([one for found in sums for one in found])
    return by_block if len(blocks.blocks) == 1 else by_block.view(len(parts), -1, len(weights)).sum(dim=1)


def _targets_in(blocks: _Logits, block: slice, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return each token's target as an index in a block, ``(token, 1)``, and whether it is inside.

    The second is `None` where the block is the whole vocabulary.
    """
    if len(blocks.blocks) == 1:
        return targets, None
    places = targets - block.start
    width = block.stop - block.start
    inside = (places >= 0) & (places < width)
    return places.clamp_(0, width - 1), inside


def _absolute_sums_(gradient: Tensor) -> Tensor:
    """Return sums of absolute values over the last axis; the gradient may be overwritten.

    A processor is twice as fast in two steps; an accelerator reads the numbers once instead of three times.
    """
    if gradient.device.type == "cpu":
        return gradient.abs_().sum(dim=-1)
    sums: Tensor = torch.linalg.vector_norm(gradient, ord=1, dim=-1)
    return sums
