"""How near question, answer and passages are in meaning, with vectors whose cosines are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from semgrad_guard.errors import EmbeddingFailedError
from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.models.embedding import UnitVectors
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.texts.text_signals import closeness_signals
from semgrad_guard.signals import MEANING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.models import LocalModel

TOPICS = ("tower", "river", "built")


class Topics:
    """Embeds a text by which of three topics it names; how many texts it was asked for is kept."""

    name = "topics"

    def __init__(self) -> None:
        self.n_texts = 0

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.n_texts += len(texts)
        return [[float(topic in text.casefold()) * 2 for topic in TOPICS] for text in texts]


TOWER = Passage("The tower stands tall. Eiffel built the tower.")
RIVER = Passage("The river is long. Eiffel swam in the river.")
ASKED = Exchange(question="Who built the tower?", answer="Eiffel", passages=(TOWER, RIVER))


def signals(exchange: Exchange) -> dict[str, float]:
    """Return the signals by topics."""
    return closeness_signals(exchange, UnitVectors(Topics()))


def test_the_sentence_that_holds_the_answer_is_compared_with_the_question() -> None:
    """The second sentence is about the very two topics of the question; the river passage is about none of them."""
    found = signals(ASKED)
    assert found["support_similarity"] == pytest.approx(1.0)
    assert found["passage_similarity"] == pytest.approx(1.0)
    assert found["support_margin"] == pytest.approx(1.0 - 0.0)


def test_an_answer_from_another_topic_is_told_apart() -> None:
    """Only the river passage holds `swam`; the tower passage is nearer to the question."""
    found = signals(Exchange(question=ASKED.question, answer="swam", passages=(TOWER, RIVER)))
    assert found["support_similarity"] == pytest.approx(0.0)
    assert found["support_margin"] == pytest.approx(-1.0)


def test_an_answer_counts_by_the_passage_that_is_nearest_in_meaning() -> None:
    """Cosines of the question with the passages are 1 and 0; a title about the tower makes the second 0.82."""
    for answer, share in (("tall", 1.0), ("swam", 0.0), ("Eiffel", 1.0), ("Eiffel swam", 0.5)):
        found = signals(Exchange(question=ASKED.question, answer=answer, passages=(TOWER, RIVER)))
        assert found["semantic_grounding"] == pytest.approx(share, abs=1e-6)
    titled = (TOWER, Passage(RIVER.text, source="Tower built"))
    found = signals(Exchange(question=ASKED.question, answer="swam", passages=titled))
    gap = 1 - 2 / 6**0.5
    assert found["semantic_grounding"] == pytest.approx(1 / (1 + np.exp(gap / 0.05)))


def test_the_mean_of_claims_forgives_what_follows_the_answer() -> None:
    """The first claim is in the passage about the question, the second in the other one."""
    found = signals(Exchange(question=ASKED.question, answer="It is tall. It swam.", passages=(TOWER, RIVER)))
    assert found["semantic_grounding"] == pytest.approx(0.0, abs=1e-6)
    assert found["semantic_grounding_mean"] == pytest.approx(0.5, abs=1e-6)


def test_words_that_no_passage_holds_have_no_support() -> None:
    """Half of the new words are in the sentence: half of its cosine."""
    found = signals(Exchange(question=ASKED.question, answer="Eiffel Smith", passages=(TOWER,)))
    assert found["support_similarity"] == pytest.approx(0.5)


def test_the_worst_answer_sentence_counts() -> None:
    """One sentence about the river spoils an answer about the tower: (1, 1, 1) against (1, 0, 1)."""
    long = Exchange(question=ASKED.question, answer="Eiffel built it. The river is long.", passages=(TOWER,))
    assert signals(ASKED)["answer_similarity"] == pytest.approx(1.0)
    assert signals(long)["answer_similarity"] == pytest.approx(2 / np.sqrt(6))


def test_one_passage_has_no_margin() -> None:
    """There is nothing to be better than."""
    assert "support_margin" not in signals(Exchange(question="q", answer="a", passages=(TOWER,)))


@pytest.mark.parametrize(
    "exchange",
    [
        Exchange(question="Who?", passages=(TOWER,)),
        Exchange(question="Who?", answer="Eiffel"),
        Exchange(question="Who?", answer="Eiffel", passages=(Passage("  "),)),
    ],
)
def test_what_cannot_be_compared_is_absent(exchange: Exchange) -> None:
    """Never a made-up number."""
    assert signals(exchange) == {}


def test_without_the_question_only_claim_and_passage_are_compared() -> None:
    """Its likeness to the question cannot be known."""
    assert signals(Exchange(answer="Eiffel", passages=(TOWER,))).keys() == {"claim_similarity"}


def test_a_text_is_embedded_once_while_it_is_remembered() -> None:
    """The same passages are retrieved again and again."""
    topics = Topics()
    vectors = UnitVectors(topics, n_remembered=3)
    assert vectors(["tower", "river", "tower"]).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    vectors(["tower", "river"])
    assert topics.n_texts == 2
    vectors(["built", "none", "tower"])
    vectors(["river"])
    assert topics.n_texts == 5


def test_a_failing_embedder_is_a_scoring_error() -> None:
    """Inside a chain it becomes the policy's `on_error`, with the reason."""

    class Broken(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            raise ConnectionError("no route")

    class Odd(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            return [[float("nan")]] * len(texts)

    for broken, why in ((Broken(), "ConnectionError: no route"), (Odd(), "finite numbers")):
        with pytest.raises(EmbeddingFailedError, match=why) as caught:
            closeness_signals(ASKED, broken)
        assert caught.value.embedder == "topics"


def test_a_scorer_with_an_embedder_has_the_signals_and_says_so(local: LocalModel, exchange: Exchange) -> None:
    """A profile fits one embedder; without one nothing changes."""
    plain, own = SemGradScorer(local), SemGradScorer(local, embedder=Topics())
    assert not set(MEANING) & plain.score(exchange).signals.keys()
    score = own.score(exchange)
    assert score.signals["support_similarity"] > 0
    assert score.fingerprint.settings.startswith(plain.fingerprint().settings + ", embedder topics [")
    by_sentence = SemGradScorer(local, embedder=Topics(), granularity="sentence").score(exchange)
    assert all("support_similarity" in span.signals for span in by_sentence.spans)


def test_an_embedder_that_fails_costs_its_signals_not_the_score(local: LocalModel, exchange: Exchange) -> None:
    """The answer can still be judged by what is left."""

    class Failing(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            raise ConnectionError("no route")

    score = SemGradScorer(local, embedder=Failing()).score(exchange)
    assert not set(MEANING) & score.signals.keys()
    assert score.signals["grounding"] > 0
    assert score.fingerprint.settings.endswith(", embedder topics")


def test_an_embedder_that_goes_wrong_for_a_while_leaves_nothing_behind(local: LocalModel, exchange: Exchange) -> None:
    """NaN was cached as a vector of zeros, and vectors of another dimension for ever."""

    class Moody(Topics):
        wrong = staticmethod(lambda vectors: vectors)

        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            return self.wrong(super().__call__(texts))

    moody = Moody()
    scorer = SemGradScorer(local, embedder=moody)
    assert "support_similarity" in SemGradScorer(local, embedder=Topics()).score(exchange).signals
    scorer.fingerprint()
    for wrong in (
        lambda vectors: [[float("nan")] * 3 for _ in vectors],
        lambda vectors: [[float("inf"), 0.0, 0.0] for _ in vectors],
        lambda vectors: [[1.0, 0.0] for _ in vectors],
        lambda vectors: vectors[:-1],
        lambda vectors: [[1.0]] + [[1.0, 2.0]] * (len(vectors) - 1),
        lambda _vectors: None,
        lambda _vectors: "vectors",
    ):
        moody.wrong = wrong
        assert not set(MEANING) & scorer.score(exchange).signals.keys()
    moody.wrong = lambda vectors: vectors
    assert scorer.score(exchange).signals == SemGradScorer(local, embedder=Topics()).score(exchange).signals
