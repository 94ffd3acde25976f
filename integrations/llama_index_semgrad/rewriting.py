"""Rewording a question for retrieval with a LlamaIndex LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.prompts import PromptTemplate

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

REWRITE_TEMPLATE = PromptTemplate(
    "Write one search query that finds passages which answer the question below. Keep every name, number and date; use "
    "other words where a document may use them. Give the search query alone, without quotes or explanation.\n"
    "Question: {question}\n"
    "Search query: "
)


class LlmRewriter:
    """Asks an LLM for a search query; only retrieval uses it, the answer's prompt keeps the question."""

    def __init__(self, llm: LLM, template: PromptTemplate = REWRITE_TEMPLATE) -> None:
        """Keep the LLM and the template, which has one variable: `question`."""
        self._llm, self._template = llm, template

    def rewrite(self, question: str) -> str:
        """Return the question in other words; as it is when the model has none."""
        lines = (line.strip(" \"'`") for line in self._llm.predict(self._template, question=question).splitlines())
        return next(filter(None, lines), question)
