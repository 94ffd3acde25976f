"""Signals from the texts alone: how the answer's words and meaning compare with passages and question."""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.errors import EmbeddingFailedError
from semgrad_guard.models.embedding import vectors_of
from semgrad_guard.scoring.texts.claim_signals import claim_signals, mean_of_answer, of_answer
from semgrad_guard.scoring.texts.claims import PassageTexts, as_shares, shares_in
from semgrad_guard.scoring.texts.words import claimed_words, content_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Exchange, Passage
    from semgrad_guard.models.embedding import Embedder

    Array = NDArray[np.float64]


def grounding_signals(
    exchange: Exchange, answer: str | None = None, *, language: str = "en", passages: PassageTexts | None = None
) -> dict[str, float]:
    """Return the signals that compare the answer's words with passages and question, by their names in `signals`.

    Args:
        exchange: the exchange with the prompt's passages; without any, only the answer itself and its echo of the
            question are counted.
        answer: a part of the answer; `None` is the whole.
        language: two-letter code, for finding sentences.
        passages: the exchange's passages, where they are read for several parts.
    """
    text = exchange.answer if answer is None else answer
    question = exchange.question or ""
    read = passages or PassageTexts.of(exchange, language)
    found = claim_signals(question, text, read)
    question_words, answer_words = content_words(question), content_words(text)
    if answer_words and question_words:
        found["answer_echo"] = len(answer_words & question_words) / len(answer_words)
    if read.texts:
        claimed = claimed_words(text, question)
        found["grounding"] = len(claimed & read.all_words) / max(1, len(claimed))
    if exchange.passages:
        found["suspicious_passages"] = float(read.n_suspicious)
    return found


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
    exchange: Exchange,
    embedder: Embedder,
    language: str = "en",
    answer: str | None = None,
    *,
    passages: PassageTexts | None = None,
) -> dict[str, float]:
    """Return the signals that compare meanings, by their names in `signals`; none without answer or passages.

    The weakest claim counts, as in `claims.claim_signals`.

    Args:
        exchange: the exchange with question and passages.
        embedder: returns vectors of length 1.
        language: two-letter code, for finding sentences.
        answer: a part of the answer; `None` is the whole.
        passages: the exchange's passages, where they are read for several parts.

    Raises:
        EmbeddingFailedError: the embedder raised an error, or did not return vectors.
    """
    text = (exchange.answer if answer is None else answer).strip()
    question = (exchange.question or "").strip()
    read = passages or PassageTexts.of(exchange, language)
    if not (text and any(passage.strip() for passage in read.texts)):
        return {}
    claims = [claim.text for claim in read.claims(text, question)]
    sentences = [sentence.text for sentence in read.sentences]
    asking = [question, *(f"{question} {claim}" for claim in claims)] if question else []
    titled = [f"{title}. {text}" if title else text for title, text in zip(read.titles, read.texts, strict=True)]
    groups = (claims, asking, sentences, read.texts, titled)
    claim_v, asking_v, sentence_v, passage_v, titled_v = _vectors(embedder, read.check, *groups)
    found = {"claim_similarity": float((claim_v @ sentence_v.T).max(axis=1).min())}
    if not question:
        return found
    question_v, answer_v = asking_v[0], asking_v[1:]
    near, near_sentence = passage_v @ question_v, sentence_v @ question_v
    claimed = [claimed_words(claim, question) for claim in claims]
    in_passages = [shares_in(new, read.vocabularies) for new in claimed]
    of_sentences = [sentence.words for sentence in read.sentences]
    in_sentences = [shares_in(new, of_sentences, read.check) for new in claimed]
    copies = [read.is_copy(claim) for claim in claims]
    relevances = as_shares(titled_v @ question_v, COSINE_CONTRAST)
    grounded = [float(s @ relevances) for s in in_passages]
    found |= {
        "support_similarity": of_answer([float((s * near_sentence).max()) for s in in_sentences], copies),
        "passage_similarity": of_answer([float((s * near).max()) for s in in_passages], copies),
        "semantic_grounding": of_answer(grounded, copies),
        "semantic_grounding_mean": mean_of_answer(grounded, copies),
        "answer_similarity": float((answer_v @ sentence_v.T).max(axis=1).min()),
    }
    if len(read.texts) > 1:
        found["support_margin"] = of_answer([_margin(s, near) for s in in_passages], copies)
    return found


COSINE_CONTRAST = 0.05
"""A passage whose cosine with the question is so much larger is e times as relevant."""


def _margin(shares: Array, near: Array) -> float:
    """Return how much nearer to the question the passage fullest of a claim's words is than the next best."""
    best = int(np.lexsort((near, shares))[-1])
    return float(near[best] - np.delete(near, best).max())


_EMBEDDED = 64
"""How many texts are embedded in one call; a long answer has hundreds of claims."""


def _vectors(embedder: Embedder, check: Callable[[], None], *groups: Sequence[str]) -> list[Array]:
    """Return the vectors of each group of texts; many are embedded in several calls, with a check before each."""
    texts = [text for group in groups for text in group]
    runs = [texts[start : start + _EMBEDDED] for start in range(0, len(texts), _EMBEDDED)]
    vectors: list[Array] = []
    for run in runs:
        check()
        vectors.append(_embedded(embedder, run))
    ends = np.cumsum([len(group) for group in groups])
    return np.split(np.concatenate(vectors), ends[:-1])


def _embedded(embedder: Embedder, texts: Sequence[str]) -> Array:
    try:
        return vectors_of(embedder, texts)
    except EmbeddingFailedError:
        raise
    except Exception as error:
        raise EmbeddingFailedError(embedder.name, f"{type(error).__name__}: {error}") from error
