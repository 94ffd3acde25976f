"""A guard for a framework of your own: five functions over your own values, and the policy does the rest.

`TrainDesk` is a small home-made pipeline that knows nothing of the guard. `TrainDeskPipeline` says how it is asked and
read; `GuardedPipeline` judges, retries, falls back or abstains. Run it with `python examples/own_framework.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from semgrad_guard import Guard, Message, Passage
from semgrad_guard.adapter_kit import Answer, GuardedPipeline, ModelCall
from semgrad_guard.models import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from semgrad_guard.flow import Json
    from semgrad_guard.models import Generated

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.5,
    "escalate": [{"retry_retrieval": {"top_k": 3}}],
    "otherwise": "abstain",
    "messages": {"abstain": "I am not sure enough to answer that."},
}
TEXTS = (
    "The night train to Oslo leaves from platform 4 at 21:40.",
    "Bicycles may be taken on the night train to Oslo if a place was booked.",
    "The waiting room on platform 4 closes at 22:00.",
    "Breakfast on the night train is served from six o'clock.",
)
QUESTIONS = (
    "From which platform does the night train to Oslo leave?",
    "What does a ticket for the night train to Oslo cost?",  # no text tells
)


# --- your framework ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What the desk gives for a question."""

    text: str
    sources: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[tuple[tuple[Message, ...], Generated], ...] = ()
    """What each model read and wrote."""


class TrainDesk:
    """Finds texts about trains and lets a model answer from them."""

    def __init__(self, models: Mapping[str, Callable[[tuple[Message, ...]], Generated]]) -> None:
        """Keep the models by name; `own` is the one that is asked first."""
        self.models = models

    def find(self, query: str, n: int = 1) -> tuple[str, ...]:
        """Return the texts that share most words with a query."""
        wanted = _words(query)
        return tuple(sorted(TEXTS, key=lambda text: len(wanted & _words(text)), reverse=True)[:n])

    def ask(self, question: str, sources: Sequence[str] | None = None, model: str = "own") -> Reply:
        """Return an answer from the texts that were found, or from those given."""
        texts = self.find(question) if sources is None else tuple(sources)
        prompt = (
            Message("system", "Answer the question from the passages, in a few words."),
            Message("user", "\n".join([*texts, "", f"Question: {question}"])),
        )
        written = self.models[model](prompt)
        return Reply(written.text, texts, log=((prompt, written),))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


# --- the five functions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainDeskPipeline:
    """How a guard asks, reads and answers for a `TrainDesk`."""

    desk: TrainDesk

    def ask(self, question: str, passages: Sequence[Passage] | None, model: str | None) -> Reply:
        """Ask the desk, from given passages and by a fallback model where there are any."""
        sources = None if passages is None else [passage.text for passage in passages]
        return self.desk.ask(question, sources, model or "own")

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Find texts."""
        return [Passage(text) for text in self.desk.find(query, top_k)]

    def calls(self, value: Reply) -> Sequence[ModelCall]:
        """Read the desk's log; these answers were written by the very model that scores."""
        return [
            ModelCall(
                prompt=prompt,
                text=written.text,
                on_policy=True,
                prompt_ids=written.prompt_ids,
                answer_ids=written.answer_ids,
            )
            for prompt, written in value.log
        ]

    def read(self, value: Reply) -> Answer:
        """Read the answer and its sources."""
        return Answer(text=value.text, passages=tuple(map(Passage, value.sources)))

    def give(self, value: Reply, text: str, found: dict[str, Json]) -> Reply:
        """Put the text back; the log repeats the answer, so it goes."""
        return replace(value, text=text, notes={**value.notes, "semgrad": found}, log=())


def main() -> None:
    """Answer two questions under the guard."""
    model = load_model("smollm2-135m")
    desk = TrainDesk({"own": lambda prompt: model.generate(prompt, max_new_tokens=24)})
    guarded = GuardedPipeline(TrainDeskPipeline(desk), Guard.from_yaml(POLICY, model=model))
    for question in QUESTIONS:
        reply = guarded.ask(question)
        found = reply.notes["semgrad"]
        confidence = "unknown" if found["confidence"] is None else f"{found['confidence']:.2f}"
        print(f"{question}\n  user gets: {reply.text!r} ({found['status']}, confidence {confidence}: {found['why']})")


if __name__ == "__main__":
    main()
