"""How much likelier the passages make the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.flow import Message
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.likelihood import answer_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange, Passage, Prompt
    from semgrad_guard.models import LocalModel


def context_gain(model: LocalModel, exchange: Exchange, tokens: Tokens, mean_nll: float) -> float | None:
    """Return the mean log-likelihood of the answer with the passages minus without, in nats a token.

    `None` when the prompt does not hold the passages word for word, so that they can't be left out.

    Args:
        model: the scoring model.
        exchange: with its passages.
        tokens: of the exchange.
        mean_nll: mean negative log-likelihood of the answer with the passages.
    """
    shorter = _ids_without(model, exchange, tokens)
    if not shorter:
        return None
    with model.lock:
        without = answer_nll(model.model, Tokens(shorter, tokens.answer))
    return float(without.mean()) - mean_nll


def without_passages(prompt: Prompt, passages: Sequence[Passage]) -> Prompt:
    """Return a prompt with the passages' texts left out."""
    if isinstance(prompt, str):
        for passage in sorted(passages, key=lambda passage: len(passage.text), reverse=True):
            if passage.text.strip():
                prompt = prompt.replace(passage.text.strip(), "")
        return prompt
    return tuple(Message(message.role, str(without_passages(message.content, passages))) for message in prompt)


def _ids_without(model: LocalModel, exchange: Exchange, tokens: Tokens) -> tuple[int, ...] | None:
    shorter = without_passages(exchange.prompt, exchange.passages)
    if shorter != exchange.prompt:
        return model.encode_prompt(shorter, as_chat=not exchange.on_policy)
    # only the ids are known: their text, special tokens and all, is a rendered prompt
    text = str(model.tokenizer.decode(list(tokens.prompt), skip_special_tokens=False))
    shorter = without_passages(text, exchange.passages)
    return None if shorter == text else model.encode_prompt(shorter)
