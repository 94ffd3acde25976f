"""The chain of the demo: a small RAG chain about the chemical elements on a local model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from typing_extensions import override

from langchain_semgrad.chat_model import SemGradChatModel
from langchain_semgrad.convert import to_document, to_prompt
from semgrad_guard.evaluation.elements import passages
from semgrad_guard.evaluation.grading import contains_answer
from semgrad_guard.models.embedding import SentenceModel, UnitVectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from langchain_core.documents import Document
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import Runnable
    from langchain_core.vectorstores import VectorStoreRetriever

    from langchain_semgrad.guard import SemGradGuard
    from langchain_semgrad.values import GuardedAnswer
    from semgrad_guard.evaluation.elements import ElementQuestion
    from semgrad_guard.flow import Json

MODEL = "smollm2-135m"
TOP_K = 2
"""Passages of a first attempt; few, so that a retry can find more."""
RETRY_TOP_K = 8
"""Passages of the shipped policy's retry."""
MAX_TOKENS = 32

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question from the passages, in a few words."),
        ("human", "{context}\n\nQuestion: {question}"),
    ]
)


@dataclass(frozen=True, slots=True)
class ElementsChain:
    """An ordinary chain, and those of its parts that a guard uses."""

    llm: SemGradChatModel
    retriever: VectorStoreRetriever
    chain: Runnable[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRow:
    """One question of the demo."""

    question: ElementQuestion
    guarded: GuardedAnswer
    generation_s: float
    """Time of all model calls for the question, scoring not included."""
    was_right: bool
    """Whether the chain's own answer was right."""
    best_is_right: bool
    """Whether the attempt with the highest confidence is right."""

    @property
    def is_right(self) -> bool:
        """Whether the guard returned a right answer."""
        return self.best_is_right and not self.guarded.withheld

    @property
    def scoring_s(self) -> float:
        """Time of all scoring for the question."""
        return self.guarded.outcome.record.scoring_s


def build_chain(model: str = MODEL) -> ElementsChain:
    """Return the demo's chain; embedding all passages takes a few seconds.

    Raises:
        MissingExtraError: the extra `demo` is not installed.
    """
    store = InMemoryVectorStore(MiniLmEmbeddings())
    store.add_documents([to_document(passage) for passage in passages()])
    retriever = store.as_retriever(search_kwargs={"k": TOP_K})
    llm = SemGradChatModel(model=model, max_tokens=MAX_TOKENS)
    chain = {"context": retriever | _joined, "question": RunnablePassthrough[Any]()} | PROMPT | llm
    return ElementsChain(llm, retriever, chain)


def run(parts: ElementsChain, guard: SemGradGuard, questions: Iterable[ElementQuestion]) -> Iterator[DemoRow]:
    """Yield the guarded chain's result for each question; the guard must have `output="result"`."""
    guarded = guard.wrap(parts.chain, retriever=parts.retriever)
    for question in questions:
        clock = GenerationClock()
        answer: GuardedAnswer = guarded.invoke(question.question, config={"callbacks": [clock]})
        scored = sum(a.decision.score.seconds for a in answer.attempts if a.decision.score and a.exchange.score)
        first = answer.attempts[0].exchange.answer
        yield DemoRow(
            question=question,
            guarded=answer,
            generation_s=clock.seconds - scored,
            was_right=contains_answer(first, question.answers),
            best_is_right=contains_answer(answer.outcome.exchange.answer, question.answers),
        )


def training_rows(parts: ElementsChain, questions: Iterable[ElementQuestion]) -> Iterator[dict[str, Json]]:
    """Yield the model's answers as rows for `calibrate`, with the passages of a first attempt and of a retry.

    The rows of one element form a group, so no passage is on both sides of a split.
    """
    local = parts.llm.local_model
    for question in questions:
        for top_k in (TOP_K, RETRY_TOP_K):
            documents = parts.retriever.vectorstore.similarity_search(question.question, k=top_k)
            prompt = PROMPT.invoke({"context": _joined(documents), "question": question.question})
            generated = local.generate(to_prompt(prompt.to_messages()), max_new_tokens=MAX_TOKENS, keep=False)
            yield {
                "id": f"{question.id}-{top_k}",
                "group": question.element,
                "question": question.question,
                "passages": [{"text": d.page_content, "source": d.metadata.get("source")} for d in documents],
                "prompt_ids": list(generated.prompt_ids),
                "answer": generated.text,
                "answer_ids": list(generated.answer_ids),
                "answers": list(question.answers),
                "on_policy": True,
            }


def _joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


class MiniLmEmbeddings(Embeddings):
    """Sentence embeddings of the packaged MiniLM model, which needs no download."""

    def __init__(self) -> None:
        """Load the model.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            ModelNotFoundError: the packaged model is not installed.
        """
        self._vectors = UnitVectors(SentenceModel())

    @override
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one unit vector per text."""
        return [[float(x) for x in vector] for vector in self._vectors(texts)]

    @override
    def embed_query(self, text: str) -> list[float]:
        """Return the unit vector of a text."""
        return self.embed_documents([text])[0]


@dataclass
class GenerationClock(BaseCallbackHandler):
    """Adds up the time of model calls."""

    seconds: float = 0.0
    _started: dict[UUID, float] = field(default_factory=dict[Any, float])

    @override
    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """Note when a call began."""
        self._started[run_id] = time.perf_counter()

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Add the time of a call."""
        self.seconds += time.perf_counter() - self._started.pop(run_id, time.perf_counter())
