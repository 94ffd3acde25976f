"""The score as its definition reads: one full forward pass, autograd over everything, the whole head gradient.

It is what the method's published code does, and the yardstick for the cost of scoring; nothing else uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - this module is reached only to measure a model

from semgrad_guard.models.borrow import evaluating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.models import LocalModel


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
    weight = model.get_output_embeddings().weight
    before = weight.requires_grad
    with local.lock, evaluating(model), torch.enable_grad():
        weight.requires_grad_(True)  # noqa: FBT003 - torch's own signature
        try:
            return _score(model, weight, [*prompt], [*answer], len(prompt) + position)
        finally:
            weight.requires_grad_(before)


def _score(model: Any, weight: torch.Tensor, prompt: list[int], answer: list[int], place: int) -> tuple[float, float]:
    ids = torch.tensor([prompt + answer], device=weight.device)
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    first = len(prompt) - 1
    log_p = torch.log_softmax(output.logits[0, first:-1].float(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).detach()
    loss = -(entropy * log_p.gather(1, ids[0, first + 1 :, None])[:, 0]).mean()
    n_blocks = len(output.hidden_states) - 1
    states = output.hidden_states[n_blocks - n_blocks // 2 : n_blocks]
    *by_states, by_weight = torch.autograd.grad(loss, [*states, weight])
    semgrad = torch.stack([gradient[0, place] for gradient in by_states]).double().abs().mean()
    return float(semgrad), float(by_weight.abs().mean(dtype=torch.float64))
