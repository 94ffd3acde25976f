"""What an answer's attention says: shares of what its tokens attend to, and the signals that are read from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.scoring.prompt_parts import FIRST_PASSAGE, IN_PROMPT, OWN, QUESTION
from semgrad_guard.signals import ATTENTION_PROBE, PASSAGE_HELP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.flow import Exchange, Score

RAUQ_ALPHA = 0.2
"""Weight of a token's own probability in RAUQ (arXiv 2505.20045, section 4: 0.2 for answering questions)."""


@dataclass(frozen=True, slots=True)
class AttentionUse:
    """What the tokens of one answer attend to."""

    sums: NDArray[np.float64]
    """Attention weights summed over blocks and heads, ``(token, column)``: the first token of all, the answer's own,
    the rest of the prompt, the question, and each passage."""
    to_previous: NDArray[np.float64]
    """Weight on the token before, ``(block, token)``, by the head of each block that has the most of it."""
    strongest: float
    """Mean weight on the passages, by the tenth of all heads that have the most of it."""
    by_head: NDArray[np.float64]
    """Mean weight of the answer's tokens by each block and head on the first token, the answer's own, the question and
    all passages: what an attention probe reads."""
    has_question: bool
    """Whether the prompt shows the question."""
    shown: tuple[bool, ...]
    """For each passage whether the prompt shows it."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """The sums as shares of what does not rest on the first token, same columns from the answer's own on."""
        rest = self.sums[:, OWN:]
        shares: NDArray[np.float64] = rest / np.maximum(rest.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return shares


def rauq(nll: NDArray[np.float64], to_previous: NDArray[np.float64]) -> float:
    """Return RAUQ, in nats, at least 0: how unsure an answer is when doubt is passed on from token to token.

    A token's confidence is `alpha P(token) + (1 - alpha) a c`, where `c` is the confidence of the token before and `a`
    the attention on it; the first token's is its probability. The answer's doubt is the mean of -log c, in the block
    where that is largest.

    Args:
        nll: negative log-likelihood of each token.
        to_previous: weight on the token before, ``(block, token)``.

    Source: Vazhentsev et al. (arXiv 2505.20045), section 4; attention is read where the token is predicted, as in
    their code.
    """
    own = np.exp(-nll)
    confidence = np.empty_like(to_previous)
    confidence[:, 0] = own[0]
    for i in range(1, len(own)):
        confidence[:, i] = RAUQ_ALPHA * own[i] + (1 - RAUQ_ALPHA) * to_previous[:, i] * confidence[:, i - 1]
    doubt = -np.log(np.maximum(confidence, np.finfo(np.float64).tiny)).mean(axis=1)
    return float(doubt.max())


def attention_signals(
    use: AttentionUse | None, nll: NDArray[np.float64], part: slice, claim_starts: Sequence[int]
) -> dict[str, float]:
    """Return the attention signals of a run of tokens.

    Args:
        use: what the answer attends to; `None` where that is not known.
        nll: negative log-likelihoods of the whole answer.
        part: the run.
        claim_starts: the tokens of the answer with which its claims begin.
    """
    if use is None:
        return {}
    shares = use.shares
    found = {"rauq": rauq(nll[part], use.to_previous[:, part]), "own_attention": float(shares[part, 0].mean())}
    if use.has_question:
        found["question_attention"] = float(shares[part, IN_PROMPT - OWN + QUESTION].mean())
    if any(use.shown):
        passages = shares[:, IN_PROMPT - OWN + FIRST_PASSAGE :]
        on_them = passages.sum(axis=1)
        starts = [start for start in claim_starts if part.start <= start < part.stop]
        by_passage = passages[part].mean(axis=0)
        found |= {
            "context_attention": float(on_them[part].mean()),
            "context_attention_min": float(on_them[part].min()),
            "context_attention_first": float(on_them[[part.start, *starts]].min()),
            "passage_focus": float(by_passage.max() / max(by_passage.sum(), np.finfo(np.float64).tiny)),
        }
        if part == slice(0, len(nll)):
            found["context_attention_heads"] = use.strongest
    return found


def passage_shares(use: AttentionUse | None) -> tuple[float | None, ...]:
    """Return the share of each passage in an answer's attention; `None` for one that the prompt does not show.

    Empty where attention is not known or the prompt shows no passage.
    """
    if use is None or not any(use.shown):
        return ()
    by_passage = use.shares[:, IN_PROMPT - OWN + FIRST_PASSAGE :].mean(axis=0)
    return tuple(float(share) if shown else None for share, shown in zip(by_passage, use.shown, strict=True))


OF_PASSAGES = frozenset(
    {
        "context_attention",
        "context_attention_min",
        "context_attention_first",
        "context_attention_heads",
        "passage_focus",
    }
)
"""Signals that depend on which tokens of the prompt are passages."""
OF_QUESTION = frozenset({"question_attention"})
"""Signals that depend on which are the question."""


def read_for(exchange: Exchange) -> str:
    """Return digests of an exchange's question and of its passages, as `Score.read_for`."""
    question = [(exchange.question or "").strip()]
    passages = [passage.text.strip() for passage in exchange.passages]
    return ":".join(sha256("\0".join(texts).encode()).hexdigest()[:16] for texts in (question, passages))


def only_of(exchange: Exchange, score: Score) -> Score:
    """Return a score without what was read for another question, or for other passages, than an exchange has."""
    found, expected = score.read_for.partition(":"), read_for(exchange).partition(":")
    if found == expected:
        return score
    stale = OF_QUESTION if found[0] != expected[0] else frozenset[str]()
    if found[2] != expected[2]:
        stale |= OF_PASSAGES | PASSAGE_HELP
        score = replace(score, passage_attention=(), passage_gradients=())
    vectors = {name: vector for name, vector in score.vectors.items() if name != ATTENTION_PROBE}
    spans = tuple(replace(span, signals=_without(stale, span.signals)) for span in score.spans)
    return replace(score, signals=_without(stale, score.signals), spans=spans, vectors=vectors)


def _without(stale: frozenset[str], signals: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if name not in stale}
