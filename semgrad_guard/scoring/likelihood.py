"""Likelihoods without gradients: one plain forward pass, for signals that compare the answer with something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from semgrad_guard.scoring.head import run_head
from semgrad_guard.scoring.layout import lay_out
from semgrad_guard.scoring.model_lease import borrowed
from semgrad_guard.scoring.model_parts import anatomy_of
from semgrad_guard.scoring.recording import run_blind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from semgrad_guard.scoring.layout import Tokens


def answer_nll(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Return the negative log-likelihood of each answer token in nats. The caller holds the model's lock."""
    first = len(tokens.prompt) - 1
    with borrowed(model):
        z = _head_inputs(model, tokens)[first : first + len(tokens.answer)]
        targets = torch.tensor(tokens.answer, device=z.device)
        return run_head(anatomy_of(model).head, z, targets, ()).nll.cpu()


def next_probabilities(model: PreTrainedModel, tokens: Tokens, candidates: Sequence[int]) -> Tensor:
    """Return the probability of each candidate as the token at the place of the answer's first."""
    with borrowed(model):
        z = _head_inputs(model, tokens)[len(tokens.prompt) - 1]
        targets = torch.tensor(candidates, device=z.device)
        return run_head(anatomy_of(model).head, z.expand(len(targets), -1), targets, ()).nll.neg().exp().cpu()


def _head_inputs(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    anatomy = anatomy_of(model)
    return run_blind(model, anatomy, lay_out([tokens], 0, anatomy.device, split=False).rest, None)[0]
