"""The Semantics Preserving Score (SPS) of every block and prompt position: does a state follow the question's meaning?

Beside the published definition (cosine similarity between paraphrases minus that between different questions) stands
a contrast that survives what a raw scan falls for:

- A state that hardly changes with the question has an SPS near 0 even where the little change is all meaning. The
  contrast is an AUC, so its scale does not matter: the probability that a text is closer to a paraphrase of itself than
  to another question.
- A token that paraphrases share makes their states similar without any meaning. A paraphrase is compared only with
  questions that agree with the anchor's token at that position if it does, and differ if it differs; pairs that end in
  the same word are left out everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TIE = 1e-9
"""Cosine similarities that differ by less are equal: what rounding leaves between equal float32 states."""
STILL = 1e-6
"""Mean cosine distance between different questions below which a state counts as not changing at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What a model holds at the end of prompts that ask several questions in several ways."""

    hidden: NDArray[np.float32]
    """State entering each block, ``(layer, text, position, hidden)``; the last position is the prompt's last token."""
    tokens: NDArray[np.int64]
    """Token ids at these positions, ``(text, position)``."""
    questions: NDArray[np.int64]
    """Index of the question that each text asks, from 0."""
    last_words: Sequence[str]
    """Last word of each text."""
    tie: float = TIE
    """Similarities closer than this are equal."""

    @property
    def n_positions(self) -> int:
        """Number of prompt positions, counted from the prompt's end."""
        return int(self.tokens.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SpsMap:
    """The scan's result, blocks by positions; column -1 is the prompt's last token."""

    raw: Array
    """SPS as published, no control, ``(layer, position)``."""
    difference: Array
    """The same difference among comparable texts only, ``(layer, position)``; NaN where there are none."""
    distance: Array
    """Mean cosine distance between different questions, ``(layer, position)``: how much the state changes at all."""
    wins: Array
    """Won comparisons of each question against each other one, ``(layer, position, question, question)``."""
    comparisons: Array
    """Comparisons made, ``(position, question, question)``."""
    is_template: NDArray[np.bool_]
    """True at positions whose token is the same in every prompt, ``(position,)``."""
    n_same_ending: int
    """Paraphrase pairs left out because both texts end in the same word."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.raw)

    @property
    def n_questions(self) -> int:
        """Number of questions."""
        return int(self.comparisons.shape[-1])

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions, first to last."""
        return tuple(range(-self.raw.shape[1], 0))

    @property
    def auc(self) -> Array:
        """Contrast of each cell, ``(layer, position)``: 0.5 is chance, 1 perfect; NaN where nothing is comparable."""
        return ratio(self.wins.sum((2, 3)), np.broadcast_to(self.comparisons.sum((1, 2)), self.raw.shape))

    def auc_of_positions(self, band: tuple[int, int], weights: Array) -> Array:
        """Return the mean contrast over a band of blocks, ``(draw, position)``.

        Args:
            band: first and last block, both included.
            weights: how often each question counts, ``(draw, question)``.
        """
        wins = self.wins[band[0] : band[1] + 1].mean(0)
        return ratio(_weighted(wins, weights), _weighted(self.comparisons, weights))

    def auc_of_layers(self, position: int, weights: Array) -> Array:
        """Return the contrast of each block at one position, ``(draw, layer)``."""
        return ratio(
            _weighted(self.wins[:, position], weights), _weighted(self.comparisons[position][np.newaxis], weights)
        )


def ratio(part: Array, whole: Array) -> Array:
    """Return part / whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0))


def scan(states: States) -> SpsMap:
    """Return the map of a model's states."""
    pairs = _Pairs.of(states)
    shape = states.hidden.shape[0], states.n_positions
    raw, difference, distance = (np.full(shape, np.nan) for _ in range(3))
    wins = np.zeros((*shape, pairs.n_questions, pairs.n_questions))
    comparisons = np.zeros(wins.shape[1:])
    for position in range(shape[1]):
        comparable = pairs.comparable(states.tokens[:, position])
        comparisons[position] = pairs.by_question(comparable.astype(np.float64))
        for layer in range(shape[0]):
            cosine = _cosines(states.hidden[layer, :, position])
            closer = cosine[pairs.anchor, pairs.mate][:, np.newaxis] - cosine[pairs.anchor]
            won = np.where(np.abs(closer) <= states.tie, 0.5, closer > 0).astype(np.float64)
            wins[layer, position] = pairs.by_question(won * comparable)
            strange = float(cosine[pairs.strange].mean())
            raw[layer, position] = cosine[pairs.anchor_all, pairs.mate_all].mean() - strange
            distance[layer, position] = 1 - strange
            if comparable.any():
                difference[layer, position] = closer[comparable].mean()
    return SpsMap(
        raw=raw,
        difference=difference,
        distance=distance,
        wins=wins,
        comparisons=comparisons,
        is_template=(states.tokens == states.tokens[0]).all(0),
        n_same_ending=pairs.n_same_ending,
    )


def _weighted(by_question: Array, weights: Array) -> Array:
    """Return the sums over pairs of questions, ``(draw, row)``, from ``(row, question, question)``."""
    rows, n, _ = by_question.shape
    half = (weights @ by_question.transpose(1, 0, 2).reshape(n, rows * n)).reshape(len(weights), rows, n)
    return np.asarray((half * weights[:, np.newaxis]).sum(2))


def _cosines(hidden: NDArray[np.float32]) -> Array:
    """Return the cosine similarity of every two rows."""
    wide = hidden.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(unit @ unit.T)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Which texts are compared; `anchor[i]` and `mate[i]` are two wordings of one question."""

    anchor: NDArray[np.int64]
    mate: NDArray[np.int64]
    anchor_all: NDArray[np.int64]
    """With the pairs that end in the same word."""
    mate_all: NDArray[np.int64]
    strange: NDArray[np.bool_]
    """Texts of different questions, ``(text, text)``."""
    may_compare: NDArray[np.bool_]
    """The same without pairs that end in the same word."""
    belongs: Array
    """1 where a text asks a question, ``(text, question)``."""

    @classmethod
    def of(cls, states: States) -> _Pairs:
        questions, endings = states.questions, np.asarray(states.last_words)
        same = questions[:, np.newaxis] == questions
        same_ending = endings[:, np.newaxis] == endings
        mates = same & ~np.eye(len(questions), dtype=bool)
        anchor, mate = np.nonzero(mates & ~same_ending)
        anchor_all, mate_all = np.nonzero(mates)
        belongs = (questions[:, np.newaxis] == np.arange(questions.max() + 1)).astype(np.float64)
        return cls(
            anchor=anchor.astype(np.int64),
            mate=mate.astype(np.int64),
            anchor_all=anchor_all.astype(np.int64),
            mate_all=mate_all.astype(np.int64),
            strange=~same,
            may_compare=~same & ~same_ending,
            belongs=belongs,
        )

    @property
    def n_questions(self) -> int:
        return int(self.belongs.shape[1])

    @property
    def n_same_ending(self) -> int:
        return (len(self.anchor_all) - len(self.anchor)) // 2

    def comparable(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which texts each pair is compared with at a position that holds these tokens, ``(pair, text)``."""
        agree = tokens[:, np.newaxis] == tokens
        return np.asarray(
            self.may_compare[self.anchor] & (agree[self.anchor] == agree[self.anchor, self.mate][:, np.newaxis])
        )

    def by_question(self, values: Array) -> Array:
        """Return the sums over the texts of each question, ``(question, question)``, from ``(pair, text)``."""
        return np.asarray(self.belongs[self.anchor].T @ (values @ self.belongs))
