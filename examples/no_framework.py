"""The guard without any framework: your own retrieval and your own model calls in plain Python.

`Guard.judge` says what the policy chooses and does nothing; `Guard.run` also carries it out, with what you give it in
`Resources`. Run it with `python examples/no_framework.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from semgrad_guard import Exchange, Guard, Message, Passage
from semgrad_guard.models import LocalModel, load_model
from semgrad_guard.routing import Resources

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.5,
    "escalate": [{"retry_retrieval": {"top_k": 3}}],
    "otherwise": "abstain",
    "messages": {"abstain": "I am not sure enough to answer that."},
}

PASSAGES = (
    "The night train to Oslo leaves from platform 4 at 21:40.",
    "Bicycles may be taken on the night train to Oslo if a place was booked.",
    "The waiting room on platform 4 closes at 22:00.",
    "Breakfast on the night train is served from six o'clock.",
)

QUESTIONS = (
    "From which platform does the night train to Oslo leave?",
    "What does a ticket for the night train to Oslo cost?",  # no passage tells
)


class WordRetriever:
    """Finds the passages that share most words with a query."""

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Return passages, best first."""
        wanted = _words(query)
        best = sorted(PASSAGES, key=lambda text: len(wanted & _words(text)), reverse=True)
        return [Passage(text) for text in best[:top_k]]


class Answerer:
    """Asks a local model."""

    def __init__(self, model: LocalModel) -> None:
        """Keep the model."""
        self._model = model

    def first(self, question: str, passages: Sequence[Passage]) -> Exchange:
        """Return the first answer to a question."""
        prompt = _prompt(question, passages)
        written = self._model.generate(prompt, max_new_tokens=24)
        return Exchange(
            prompt=prompt,
            answer=written.text,
            question=question,
            passages=tuple(passages),
            prompt_ids=written.prompt_ids,
            answer_ids=written.answer_ids,
            on_policy=True,  # the model that scores is the model that wrote
        )

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return another answer to the same question; the guard calls this for a retry."""
        found = tuple(passages or exchange.passages)
        prompt = _prompt(exchange.question or "", found)
        written = self._model.generate(prompt, max_new_tokens=24)
        return exchange.next_attempt(prompt=prompt, answer=written.text, passages=found)


def _prompt(question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
    text = "\n".join(passage.text for passage in passages)
    return (
        Message("system", "Answer the question from the passages, in a few words."),
        Message("user", f"{text}\n\nQuestion: {question}"),
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def main() -> None:
    """Answer two questions under the guard."""
    model = load_model("smollm2-135m")
    guard = Guard.from_yaml(POLICY, model=model)
    retriever, answerer = WordRetriever(), Answerer(model)

    for question in QUESTIONS:
        first = answerer.first(question, retriever.retrieve(question, 1))
        decision = guard.judge(first)
        print(f"{question}\n  model: {first.answer!r}\n  judged: {decision.action}, because {decision.why}")

        outcome = guard.run(first, Resources(chain=answerer, retriever=retriever))
        print(f"  user gets: {outcome.text!r} ({outcome.status}, {len(outcome.attempts)} attempt(s))")


if __name__ == "__main__":
    main()
