"""Where the output head's numbers come from: its open weight, or the module itself when the weight cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class HeadSource(Protocol):
    """Computes the head's raw output for some tokens, and sends gradients back through it."""

    inputs: Tensor
    """The head inputs in the number format of the computation, ``(token, hidden)``."""

    def raw(self, block: slice) -> Tensor:
        """Return the raw output for a block of the vocabulary, fresh, ``(token, vocabulary of the block)``."""
        ...

    def push(self, block: slice, errors: Tensor) -> None:
        """Take the gradient by the raw output of a block."""
        ...

    def pull(self) -> Tensor:
        """Return the gradient by the head inputs, ``(token, hidden)``, of all that was pushed."""
        ...


def head_source(module: nn.Module, z: Tensor) -> HeadSource:
    """Return the source for a head: by its weight where that is an ordinary one.

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
    """Works with slices of the weight, at least in float32, so that nothing as large as the vocabulary is needed."""

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
    """Runs the head itself: quantised, offloaded, adapted or otherwise not a plain matrix."""

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
