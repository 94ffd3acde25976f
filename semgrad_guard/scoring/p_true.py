"""Asking the model whether its answer is correct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.flow import Message
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.likelihood import next_probabilities

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel

_ASK = "Is the proposed answer correct? Reply with Yes or No."


def p_true(model: LocalModel, exchange: Exchange) -> float | None:
    """Return the probability of yes against no, in [0, 1]; `None` when the exchange has no question or answer as text.

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
    with model.lock:
        chances = next_probabilities(model.model, Tokens(ids, (yes,)), (yes, no))
    return float(chances[0] / chances.sum())
