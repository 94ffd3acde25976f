"""The index's embedding model becomes signals of meaning."""

from __future__ import annotations

import pytest

from llama_index_semgrad import SemGradGuard
from llama_index_semgrad.convert import IndexEmbedder
from semgrad_guard.errors import OptionError
from semgrad_guard.flow import Exchange, Passage
from tests.adapters.llama_index.index_and_llm import WordEmbedding
from tests.fakes import TableScorer
from tests.models_for_tests import local_model

POLICY = {"version": 1, "accept": 0.5, "otherwise": "abstain", "on_error": "abstain", "on_uncalibrated": "warn"}


def test_an_indexs_embeddings_reach_the_score() -> None:
    """The raw signals of an answer hold how near it is to the passages."""
    guard = SemGradGuard(model=local_model(), policy=POLICY, embed_model=WordEmbedding()).guard
    exchange = Exchange(prompt="p", question="Who?", answer="Eiffel", passages=(Passage("Eiffel did."),))
    assert "support_similarity" in guard.parts.scorer.score(exchange).signals


def test_the_name_tells_class_and_model() -> None:
    """A profile fits one embedding model."""
    assert IndexEmbedder(WordEmbedding(model_name="small")).name == "WordEmbedding small"


def test_an_embedding_model_beside_a_ready_scorer_is_refused() -> None:
    """It would be ignored in silence."""
    with pytest.raises(OptionError, match="its own embedder"):
        SemGradGuard(scorer=TableScorer(), embed_model=WordEmbedding())
