"""The steps that end a question: what text the caller gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.flow import Abstain, Accept, AnswerWithWarning, Status, Verdict

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Ruling


@dataclass(frozen=True, slots=True)
class Settled:
    """Text for the caller, and what kind of text it is."""

    text: str
    status: Status


def settle(step: Accept | AnswerWithWarning | Abstain, exchange: Exchange) -> Settled:
    """Return what the caller gets for a step that needs nobody else."""
    if isinstance(step, Accept):
        return Settled(exchange.answer, Status.ANSWERED)
    if isinstance(step, AnswerWithWarning):
        text = f"{step.warning}\n\n{exchange.answer}" if step.warning else exchange.answer
        return Settled(text, Status.WARNED)
    return Settled(step.message, Status.ABSTAINED)


def settle_review(ruling: Ruling | None, *, pending: str, abstain: str) -> Settled:
    """Return what the caller gets for an answer that was handed to a person.

    Args:
        ruling: the verdict; `None` while there is none.
        pending: message for a caller who does not wait any longer.
        abstain: message for a rejected or expired answer.
    """
    if ruling is None:
        return Settled(pending, Status.PENDING)
    if ruling.verdict in {Verdict.APPROVED, Verdict.EDITED}:
        return Settled(ruling.text, Status.REVIEWED)
    return Settled(abstain, Status.ABSTAINED)
