"""What the retrieval itself says about how well the question could be answered."""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from typing import TYPE_CHECKING

from semgrad_guard.scoring.words import content_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Passage

_COMPARED = 10
"""How many leading passages are compared with each other."""


def retrieval_signals(passages: Sequence[Passage]) -> dict[str, float]:
    """Return the signals of the passages and their retriever scores, under the names of `signals`.

    Scores that are not there, or not finite, are left out of the count.
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
