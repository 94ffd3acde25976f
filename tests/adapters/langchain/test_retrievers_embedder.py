"""The retriever's embeddings become signals of meaning."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_semgrad import SemGradGuard
from langchain_semgrad.chat_model import SemGradChatModel
from langchain_semgrad.retrievers import ChainEmbedder
from semgrad_guard.errors import OptionError
from tests.fakes import TableScorer
from tests.models_for_tests import local_model

POLICY = {"version": 1, "accept": 0.5, "otherwise": "abstain", "on_error": "abstain", "on_uncalibrated": "warn"}
EMBEDDINGS = DeterministicFakeEmbedding(size=8)


def test_a_chains_embeddings_reach_the_score() -> None:
    """The raw signals of the answer hold how near it is to the passages."""
    store = InMemoryVectorStore(EMBEDDINGS)
    store.add_documents([Document("Eiffel built the tower."), Document("The river is long.")])
    local = local_model()
    guard = SemGradGuard(model=local, policy=POLICY, embeddings=EMBEDDINGS, output="result")
    retriever = store.as_retriever()
    joined = RunnableLambda(lambda documents: "\n".join(d.page_content for d in documents))
    prompt = ChatPromptTemplate.from_template("{context}\n{question}")
    chain = {"context": retriever | joined, "question": RunnablePassthrough()} | prompt
    result = guard.wrap(chain | SemGradChatModel(local=local, max_tokens=6), retriever=retriever).invoke("Who?")
    signals = result.outcome.attempts[0].decision.score.signals
    assert "answer_similarity" in signals


def test_the_name_tells_class_and_model() -> None:
    """A profile fits one embedding model."""

    class Named(DeterministicFakeEmbedding):
        model: str = "small"

    assert ChainEmbedder(EMBEDDINGS).name == "DeterministicFakeEmbedding"
    assert ChainEmbedder(Named(size=8)).name == "Named small"


def test_embeddings_beside_a_ready_scorer_or_guard_are_refused() -> None:
    """They would be ignored in silence."""
    with pytest.raises(OptionError, match="its own embedder"):
        SemGradGuard(scorer=TableScorer(), embeddings=EMBEDDINGS)
    with pytest.raises(OptionError, match="alone"):
        SemGradGuard(guard=SemGradGuard(scorer=TableScorer()).guard, embeddings=EMBEDDINGS)
