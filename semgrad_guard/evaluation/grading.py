"""Grades answers against references: by words, by meaning, or by a judge."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from semgrad_guard.extras import require
from semgrad_guard.flow import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.models import LocalModel
    from semgrad_guard.models.embedding import Embedder

    Similarity = Callable[[Sequence[str]], NDArray[np.float64]]
    """Texts -> similarity of each pair, ``(text, text)``, 1 on the diagonal."""

_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")


def words(text: str) -> list[str]:
    """Return the words of a text for comparing: lower case, without punctuation and articles."""
    return [word for word in _all_words(text) if word not in _ARTICLES]


def contains_answer(answer: str, references: Sequence[str]) -> bool:
    """Return whether the answer contains an accepted answer as whole words, in order.

    An accepted answer of articles only, such as the vitamin "A", is looked for among all words.

    Source: the usual grading of open-domain question answering with generative models (Kandpal et al. 2023, section 2).
    """
    answer_words, everything = words(answer), _all_words(answer)
    return any(
        _contains(answer_words, accepted)
        if (accepted := words(reference))
        else _contains(everything, _all_words(reference))
        for reference in references
    )


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Return whether the answer is an accepted answer, word by word (SQuAD, Rajpurkar et al. 2016, section 6.1)."""
    answer_words = words(answer)
    return any(bool(answer_words) and answer_words == words(reference) for reference in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of shared words with an accepted answer, in [0, 1] (SQuAD, section 6.1)."""
    answer_words = words(answer)
    return max((_f1(answer_words, words(reference)) for reference in references), default=0.0)


F1_RIGHT = 0.5
"""Shared-word F1 from which an answer counts as right when F1 is the grader."""

GRADERS: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "contains": contains_answer,
    "exact": exact_match,
    "f1": lambda answer, references: token_f1(answer, references) >= F1_RIGHT,
}
"""Graders by the name that commands use."""


def _all_words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _contains(answer: Sequence[str], reference: Sequence[str]) -> bool:
    n = len(reference)
    return bool(n) and any(answer[i : i + n] == reference for i in range(len(answer) - n + 1))


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0


SAME_WORDS = 0.5
"""F1 of shared words from which two answers count as the same."""
SAME_MEANING = 0.8
"""Cosine of sentence embeddings from which two answers count as the same."""


def shared_words(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the F1 of shared words of each pair of texts."""
    alike = np.eye(len(texts))
    for i, left in enumerate(texts):
        for j in range(i):
            alike[i, j] = alike[j, i] = token_f1(left, [texts[j]]) if left != texts[j] else 1.0
    return alike


def by_embedding(embedder: Embedder) -> Similarity:
    """Return a similarity by sentence embeddings: their cosine, with negative values counted as 0."""
    from semgrad_guard.models.embedding import UnitVectors  # loads torch

    unit = UnitVectors(embedder)

    def alike(texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = unit(texts)
        found = np.clip(vectors @ vectors.T, 0.0, 1.0)
        np.fill_diagonal(found, 1.0)
        return found

    return alike


def clusters(alike: NDArray[np.float64], same: float) -> list[int]:
    """Return the cluster of each text: the first one whose first text is similar enough.

    Source: the greedy clustering of Kuhn, Gal and Farquhar, "Semantic uncertainty" (ICLR 2023), algorithm 1, with
    similarity in place of entailment.
    """
    first: list[int] = []
    found: list[int] = []
    for i in range(len(alike)):
        cluster = next((c for c, j in enumerate(first) if alike[i, j] >= same), None)
        if cluster is None:
            cluster = len(first)
            first.append(i)
        found.append(cluster)
    return found


class Grader(Protocol):
    """Decides whether an answer is right."""

    def __call__(self, question: str, answer: str, references: Sequence[str], /) -> bool:
        """Return whether the answer matches an accepted one; without accepted answers, every answer is wrong."""
        ...


def once(grader: Grader) -> Grader:
    """Return a grader that grades each answer once and remembers it: a judge may take seconds, or cost money."""
    grades: dict[tuple[str, str, tuple[str, ...]], bool] = {}

    def grade(question: str, answer: str, references: Sequence[str], /) -> bool:
        key = question, answer, tuple(references)
        if key not in grades:
            grades[key] = grader(question, answer, references)
        return grades[key]

    return grade


def by_words(name: str) -> Grader:
    """Return a grader that compares words.

    Args:
        name: one of `grading.GRADERS`.
    """
    compare = GRADERS[name]
    return lambda _question, answer, references: compare(answer, references)


def by_meaning(alike: Similarity, same: float = SAME_MEANING) -> Grader:
    """Return a grader that counts an answer as right if its sentence embedding is close to that of an accepted answer.

    Embeddings hardly notice a negation: check some grades before you trust them.

    Args:
        alike: similarity by sentence embeddings.
        same: cosine from which two sentences count as the same.
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
    """Return a judge that asks a local model."""

    def ask(text: str) -> str:
        prompt = (Message("user", text),) if model.is_chat else f"{text}\nReply:"
        return model.generate(prompt, max_new_tokens=4, keep=False).text

    return ask


def remote_judge(name: str) -> Callable[[str], str]:
    """Return a judge that asks a provider's model through LangChain.

    Args:
        name: provider and model, for example `openai:gpt-4.1-mini`; LangChain reads keys from the environment.

    Raises:
        MissingExtraError: langchain is not installed.
    """
    library: Any = require("langchain.chat_models", extra="agents")
    model: Any = library.init_chat_model(name, temperature=0)
    return lambda text: str(model.invoke(text).text)
