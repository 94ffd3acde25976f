"""The scores by their plain definition: one full forward pass, autograd over everything, the whole head gradient.

Slow and hungry on purpose: it follows the definition line by line, so that the fast way can be compared with it.
"""

from __future__ import annotations

import torch

LISTS_OUTPUTS = {"mamba", "mamba2", "rwkv"}
"""Architectures whose `hidden_states` begin with what leaves the first block instead of what enters it."""


def plain_scores(model, prompt_ids, answer_ids, positions=(-1, -2, -3, -4, -5)) -> dict[str, object]:
    """Return every gradient score of one exchange as the definition states it."""
    model.eval()
    head = model.get_output_embeddings()
    # its own path of a tied head: a separate leaf with the same numbers
    weight = head.weight.detach().clone().requires_grad_()
    tied, head.weight = head.weight, torch.nn.Parameter(weight)
    try:
        return _scores(model, head.weight, list(prompt_ids), list(answer_ids), positions)
    finally:
        head.weight = tied


def _scores(model, weight, prompt_ids, answer_ids, positions):
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    at = weight.device
    ids = torch.tensor([prompt_ids + answer_ids], device=at)
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    n_prompt, n_answer = len(prompt_ids), len(answer_ids)
    logits = output.logits[0, n_prompt - 1 : n_prompt + n_answer - 1]
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).detach()
    nll = -log_p[torch.arange(n_answer, device=at), torch.tensor(answer_ids, device=at)]
    n_blocks = model.config.get_text_config(decoder=True).num_hidden_layers
    lag = int(model.config.model_type in LISTS_OUTPUTS)
    states = output.hidden_states[n_blocks - n_blocks // 2 - lag : n_blocks - lag]
    loss = (entropy * nll).mean()
    by_states = torch.autograd.grad(loss, [*states, weight], retain_graph=True)
    by_weight = by_states[-1]
    (plain_by_weight,) = torch.autograd.grad(nll.mean(), weight)
    stacked = torch.stack(by_states[:-1])[:, 0].double().abs()
    semgrad = {p: float(stacked[:, n_prompt + p].mean()) for p in positions if n_prompt + p >= 0}
    return {
        "semgrad": semgrad,
        "paragrad": float(by_weight.double().abs().mean()),
        "exgrad": float(plain_by_weight.double().abs().mean()),
        "loss": float(loss.detach()),
        "nll": nll.detach().double().cpu(),
        "entropy": entropy.double().cpu(),
    }
