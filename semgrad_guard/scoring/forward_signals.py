"""Signals that cost extra forward passes: how much the passages help, and whether the model calls an answer right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from semgrad_guard.flow import Message
from semgrad_guard.scoring.budget import unhurried
from semgrad_guard.scoring.head import run_head
from semgrad_guard.scoring.layout import Tokens, lay_out
from semgrad_guard.scoring.model_lease import ModelLease, borrowed
from semgrad_guard.scoring.model_parts import model_parts_of
from semgrad_guard.scoring.reading import is_read_by_proxy, proxy_prompt
from semgrad_guard.scoring.recording import forward_no_grad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from semgrad_guard.flow import Exchange, Passage, Prompt
    from semgrad_guard.models import LocalModel


def answer_nll(model: PreTrainedModel, tokens: Tokens, check: Callable[[], None] = unhurried) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each answer token in nats. The caller holds the model's lock."""
    first = len(tokens.prompt) - 1
    with borrowed(model):
        z = _head_inputs(model, tokens)[first : first + len(tokens.answer)]
        targets = torch.tensor(tokens.answer, device=z.device)
        return run_head(model_parts_of(model).head, z, targets, (), check=check).read().nll


def next_probabilities(model: PreTrainedModel, tokens: Tokens, candidates: Sequence[int]) -> NDArray[np.float64]:
    """Return the probability of each candidate token as the first token of the answer."""
    with borrowed(model):
        z = _head_inputs(model, tokens)[len(tokens.prompt) - 1]
        targets = torch.tensor(candidates, device=z.device)
        return np.exp(-run_head(model_parts_of(model).head, z.expand(len(targets), -1), targets, ()).read().nll)


def _head_inputs(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    anatomy = model_parts_of(model)
    return forward_no_grad(model, anatomy, lay_out([tokens], 0, anatomy.device, split=False).rest, None)[0]


def nll_without_passages(
    model: LocalModel, exchange: Exchange, tokens: Tokens, lease: ModelLease | None = None
) -> NDArray[np.float64] | None:
    """Return the negative log-likelihood of each answer token in nats where the model has not read the passages.

    The result is `None` when the prompt does not contain the passages word for word, so they cannot be left out.

    Args:
        model: the scoring model.
        exchange: the exchange, with its passages.
        tokens: tokens of the exchange.
        lease: how to wait for the model, and when to stop; `None` waits and works as long as it takes.
    """
    shorter = _ids_without(model, exchange, tokens)
    if not shorter:
        return None
    lease = lease or ModelLease(model.model, model.lock)
    with lease.hold():
        return answer_nll(model.model, Tokens(shorter, tokens.answer), lease.check)


IN_A_ROW = 12
"""How many tokens in a row a stretch of the answer has: about as many as say one thing."""
UNLIKELY, HELPED = 2.0, 0.5
"""Nats from which on a token is unlikely, and by which passages must change it to count."""


def passage_signals(nll: NDArray[np.float64], without: NDArray[np.float64]) -> dict[str, float]:
    """Return the signals of what the passages did to the likelihood of each token of the answer, by name.

    Args:
        nll: negative log-likelihood of each token with the passages, in nats.
        without: the same without them.
    """
    gain = without - nll
    stretch = min(IN_A_ROW, len(gain))
    return {
        "context_gain": float(gain.mean()),
        "context_gain_min": float(np.convolve(gain, np.full(stretch, 1 / stretch), "valid").min()),
        "context_gain_share": 1 - float(nll.sum() / max(float(without.sum()), 1e-6)),
        "context_loss": float(-np.minimum(gain, 0).sum()),
        "hurt_tokens": float((gain < -HELPED).sum()),
        "unhelped_tokens": float(((nll > UNLIKELY) & (gain < HELPED)).mean()),
    }


def without_passages(prompt: Prompt, passages: Sequence[Passage]) -> Prompt:
    """Return the prompt without the passages' texts."""
    if isinstance(prompt, str):
        for passage in sorted(passages, key=lambda passage: len(passage.text), reverse=True):
            if passage.text.strip():
                prompt = prompt.replace(passage.text.strip(), "")
        return prompt
    return tuple(Message(message.role, str(without_passages(message.content, passages))) for message in prompt)


def _ids_without(model: LocalModel, exchange: Exchange, tokens: Tokens) -> tuple[int, ...] | None:
    if is_read_by_proxy(exchange):
        return model.encode_prompt(proxy_prompt(exchange.question or "", ())) if exchange.passages else None
    shorter = without_passages(exchange.prompt, exchange.passages)
    if shorter != exchange.prompt:
        return model.encode_prompt(shorter, as_chat=not exchange.on_policy)
    # only the ids are known: their text, special tokens and all, is a rendered prompt
    text = str(model.tokenizer.decode(list(tokens.prompt), skip_special_tokens=False))
    shorter = without_passages(text, exchange.passages)
    return None if shorter == text else model.encode_prompt(shorter)


_ASK = "Is the proposed answer correct? Reply with Yes or No."


def p_true(model: LocalModel, exchange: Exchange, lease: ModelLease | None = None) -> float | None:
    """Return the probability, in [0, 1], that the model calls the answer correct; `None` without question or answer.

    Args:
        model: the scoring model.
        exchange: the exchange.
        lease: as for `nll_without_passages`.

    Source: P(True), Kadavath et al. 2022 (arXiv 2207.05221); here with passages, and yes or no instead of letters.
    """
    question = exchange.question or (exchange.prompt if isinstance(exchange.prompt, str) else "")
    if not question or not exchange.answer:
        return None
    passages = "\n\n".join(passage.text for passage in exchange.passages)
    context = f"{passages}\n\n" if passages and exchange.question else ""
    text = f"{context}Question: {question}\nProposed answer: {exchange.answer}\n{_ASK}"
    prompt = (Message("user", text),) if model.is_chat else f"{text}\nReply:"
    ids = model.encode_prompt(prompt)
    space = "" if model.is_chat else " "
    yes, no = (model.tokenizer(space + word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    with (lease or ModelLease(model.model, model.lock)).hold():
        chances = next_probabilities(model.model, Tokens(ids, (yes,)), (yes, no))
    return float(chances[0] / chances.sum())
