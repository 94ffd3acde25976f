"""Answers as guards hand them over: a question, four passages, an answer of some sentences."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

from semgrad_guard.flow import Confidence, Decision, Exchange, HumanReview, Passage
from semgrad_guard.review import document_of
from semgrad_guard.review.store import submission

if TYPE_CHECKING:
    from semgrad_guard.review import Document, SqlReviewQueue

_WORDS = ("metal", "soft", "dense", "bright", "rare", "oxide", "alloy", "crystal", "liquid", "noble", "heavy", "light")
_PER_TRANSACTION = 500


def document(n: int, sender: str = "bench") -> Document:
    """Return the document of answer number `n` of a sender."""
    rng = random.Random(n)  # noqa: S311 - a measurement repeats itself
    answer = f"Element {n} is {rng.choice(_WORDS)}. It is {rng.choice(_WORDS)} and {rng.choice(_WORDS)}."
    asked = Exchange(
        id=f"{sender}-{n}",
        question=f"What is element {n} like, and what is it used for?",
        prompt=f"Answer from the passages.\n{_passages()}\nWhat is element {n} like?",
        answer=answer,
        passages=tuple(Passage(each, f"elements-{i}.txt", 0.5) for i, each in enumerate(_passages())),
        tags=frozenset({f"tag-{n % 20}"}),
    )
    decision = Decision(
        step=HumanReview(),
        rule="escalate[0].human_review",
        why="confidence is below 0.35",
        exchange_id=asked.id,
        confidence=Confidence(value=rng.random()),
    )
    return document_of(asked, decision)


def fill(queue: SqlReviewQueue, size: int, already: int = 0) -> None:
    """Store answers until there are so many."""
    for first in range(already, size, _PER_TRANSACTION):
        numbers = range(first, min(first + _PER_TRANSACTION, size))
        some = [submission.Submission(document=document(n, "fill")) for n in numbers]
        queue.database.write(lambda tx, some=some: submission.submit_all(tx, some, queue.settings))
    if queue.database.dialect == "postgresql":
        queue.database.write(lambda tx: tx.conn.exec_driver_sql("ANALYZE"))  # its upkeep does so within a minute


@cache
def _passages() -> tuple[str, ...]:
    rng = random.Random(0)  # noqa: S311 - a measurement repeats itself
    return tuple(" ".join(rng.choices(_WORDS, k=80)) for _ in range(4))
