"""Confidence and decisions in LangSmith: on the guard's run, on the model's run, and a person's verdict.

With `LANGSMITH_API_KEY` set, the runs go to your LangSmith project. Without it, they go to a stand-in server on this
machine, and what it received is printed. Run it with `python examples/langsmith_traces.py`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import langsmith
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tracers import LangChainTracer
from loopback_langsmith import LoopbackLangSmith

from langchain_semgrad import SemGradChatModel, SemGradGuard
from semgrad_guard.flow import ReviewId, Ruling, Verdict, utc_now
from semgrad_guard.telemetry import post_verdict_feedback

if TYPE_CHECKING:
    from langchain_semgrad import GuardedAnswer

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.5,
    "otherwise": "answer_with_warning",
    "telemetry": {"langsmith": True, "log_text": True},
}
SHOWN = ("status", "rule", "why", "confidence", "method", "score", "signal_first_nll", "scoring_s")
"""Some of the metadata; all raw signals are there."""
PROJECT = "semgrad-guard-example"
PASSAGE = "Helium was named after the Greek word for the sun, where it was first seen in 1868."
QUESTIONS = ("What was helium named after?", "Who was the first to make liquid helium?")


class OnePassage(BaseRetriever):
    """Stands for your retriever; the guard sees what it finds."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:  # noqa: ARG002 - the interface
        return [Document(PASSAGE)]


def main(server: LoopbackLangSmith | None) -> None:
    """Answer two questions in a traced chain, then post what a reviewer said about the first."""
    client = langsmith.Client(api_url=server.url, api_key="none needed") if server else langsmith.Client()
    llm = SemGradChatModel(model="smollm2-135m", max_tokens=24)
    guard = SemGradGuard(llm, policy=POLICY, output="result")
    prompt = ChatPromptTemplate.from_template("{passage}\n\nAnswer in a few words. {question}")
    found: Any = OnePassage() | (lambda documents: documents[0].page_content)
    chain: Any = {"passage": found, "question": RunnablePassthrough()} | prompt | llm | guard

    traced: Any = {"callbacks": [LangChainTracer(client=client, project_name=PROJECT)]}
    answers: list[GuardedAnswer] = [chain.invoke(question, traced) for question in QUESTIONS]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer.text}\n  confidence {answer.confidence}, {answer.status}")

    client.flush()  # a server that runs on need not wait for this, nor for the guard's feedback
    guard.guard.close()
    ruling = Ruling(review_id=ReviewId("1"), verdict=Verdict.APPROVED, text="", by="reviewer", at=utc_now())
    post_verdict_feedback(ruling, answers[0].outcome.exchange, client=client)
    client.close()


def show(server: LoopbackLangSmith) -> None:
    """Print what the stand-in server received."""
    print("\nRuns that LangSmith received:")
    for run in sorted(server.runs.values(), key=lambda run: str(run["dotted_order"])):
        metadata = run["extra"]["metadata"]
        tags = [tag for tag in run.get("tags") or [] if tag.startswith("semgrad:")]
        indent = "  " * str(run["dotted_order"]).count(".")
        print(f"{indent}{run['name']} {' '.join(tags)}")
        for name in (f"semgrad_{name}" for name in SHOWN):
            if name in metadata:
                print(f"{indent}    {name} = {metadata[name]}")
    print("\nFeedback that LangSmith received:")
    for feedback in server.feedback.values():
        on, comment = server.runs[feedback["run_id"]]["name"], feedback.get("comment") or "no comment"
        print(f"  {feedback['key']} = {feedback.get('score')} on {on} ({comment})")


if __name__ == "__main__":
    with nullcontext() if os.environ.get("LANGSMITH_API_KEY") else LoopbackLangSmith() as loopback:
        main(loopback)
        if loopback is not None:
            show(loopback)
