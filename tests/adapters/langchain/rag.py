"""A small RAG chain: a retriever of numbered facts, and a model that counts the facts that it read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.language_models.chat_models import SimpleChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from pydantic import Field

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

RAG = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
FACTS = [f"Fact {i}." for i in range(10)]


class Facts(BaseRetriever):
    """Returns the first `k` facts; what it was asked is kept."""

    k: int = 2
    queries: list[tuple[str, int]] = Field(default_factory=list)

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        self.queries.append((query, self.k))
        return [Document(text, metadata={"title": f"t{i}"}) for i, text in enumerate(FACTS[: self.k])]


class Reader(SimpleChatModel):
    """Answers with the number of facts and the question that it read; every prompt is kept."""

    prompts: list[str] = Field(default_factory=list)
    reply: str = "{n} facts"

    @property
    def _llm_type(self) -> str:
        return "reader"

    def _call(self, messages: list[BaseMessage], *_: Any, **__: Any) -> str:
        text = messages[-1].text
        self.prompts.append(text)
        return self.reply.format(n=text.count("Fact"), question=text.rsplit(" ", 1)[-1])


def shown(docs: list[Document]) -> str:
    """Documents as a chain shows them to its model."""
    return "\n".join(f"[{d.metadata['title']}] {d.page_content}" for d in docs)


def rag(retriever: Any, model: Any) -> Runnable[Any, Any]:
    """The chain of the tutorials."""
    return {"context": retriever | shown, "question": RunnablePassthrough()} | RAG | model
