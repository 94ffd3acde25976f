"""Answers that the model itself writes to the questions of a data file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.evaluation.rows import answer_stops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import Generated, LocalModel


def write_answer(
    exchange: Exchange, model: LocalModel, *, max_new_tokens: int, states_of: Sequence[nn.Module]
) -> tuple[Exchange, Generated]:
    """Return the exchange with the model's greedy answer, and what scoring takes it from.

    Args:
        exchange: with a prompt, without an answer.
        model: the model.
        max_new_tokens: length of the answer, at most.
        states_of: blocks of the scorer's band; see `LocalModel.generate`.
    """
    written = model.generate(
        exchange.prompt,
        prompt_ids=exchange.prompt_ids,
        max_new_tokens=max_new_tokens,
        stop=answer_stops(chat=model.is_chat),
        states_of=states_of,
    )
    own = replace(
        exchange, answer=written.text, prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, on_policy=True
    )
    return own, written
