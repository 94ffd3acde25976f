"""What the program of a page's reader already has: models, a prompt, a chain, an index, a policy file."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parents[1]
FRANCE = "Paris is the capital of France."


@cache
def _llm() -> Any:
    from langchain_semgrad import SemGradChatModel

    return SemGradChatModel(max_tokens=8)


def _prompt() -> Any:
    from langchain_core.prompts import ChatPromptTemplate

    return ChatPromptTemplate.from_template("Passages: {context}\n\nQuestion: {question}")


def _chain() -> Any:
    from langchain_core.prompts import ChatPromptTemplate

    return ChatPromptTemplate.from_template("{prompt}") | _llm()


@cache
def _retriever() -> Any:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    from semgrad_guard.cli.demo_chain import MiniLmEmbeddings

    store = InMemoryVectorStore(MiniLmEmbeddings())
    store.add_documents([Document(FRANCE), Document("Rome is the capital of Italy.")])
    return store.as_retriever(search_kwargs={"k": 1})


def rag() -> Any:
    """Return a chain that retrieves and answers."""
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    joined = RunnableLambda(lambda documents: "\n".join(d.page_content for d in documents))
    return {"context": _retriever() | joined, "question": RunnablePassthrough()} | _prompt() | _llm()


def _answer_type() -> Any:
    from pydantic import BaseModel

    class Answer(BaseModel):
        city: str

    return Answer


def _create_agent() -> Any:
    from langchain.agents import create_agent

    return create_agent


def _index() -> Any:
    from llama_index.core import Document, MockEmbedding, VectorStoreIndex

    return VectorStoreIndex.from_documents([Document(text=FRANCE)], embed_model=MockEmbedding(embed_dim=4))


def _llama_llm() -> Any:
    from llama_index_semgrad import SemGradLLM

    return SemGradLLM(model=_llm().local_model, max_tokens=8)


def _own_framework(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / "own_framework.py"))[name]


def _desk() -> Any:
    model = _llm().local_model
    return _own_framework("TrainDesk")({"own": lambda prompt: model.generate(prompt, max_new_tokens=8)})


def _policy_file() -> None:
    Path("policy.yaml").write_text(
        "accept: 0.5\nescalate: [{retry_retrieval: {top_k: 2}}, {fallback_model: big}]\n", encoding="utf-8"
    )


def _own_policy_file() -> None:
    Path("policy.yaml").write_text("accept: 0.5\n", encoding="utf-8")


GIVEN: Mapping[str, Callable[[], Any]] = {
    "Answer": _answer_type,
    "MyPipeline": lambda: _own_framework("TrainDeskPipeline"),
    "big_llm": _llm,
    "chain": _chain,
    "create_agent": _create_agent,
    "desk": _desk,
    "documents": lambda: [FRANCE],
    "index": _index,
    "llama_llm": _llama_llm,
    "llm": _llm,
    "own_policy_file": _own_policy_file,
    "policy_file": _policy_file,
    "prompt": _prompt,
    "prompt_text": lambda: f"{FRANCE}\n\nQuestion: What is the capital of France?",
    "question": lambda: "What is the capital of France?",
    "rag": rag,
    "rag_input": lambda: {"context": FRANCE, "question": "What is the capital of France?"},
    "retriever": _retriever,
    "tools": list,
}
"""Name that a page may use -> what makes its value."""
