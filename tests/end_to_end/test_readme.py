"""The README's code runs as it stands there, on the demo model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import MockEmbedding, VectorStoreIndex
from pydantic import BaseModel

from langchain_semgrad import SemGradGuard
from langchain_semgrad.chat_model import SemGradChatModel
from llama_index_semgrad import SemGradLLM
from semgrad_guard.cli.demo_chain import MiniLmEmbeddings
from semgrad_guard.policy import explain, parse_policy

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = dict(re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]


class Answer(BaseModel):
    """What a reader's chain parses into."""

    city: str


@pytest.fixture(name="names")
def _names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader's program already has: a prompt, a model, a retriever, a policy file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(BLOCKS["policy"], encoding="utf-8")
    llm = SemGradChatModel(max_tokens=8)
    prompt = ChatPromptTemplate.from_template("Passages: {context}\n\nQuestion: {question}")
    store = InMemoryVectorStore(MiniLmEmbeddings())
    store.add_documents([Document("Paris is the capital of France."), Document("Rome is the capital of Italy.")])
    retriever = store.as_retriever(search_kwargs={"k": 1})
    joined = RunnableLambda(lambda documents: "\n".join(d.page_content for d in documents))
    return {
        "llm": llm,
        "big_llm": llm,
        "prompt": prompt,
        "context": "Paris is the capital of France.",
        "question": "What is the capital of France?",
        "retriever": retriever,
        "rag": {"context": retriever | joined, "question": RunnablePassthrough()} | prompt | llm,
    }


def test_the_five_lines_guard_a_chain(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing that anyone tries."""
    exec(compile(BLOCKS["chain"], "README", "exec"), names)  # noqa: S102 - our own README
    assert names["answer"].response_metadata["semgrad"]["withheld"] is False
    assert capsys.readouterr().out.strip()


def test_the_strengths_of_its_table_do_what_they_say(names: dict[str, Any]) -> None:
    """On a chain with a retriever, whose answers the shipped profile fits."""
    plain = names["rag"].invoke(names["question"]).content
    given = {
        accept: (names["rag"] | SemGradGuard(accept=accept)).invoke(names["question"]) for accept in (None, 0.01, 0.999)
    }
    assert [message.content for message in given.values()] == [plain, plain, "I am not sure enough to answer that."]
    (confidence,) = {message.response_metadata["semgrad"]["confidence"] for message in given.values()}
    assert 0.01 < confidence < 0.999
    assert f"confidence {confidence:.2f}: profile " in given[None].response_metadata["semgrad"]["why"]


def test_wrapping_a_chain_routes_it(names: dict[str, Any]) -> None:
    """The second."""
    names["chain"] = names["rag"]
    exec("from langchain_semgrad import SemGradGuard\n" + BLOCKS["wrap"], names)  # noqa: S102 - our own README
    assert names["guarded"]


def test_the_other_forms_work(names: dict[str, Any]) -> None:
    """Watching, parsing and agents."""
    names |= {"chain": names["rag"], "Answer": Answer, "create_agent": create_agent, "tools": []}
    exec(compile(BLOCKS["forms"], "README", "exec"), names)  # noqa: S102 - our own README
    said = names["agent"].invoke({"messages": [("user", "What is the capital of France?")]})
    assert said["messages"][-1].content


def test_a_query_engine_is_guarded(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same for LlamaIndex."""
    documents = [LlamaDocument(text="Paris is the capital of France.")]
    names["index"] = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))
    names["llm"] = names["big_llm"] = SemGradLLM(model=names["llm"].local_model, max_tokens=8)
    exec(compile(BLOCKS["llama"], "README", "exec"), names)  # noqa: S102 - our own README
    assert capsys.readouterr().out.strip()


def test_the_core_works_without_a_framework(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """No LangChain, no LlamaIndex."""
    exec(compile(BLOCKS["core"], "README", "exec"), names)  # noqa: S102 - our own README
    assert names["decision"].rule
    assert capsys.readouterr().out.strip()


def test_the_policy_of_the_readme_is_a_good_one() -> None:
    """It is what people copy."""
    assert explain(parse_policy(BLOCKS["policy"]))
