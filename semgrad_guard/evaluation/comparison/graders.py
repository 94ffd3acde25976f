"""Is an answer right? Beside comparing words: sentence embeddings, or a model as the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from semgrad_guard.evaluation.comparison.meaning import SAME_MEANING
from semgrad_guard.evaluation.grading import GRADERS
from semgrad_guard.extras import require
from semgrad_guard.flow import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.evaluation.comparison.meaning import Similarity
    from semgrad_guard.models import LocalModel


class Grader(Protocol):
    """Says whether an answer is right."""

    def __call__(self, question: str, answer: str, references: Sequence[str], /) -> bool:
        """Return whether the answer is right, given accepted answers; without any, every answer is wrong."""
        ...


def by_words(name: str) -> Grader:
    """Return a grader that compares words.

    Args:
        name: one of `grading.GRADERS`.
    """
    compare = GRADERS[name]
    return lambda _question, answer, references: compare(answer, references)


def by_embedding(alike: Similarity, same: float = SAME_MEANING) -> Grader:
    """Return a grader that takes an answer for right when its sentence embedding is like that of an accepted one.

    Embeddings hardly notice a negation: look at some grades before you trust them.

    Args:
        alike: likeness by sentence embeddings.
        same: cosine from which two sentences say the same.
    """
    return lambda _question, answer, references: (
        bool(references) and bool(alike([answer, *references])[0, 1:].max() >= same)
    )


_JUDGE = (
    "Question: {question}\nAccepted answers: {references}\nProposed answer: {answer}\n"
    "Does the proposed answer say the same as one of the accepted answers? Reply with Yes or No."
)


def by_judge(ask: Callable[[str], str]) -> Grader:
    """Return a grader that asks a language model.

    Args:
        ask: text -> reply; see `local_judge` and `remote_judge`.
    """

    def grade(question: str, answer: str, references: Sequence[str]) -> bool:
        if not references:
            return False
        reply = ask(_JUDGE.format(question=question, references=" | ".join(references), answer=answer))
        return reply.strip().casefold().startswith("yes")

    return grade


def local_judge(model: LocalModel) -> Callable[[str], str]:
    """Return a judge that a local model plays."""

    def ask(text: str) -> str:
        prompt = (Message("user", text),) if model.is_chat else f"{text}\nReply:"
        return model.generate(prompt, max_new_tokens=4, keep=False).text

    return ask


def remote_judge(name: str) -> Callable[[str], str]:
    """Return a judge that a provider's model plays, through LangChain.

    Args:
        name: provider and model, for example `openai:gpt-4.1-mini`; keys come from the environment, as usual there.

    Raises:
        MissingExtraError: langchain is not installed.
    """
    library: Any = require("langchain.chat_models", extra="agents")
    model: Any = library.init_chat_model(name, temperature=0)
    return lambda text: str(model.invoke(text).text)
