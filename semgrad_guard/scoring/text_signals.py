"""Signals from the texts alone: how the answer's words and meaning compare with passages and question."""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.errors import EmbeddingFailedError
from semgrad_guard.scoring.spans import sentence_spans
from semgrad_guard.scoring.words import claimed_words, content_of, content_words, longest_common_run, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Exchange, Passage
    from semgrad_guard.models.embedding import Embedder

    Array = NDArray[np.float64]

NEARBY = 40
"""How many words before and after an answer word count as near it: two or three sentences."""


def grounding_signals(exchange: Exchange, answer: str | None = None) -> dict[str, float]:
    """Return the signals that compare the answer's words with passages and question, by their names in `signals`.

    Args:
        exchange: the exchange with the prompt's passages; without any, only the echo of the question is counted.
        answer: a part of the answer; `None` is the whole.
    """
    text = exchange.answer if answer is None else answer
    question_words = content_words(exchange.question or "")
    answer_words = content_words(text)
    found: dict[str, float] = {}
    if answer_words and question_words:
        found["answer_echo"] = len(answer_words & question_words) / len(answer_words)
    if not exchange.passages:
        return found
    passages = [words(passage.text) for passage in exchange.passages]
    vocabularies = [content_of(passage) for passage in passages]
    found["copied_span"] = _copied_span(words(text), passages)
    new = answer_words - question_words
    claimed = claimed_words(text, exchange.question or "")
    if claimed:
        texts = vocabularies if new else [set(passage) for passage in passages]
        found["grounding"] = len(claimed & set[str]().union(*texts)) / len(claimed)
        found["passage_support"] = sum(claimed <= vocabulary for vocabulary in texts) / len(texts)
    if question_words:
        fullest = max(vocabularies, key=lambda vocabulary: (len(new & vocabulary), len(question_words & vocabulary)))
        found["question_overlap"] = len(question_words & fullest) / len(question_words)
        if claimed:
            found["question_nearby"] = _question_nearby(question_words, claimed, passages)
    return found


def _question_nearby(question: set[str], claimed: set[str], passages: Sequence[Sequence[str]]) -> float:
    """Return how much of the question is near the answer's words, at the best place in the passages.

    A question word counts more the fewer passages contain it: ln(1 + passages / passages with it).
    """
    vocabularies = [set(passage) for passage in passages]
    n_with = {word: sum(word in vocabulary for vocabulary in vocabularies) for word in question}
    weight = {word: math.log1p(len(passages) / max(n, 0.5)) for word, n in n_with.items()}
    total = sum(weight.values())
    best = 0.0
    for passage in passages:
        for place in (i for i, word in enumerate(passage) if word in claimed):
            around = set(passage[max(0, place - NEARBY) : place + NEARBY + 1])
            of_question = sum(weight[word] for word in (question & around) - claimed) / total
            best = max(best, of_question * len(claimed & around) / len(claimed))
    return best


def _copied_span(answer: Sequence[str], passages: Sequence[Sequence[str]]) -> float:
    """Return the longest run of answer words found in a passage, as a share of the answer's words."""
    if not answer:
        return 0.0
    longest = max(longest_common_run(answer, passage) for passage in passages)
    return longest / len(answer)


_COMPARED = 10
"""How many leading passages are compared with each other."""


def retrieval_signals(passages: Sequence[Passage]) -> dict[str, float]:
    """Return the signals of the passages and their retriever scores, by their names in `signals`.

    Missing and non-finite scores are ignored.
    """
    if not passages:
        return {}
    found = {"n_passages": float(len(passages))}
    scores = sorted((p.score for p in passages if p.score is not None and math.isfinite(p.score)), reverse=True)
    if scores:
        found["retrieval_top"] = float(scores[0])
    if len(scores) > 1:
        found["retrieval_gap"] = float(scores[0] - scores[1])
        found["retrieval_spread"] = statistics.pstdev(scores)
    vocabularies = [content_words(passage.text) for passage in passages[:_COMPARED]]
    pairs = [(a, b) for a, b in combinations(vocabularies, 2) if a or b]
    if pairs:
        found["retrieval_agreement"] = statistics.fmean(len(a & b) / len(a | b) for a, b in pairs)
    return found


def closeness_signals(
    exchange: Exchange, embedder: Embedder, language: str = "en", answer: str | None = None
) -> dict[str, float]:
    """Return the signals that compare meanings, by their names in `signals`; none without question, answer or passages.

    Args:
        exchange: the exchange with question and passages.
        embedder: returns vectors of length 1.
        language: two-letter code, for finding sentences.
        answer: a part of the answer; `None` is the whole.

    Raises:
        EmbeddingFailedError: the embedder raised an error, or did not return vectors.
    """
    text = (exchange.answer if answer is None else answer).strip()
    question = (exchange.question or "").strip()
    passages = [passage.text for passage in exchange.passages if passage.text.strip()]
    if not (text and question and passages):
        return {}
    answer_sentences = [f"{question} {part}" for part in _sentences(text, language)]
    passage_sentences = [sentence for passage in passages for sentence in _sentences(passage, language)]
    claimed = claimed_words(text, question)
    parts = _vectors(embedder, [question], answer_sentences, passage_sentences, passages)
    question_v, answer_v, read_v, passage_v = parts[0][0], *parts[1:]
    near = passage_v @ question_v
    shares = _share(claimed, passages)
    best = int(np.lexsort((near, shares))[-1])
    found = {
        "support_similarity": float((_share(claimed, passage_sentences) * (read_v @ question_v)).max()),
        "passage_similarity": float((shares * near).max()),
        "answer_similarity": float((answer_v @ read_v.T).max(axis=1).min()),
    }
    if len(passages) > 1:
        found["support_margin"] = float(near[best] - np.delete(near, best).max())
    return found


def _sentences(text: str, language: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, language)] or [text]


def _share(claimed: set[str], texts: Sequence[str]) -> Array:
    """Return the share of the claimed words found in each text."""
    return np.array([len(claimed.intersection(words(text))) / max(1, len(claimed)) for text in texts])


def _vectors(embedder: Embedder, *groups: Sequence[str]) -> list[Array]:
    """Return the vectors of each group of texts, embedded in one call."""
    texts = [text for group in groups for text in group]
    try:
        vectors = np.asarray(embedder(texts), dtype=np.float64)
    except Exception as error:
        raise EmbeddingFailedError(embedder.name, f"{type(error).__name__}: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EmbeddingFailedError(embedder.name, f"gave {vectors.shape} finite numbers for {len(texts)} texts")
    ends = np.cumsum([len(group) for group in groups])
    return np.split(vectors, ends[:-1])
