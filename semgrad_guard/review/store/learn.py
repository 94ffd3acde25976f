"""Learning from verdicts: labels for calibration, and verdicts to reuse when a question is asked again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, select

from semgrad_guard.review.store.document import Document, exchange_of, passages_key, plain_question, question_key
from semgrad_guard.review.store.items import State
from semgrad_guard.review.store.read import read_document, ruling_from, with_any_word
from semgrad_guard.review.store.schema import documents, items, rulings
from semgrad_guard.review.store.schema import tags as tag_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from pydantic import JsonValue
    from sqlalchemy import Connection, Select

    from semgrad_guard.flow import Exchange, Ruling


class Label(NamedTuple):
    """One judged answer."""

    exchange: Exchange
    """Includes its score, if it was scored."""
    correct: bool
    """True when a person approved the answer, or changed only its wording."""


class Judged(NamedTuple):
    """The confidence of an answer, and whether the answer was right."""

    confidence: float
    correct: bool
    profile: str | None
    """Name of the profile that computed it."""


def judged_after(conn: Connection, ruling_id: int, until: datetime, limit: int) -> tuple[list[Judged], int]:
    """Return the confidences of answers judged after a verdict's id and no later than `until`, and the last id."""
    query = _judged(ruling_id, until, limit).add_columns(items.c.confidence)
    rows = conn.execute(query).all()
    found = [
        Judged(row.confidence, row.correct, Document.model_validate_json(row.body).profile)
        for row in rows
        if row.confidence is not None
    ]
    return found, rows[-1].id if rows else ruling_id


def last_ruling(conn: Connection) -> int:
    """Return the id of the latest verdict, 0 before the first."""
    return conn.execute(select(func.max(rulings.c.id))).scalar_one() or 0


def labels_after(conn: Connection, ruling_id: int, until: datetime, limit: int) -> tuple[list[Label], int | None]:
    """Return the labels of answers judged after a verdict's id and no later than `until`, and the last id.

    Verdicts that time gave, and items that were erased, teach nothing.
    """
    rows = conn.execute(_judged(ruling_id, until, limit)).all()
    found = [Label(exchange_of(Document.model_validate_json(row.body)), row.correct) for row in rows]
    return found, rows[-1].id if rows else None


def _judged(ruling_id: int, until: datetime, limit: int) -> Select[*tuple[Any, ...]]:
    return (
        select(rulings.c.id, rulings.c.correct, documents.c.body)
        .join(items, items.c.ruling_id == rulings.c.id)
        .join(documents, documents.c.item_id == items.c.id)
        .where(rulings.c.id > ruling_id, rulings.c.correct.is_not(None), rulings.c.at <= until)
        .order_by(rulings.c.id)
        .limit(limit)
    )


_CANDIDATES = 50
"""How many earlier questions with a word in common are compared."""
_SHORTEST_WORD = 3


@dataclass(frozen=True, slots=True)
class EarlierVerdict:
    """A person's earlier verdict on the same question, or on a similar one."""

    question: str
    ruling: Ruling
    similarity: float
    """In [0, 1]; 1 for the same question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Which earlier verdicts may be reused."""

    tags: frozenset[str] = frozenset()
    """The earlier item must have all of them."""
    metadata: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    """The earlier item must have the same values."""
    passages: str
    """Digest of the passages that the model read; those of the earlier item must be the same."""
    not_before: datetime | None = None
    """Older verdicts have expired."""
    not_after: datetime | None = None
    """Younger verdicts may still be undone."""
    at_least: float | None = None
    """Smallest similarity, in [0, 1]; `None` takes the same question only."""


def earlier_verdict(
    conn: Connection, question: str, wanted: Reuse, similarity: Callable[[str, str], float]
) -> EarlierVerdict | None:
    """Return the newest verdict of a person on the same question, or else on the most similar one.

    Without tags or metadata there is none: nothing would say that both questions mean the same.
    """
    if not wanted.tags and not wanted.metadata:
        return None
    same = _settled(wanted).where(items.c.question_key == question_key(question)).limit(_CANDIDATES)
    for row in conn.execute(same).mappings().all():
        document = read_document(conn, row["item_id"])
        if _is_of_same_matter(document, wanted):
            return EarlierVerdict(row["title"], ruling_from(row, document), 1.0)
    if wanted.at_least is None:
        return None
    return _most_similar(conn, question, wanted, similarity)


def _is_of_same_matter(document: Document | None, wanted: Reuse) -> bool:
    """True when the model read the same passages, for the same user, customer or whatever the metadata name."""
    return (
        document is not None
        and passages_key(passage.text for passage in document.passages) == wanted.passages
        and all(key in document.metadata and document.metadata[key] == value for key, value in wanted.metadata.items())
    )


def trigram_similarity(one: str, other: str) -> float:
    """Return how many groups of three letters two questions share, in [0, 1] (Dice's coefficient)."""
    left, right = _trigrams(one), _trigrams(other)
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 1.0


def _most_similar(
    conn: Connection, question: str, wanted: Reuse, similarity: Callable[[str, str], float]
) -> EarlierVerdict | None:
    words = [word for word in plain_question(question).split() if len(word) >= _SHORTEST_WORD]
    if not words:
        return None
    candidates = _settled(wanted).where(items.c.question_key.is_not(None), items.c.id.in_(with_any_word(conn, words)))
    rows = conn.execute(candidates.limit(_CANDIDATES)).mappings().all()
    rated = [(similarity(question, row["title"]), row) for row in rows]
    for likeness, row in sorted(rated, key=lambda each: each[0], reverse=True):
        if wanted.at_least is None or likeness < wanted.at_least:
            break
        document = read_document(conn, row["item_id"])
        if _is_of_same_matter(document, wanted):
            return EarlierVerdict(row["title"], ruling_from(row, document), likeness)
    return None


def _settled(wanted: Reuse) -> Select[Any]:
    """Return the query for verdicts that may be reused, newest first."""
    query = (
        select(items.c.title, rulings)
        .join(rulings, items.c.ruling_id == rulings.c.id)
        .where(
            items.c.state.in_([State.APPROVED, State.EDITED, State.REJECTED]),
            items.c.erased_at.is_(None),
            rulings.c.correct.is_not(None),  # given by a person, not by a deadline
        )
        .order_by(items.c.resolved_at.desc())
    )
    if wanted.not_before is not None:
        query = query.where(items.c.resolved_at >= wanted.not_before)
    if wanted.not_after is not None:
        query = query.where(items.c.resolved_at <= wanted.not_after)
    return query.where(*(_has_tag(tag) for tag in sorted(wanted.tags)))


def _has_tag(tag: str) -> Any:
    return items.c.id.in_(select(tag_table.c.item_id).where(tag_table.c.tag == tag))


def _trigrams(question: str) -> Counter[str]:
    padded = f"  {plain_question(question)} "
    return Counter(padded[n : n + 3] for n in range(len(padded) - 2))
