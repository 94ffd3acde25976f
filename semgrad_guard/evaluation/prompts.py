"""The prompts of evaluation and calibration: question and passages, for chat models and for base models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.flow import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Passage, Prompt

WITH_PASSAGES = "Answer the question with a short phrase, using the passages."
CLOSED_BOOK = "Answer the question with a short phrase."
BASE_MODEL_STOP = ("\n",)
"""A base model has no end of turn: its answer is the rest of the line."""


def question_prompt(question: str, passages: Sequence[Passage] = (), *, chat: bool) -> Prompt:
    """Return the prompt that asks a question.

    Args:
        question: the question alone.
        passages: texts to answer from; none asks from memory.
        chat: one user message for the model's template; otherwise plain text that ends with `Answer:`.
    """
    numbered = [f"Passage {i}: {passage.text}" for i, passage in enumerate(passages, 1)]
    parts = [WITH_PASSAGES if passages else CLOSED_BOOK, *numbered, f"Question: {question}"]
    if chat:
        return (Message("user", "\n\n".join(parts)),)
    return "\n\n".join(parts) + "\nAnswer:"


def answer_stops(*, chat: bool) -> tuple[str, ...]:
    """Return the texts at which an answer to `question_prompt` ends."""
    return () if chat else BASE_MODEL_STOP
