"""How near question, answer and passages are in meaning, by sentence embeddings: no pass of the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.errors import EmbeddingFailedError
from semgrad_guard.scoring.grounding import claimed_words
from semgrad_guard.scoring.spans import sentence_spans
from semgrad_guard.scoring.words import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models.embedding import Embedder

    Array = NDArray[np.float64]


def closeness_signals(
    exchange: Exchange, embedder: Embedder, language: str = "en", answer: str | None = None
) -> dict[str, float]:
    """Return the signals of meaning, under the names of `signals`; none without question, answer or passages.

    Args:
        exchange: with question and passages.
        embedder: gives vectors of length 1.
        language: two-letter code, for finding sentences.
        answer: a part of the answer; `None` is the whole.

    Raises:
        EmbeddingFailedError: the embedder raised, or gave something else than vectors.
    """
    text = (exchange.answer if answer is None else answer).strip()
    question = (exchange.question or "").strip()
    passages = [passage.text for passage in exchange.passages if passage.text.strip()]
    if not (text and question and passages):
        return {}
    said = [f"{question} {part}" for part in _sentences(text, language)]
    read = [sentence for passage in passages for sentence in _sentences(passage, language)]
    claimed = claimed_words(text, question)
    parts = _vectors(embedder, [question], said, read, passages)
    asked, said_v, read_v, passage_v = parts[0][0], *parts[1:]
    near = passage_v @ asked
    held = _share(claimed, passages)
    best = int(np.lexsort((near, held))[-1])
    found = {
        "support_similarity": float((_share(claimed, read) * (read_v @ asked)).max()),
        "passage_similarity": float((held * near).max()),
        "answer_similarity": float((said_v @ read_v.T).max(axis=1).min()),
    }
    if len(passages) > 1:
        found["support_margin"] = float(near[best] - np.delete(near, best).max())
    return found


def _sentences(text: str, language: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, language)] or [text]


def _share(claimed: set[str], texts: Sequence[str]) -> Array:
    """Return the share of the claimed words that each text holds."""
    return np.array([len(claimed.intersection(words(text))) / max(1, len(claimed)) for text in texts])


def _vectors(embedder: Embedder, *groups: Sequence[str]) -> list[Array]:
    """Return the vectors of each group of texts, embedded in one go."""
    texts = [text for group in groups for text in group]
    try:
        vectors = np.asarray(embedder(texts), dtype=np.float64)
    except Exception as error:
        raise EmbeddingFailedError(embedder.name, f"{type(error).__name__}: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EmbeddingFailedError(embedder.name, f"gave {vectors.shape} finite numbers for {len(texts)} texts")
    ends = np.cumsum([len(group) for group in groups])
    return np.split(vectors, ends[:-1])
