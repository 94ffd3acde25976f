"""The score as its definition reads: full forward pass, autograd over everything, the whole head gradient.

It takes the steps that the method's published code takes, and is the yardstick for the cost of scoring; nothing else
uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - this module is reached only to measure a model

from semgrad_guard.models.device import evaluating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.models import LocalModel

_NO_TARGET = -100
_SMALLEST = 1e-15


def plain_score(local: LocalModel, prompt: Sequence[int], answer: Sequence[int], position: int) -> tuple[float, float]:
    """Return SemGrad and ParaGrad of one exchange, on a model whose hidden states transformers lists in full.

    With tied embeddings ParaGrad takes in the input path, as in the published code.

    Args:
        local: the model.
        prompt: its token ids.
        answer: its token ids.
        position: t*, counted from the prompt's end.
    """
    model: Any = local.model
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with local.lock, evaluating(model), torch.enable_grad():
        model.requires_grad_(True)  # noqa: FBT003 - torch's own signature
        try:
            return _score(model, [*prompt], [*answer], position)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)  # noqa: FBT003


def _score(model: Any, prompt: list[int], answer: list[int], position: int) -> tuple[float, float]:
    weight = model.get_output_embeddings().weight
    ids = torch.tensor([prompt + answer], device=weight.device)
    labels = ids.clone()
    labels[:, : len(prompt)] = _NO_TARGET
    output = model(input_ids=ids, labels=labels, output_hidden_states=True)  # the model's own loss is not used
    loss = _objective(output.logits[0, :-1], labels[0, 1:])
    states = output.hidden_states
    by_states = torch.autograd.grad(loss, states, retain_graph=True)
    (by_weight,) = torch.autograd.grad(loss, weight, retain_graph=True)
    n_blocks = len(states) - 1
    upper_half = by_states[n_blocks - n_blocks // 2 : n_blocks]
    at_position = torch.stack([gradient[0, len(prompt) + position] for gradient in upper_half])
    return float(at_position.double().abs().mean()), float(by_weight.abs().mean(dtype=torch.float64))


def _objective(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of entropy times negative log-likelihood over the answer, by way of the whole text's matrix."""
    p = torch.softmax(logits.detach().clone(), dim=-1)
    entropy = -(p.clamp(min=_SMALLEST).log() * p).sum(dim=-1)
    weighted = torch.log_softmax(logits, dim=-1) * entropy[:, None]
    return torch.nn.functional.nll_loss(weighted, targets, ignore_index=_NO_TARGET)
