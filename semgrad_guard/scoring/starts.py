"""Where words and claims begin in an answer's tokens, and how sure the model was there.

The first token of a wrong stretch carries the signal; once it is written, the next ones follow from it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.models.tokens import text_ends
from semgrad_guard.scoring.budget import unhurried
from semgrad_guard.scoring.texts.claims import claims_of
from semgrad_guard.scoring.texts.words import content_places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from semgrad_guard.models import LocalModel


@dataclass(frozen=True, slots=True)
class Starts:
    """The tokens with which the words and claims of an answer begin, in order."""

    words: tuple[int, ...]
    """Of its content words; of all its words where it has no other; the first token where it has no words."""
    claims: tuple[int, ...]


def starts_of(
    model: LocalModel,
    answer: Sequence[int],
    question: str = "",
    language: str = "en",
    *,
    check: Callable[[], None] = unhurried,
) -> Starts:
    """Return where the words and claims of an answer begin.

    Args:
        model: the model whose tokens they are.
        answer: the answer's token ids.
        question: the question alone; empty where it is not known.
        language: two-letter code, for finding sentences.
        check: called between pieces of work; what it raises ends it.
    """
    text = model.decode(answer)
    if not text.strip():
        return Starts((0,), (0,))

    def decode(ids: Sequence[int]) -> str:
        check()
        return model.decode(ids)

    ends = text_ends(decode, answer)

    def tokens(places: Sequence[int]) -> tuple[int, ...]:
        found = {min(bisect_right(ends, place), len(answer) - 1) for place in places}
        return tuple(sorted(found))

    claims = [claim.start for claim in claims_of(text, question, language)]
    return Starts(tokens(content_places(text)) or (0,), tokens(claims) or (0,))


def start_signals(
    nll: NDArray[np.float64], entropy: NDArray[np.float64], part: slice, starts: Starts
) -> dict[str, float]:
    """Return the likelihood signals of the tokens with which words and claims begin.

    Args:
        nll: negative log-likelihoods of the whole answer's tokens.
        entropy: entropies of the distributions that predict them.
        part: the run of tokens to look at; its first token stands for what does not begin inside of it.
        starts: where words and claims begin.
    """
    words, claims = (
        [start for start in some if part.start <= start < part.stop] or [part.start]
        for some in (starts.words, starts.claims)
    )
    return {
        "word_start_nll": float(nll[words].mean()),
        "max_word_start_nll": float(nll[words].max()),
        "word_start_entropy": float(entropy[words].mean()),
        "max_word_start_entropy": float(entropy[words].max()),
        "max_claim_start_nll": float(nll[claims].max()),
        "max_claim_start_entropy": float(entropy[claims].max()),
    }
