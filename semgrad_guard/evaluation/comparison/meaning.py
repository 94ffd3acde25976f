"""How alike texts are, and which of them say the same: what sampling methods count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.evaluation.grading import token_f1
from semgrad_guard.models.embedding import UnitVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.models.embedding import Embedder

    Similarity = Callable[[Sequence[str]], NDArray[np.float64]]
    """Texts -> how alike each two are, ``(text, text)``, 1 on the diagonal."""

SAME_WORDS = 0.5
"""F1 of shared words from which two answers count as saying the same."""
SAME_MEANING = 0.8
"""Cosine of sentence embeddings from which two answers count as saying the same."""


def shared_words(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the F1 of shared words of each two texts."""
    alike = np.eye(len(texts))
    for i, left in enumerate(texts):
        for j in range(i):
            alike[i, j] = alike[j, i] = token_f1(left, [texts[j]]) if left != texts[j] else 1.0
    return alike


def by_embedding(embedder: Embedder) -> Similarity:
    """Return the likeness by sentence embeddings: the cosine, below 0 counted as 0."""
    unit = UnitVectors(embedder)

    def alike(texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = unit(texts)
        found = np.clip(vectors @ vectors.T, 0.0, 1.0)
        np.fill_diagonal(found, 1.0)
        return found

    return alike


def clusters(alike: NDArray[np.float64], same: float) -> list[int]:
    """Return the cluster of each text: it joins the first one whose first text says the same.

    Source: the greedy clustering of Kuhn, Gal and Farquhar, "Semantic uncertainty" (ICLR 2023), algorithm 1, with
    similarity in place of entailment.
    """
    first: list[int] = []
    found: list[int] = []
    for i in range(len(alike)):
        cluster = next((c for c, j in enumerate(first) if alike[i, j] >= same), None)
        if cluster is None:
            cluster = len(first)
            first.append(i)
        found.append(cluster)
    return found
