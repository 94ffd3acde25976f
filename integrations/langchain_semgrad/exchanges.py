"""Makes the exchange that is judged, from a chain's value and what was captured about it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from langchain_semgrad.capture import STORE, recorded
from langchain_semgrad.convert import documents_in, run_id_of, to_passage, to_prompt
from langchain_semgrad.values import Slot, find_answers
from semgrad_guard.adapter_kit import Candidate, stated_here
from semgrad_guard.adapter_kit import answering as kit_answering
from semgrad_guard.context import each_once, question_asked
from semgrad_guard.errors import ModelError, NotGuardableError, PromptNotFoundError, ScoringError, in_log
from semgrad_guard.flow import RUN_KEY, Exchange
from semgrad_guard.wire import RunRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from langchain_core.callbacks import BaseCallbackManager
    from langchain_core.callbacks.manager import BaseRunManager

    from langchain_semgrad.capture import Documents, LlmRun
    from semgrad_guard.adapter_kit import Answering
    from semgrad_guard.flow import Json, Passage, PassagesFrom, Prompt
    from semgrad_guard.models import LocalModel


class OwnModel:
    """A LangChain model whose own weights score its answers.

    Args:
        llm: the model, with or without arguments bound to it.
    """

    def __init__(self, llm: object) -> None:
        """Open what `bind` and `with_config` put around the model."""
        self._given = llm
        inner: Any = llm
        while (bound := getattr(inner, "bound", None)) is not None:
            inner = bound
        self._llm = inner
        # The very object that this model hands to callbacks with every call, so identity tells the model.
        self._serialized: object = getattr(inner, "_serialized", None)

    def load(self) -> LocalModel:
        """Return the local model inside.

        Raises:
            NotGuardableError: there is none.
        """
        from semgrad_guard.models import load_model  # loads torch, as the model already did

        try:
            return load_model(self._given)
        except ModelError as error:
            msg = (
                f"{type(self._given).__name__} holds no local model whose weights could score its answers ({error}); "
                "leave it out, as in SemGradGuard(), and the policy's own scoring model judges its answers"
            )
            raise NotGuardableError(msg) from error

    def wrote(self, run: LlmRun) -> bool:
        """Tell whether this very model made a call."""
        return run.serialized is not None and run.serialized is self._serialized

    def without_prompt(self, text: str, prompt: Prompt) -> str:
        """Return the answer alone, where the pipeline gives prompt and answer (`return_full_text`)."""
        return text.removeprefix(prompt if isinstance(prompt, str) else self._rendered(prompt))

    def _rendered(self, prompt: Prompt) -> str:
        tokenizer = getattr(self._llm, "tokenizer", None)
        if tokenizer is None or isinstance(prompt, str):
            return ""
        from semgrad_guard.models.tokens import render  # loads transformers, as the model already did

        return render(tokenizer, prompt)


_log = logging.getLogger("semgrad_guard")

_OWN_TAG = re.compile(r"(seq:step|map:key|graph:step|branch|condition|langsmith|semgrad):")
_OWN_METADATA = ("ls_", "lc_", "langgraph_", "__", "checkpoint_", "revision_id")

ADVICE = (
    "put the guard into the chain that calls the model, as in `prompt | llm | SemGradGuard()`, and pass `config` on "
    "where your own function calls the model in another thread"
)


def answering(
    question: str | None = None,
    passages: Iterable[Document | Passage | str] | str | None = None,
) -> Answering:
    """State the question and the passages of the answers that are written or judged within a `with` block.

    They take the place of those that the guard finds; see `semgrad_guard.adapter_kit.answering` for how blocks nest and
    which threads know them. Around the model's call alone is enough, wherever the guard stands.

    Args:
        question: the user's question alone; `None` leaves it to be found.
        passages: the texts that the answer is written from: documents, strings or `Passage`. An empty list says that it
            is written without any; `None` leaves them to be found.

    Raises:
        OptionError: something among the passages is no text.

    Example:
        >>> with answering(question="Who discovered radium?", passages=documents):  # doctest: +SKIP
        ...     answer = chain.invoke(prompt)
    """
    return kit_answering(question, passages, convert=_passage_or_none)


def _passage_or_none(value: object) -> Passage | None:
    return to_passage(value) if isinstance(value, Document) else None


@dataclass(frozen=True, slots=True)
class ChainCandidate(Candidate):
    """One answer in a chain's value, to be judged."""

    slot: Slot | None = None
    """Where the answer is in the value; `None` where the value holds no text of its own."""
    llm_run: LlmRun | None = None
    """The model call that wrote it."""
    query: str | None = None
    """The query of the chain's retriever; `None` where it was not called."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is known of a call beside the value that it gave."""

    run_id: UUID
    """The guard's own run or, with `within`, the run of the chain that gave the value."""
    manager: BaseRunManager | BaseCallbackManager | None = None
    within: bool = False
    question: str | None = None
    """The question in the input, where the caller has it."""
    documents: Documents = field(default_factory=dict["PassagesFrom", "Sequence[Document]"])
    """Documents that the caller has, by where they were found; they count more than those of other runs."""
    key: str | None = None
    """The answer's key in a mapping."""
    own_model: OwnModel | None = None


def candidates_in(value: Any, context: CallContext) -> tuple[ChainCandidate, ...]:
    """Return the answers in a value, each as an exchange with the prompt, question and passages that it came from."""
    slots = find_answers(value, lambda text: STORE.wrote_text(context.run_id, text), context.key)
    return tuple(candidate_at(value, slot, context) for slot in slots or (None,))


def candidate_at(value: Any, slot: Slot | None, context: CallContext) -> ChainCandidate:
    """Return the text in one place of a value as an exchange, or why it cannot be judged."""
    try:
        return _candidate(value, slot, context)
    except Exception as error:  # noqa: BLE001 - an answer that cannot be read takes `on_error`, it does not break the chain
        _log.warning("could not read what a chain gave: %s", in_log(error))
        failure = ScoringError(f"could not read what the chain gave: {type(error).__name__}: {error}")
        exchange = stated_here().apply(Exchange(answer=slot.text if slot else "", question=context.question))
        return ChainCandidate(exchange, failure, slot)


def _candidate(value: Any, slot: Slot | None, context: CallContext) -> ChainCandidate:
    text = slot.text if slot else None
    message_run = run_id_of(slot.message) if slot else None
    captured = STORE.find(context.run_id, text, message_run_id=message_run, within=context.within)
    run = captured.llm_run if captured else None
    about = _about(context, run)
    if run is None:
        error = PromptNotFoundError("among the model calls of this chain", ADVICE)
        exchange = stated_here().apply(Exchange(answer=text or "", question=context.question, **about))
        return ChainCandidate(exchange, error, slot)
    asked = (context.question, *(captured.questions if captured else ()))
    elsewhere: Documents = {"state": documents_in(value)}
    documents = (context.documents, *(captured.documents if captured else ()), elsewhere)
    exchange = exchange_of(run, text, questions=asked, documents=documents, own_model=context.own_model)
    query = captured.query if captured else None
    return ChainCandidate(replace(exchange, **about), slot=slot, llm_run=run, query=query)


def exchange_of(
    run: LlmRun,
    text: str | None = None,
    *,
    questions: Sequence[str | None] = (),
    documents: Sequence[Documents] = (),
    own_model: OwnModel | None = None,
) -> Exchange:
    """Return a model call as an exchange.

    What `answering` blocks state counts first; what is not known is found in the prompt (`semgrad_guard.context`).

    Args:
        run: the call.
        text: what the chain made of the model's words; `None` leaves them as they are.
        questions: what the question may be, the likeliest first.
        documents: what may have been retrieved for it, the nearest first, each by where it was found.
        own_model: the scoring model, where it may have written the answer.
    """
    prompt, raw = to_prompt(run.prompt), run.text or ""
    on_policy = own_model is not None and own_model.wrote(run)
    written = own_model.without_prompt(raw, prompt) if own_model and on_policy else without_prompt(raw, prompt)
    answer = written if text is None or text.strip() == raw.strip() else without_prompt(text, prompt)
    unchanged = answer.strip() == written.strip()
    passages, found = passages_in(documents, prompt)
    exchange = Exchange(
        prompt=prompt,
        answer=answer,
        question=question_asked(prompt, questions),
        passages=passages,
        passages_from=found,
        author=run.model,
        on_policy=on_policy and unchanged,
        score=run.score if unchanged else None,
    )
    exchange = run.stated.over(stated_here()).apply(exchange)
    if exchange.passages_from is not None:
        return exchange
    passed_on = next(filter(None, (near.get("state") for near in documents)), ())
    return replace(
        exchange, passages=each_once(map(to_passage, passed_on)), passages_from="state" if passed_on else None
    )


def without_prompt(text: str, prompt: Prompt) -> str:
    """Return a text without the prompt that some integrations repeat before the answer."""
    return text.removeprefix(prompt) if isinstance(prompt, str) and prompt else text


def passages_in(documents: Sequence[Documents], prompt: Prompt) -> tuple[tuple[Passage, ...], PassagesFrom | None]:
    """Return the retrieved texts that are in the prompt, in its order, and where they were found.

    Where none is in it, because the chain rewrote them, they are all the texts that a retriever or tool gave; other
    steps may pass on documents that are not meant for the model.

    Args:
        documents: what may have been retrieved, the nearest first; the first with texts in the prompt counts.
        prompt: what the model read.
    """
    read = _squeezed(prompt if isinstance(prompt, str) else "\n".join(m.content for m in prompt))
    for near in documents:
        found: list[tuple[PassagesFrom, Passage]] = [
            (kind, to_passage(document)) for kind, part in near.items() for document in part
        ]
        used: list[tuple[int, PassagesFrom, Passage]] = [
            (at, kind, p) for kind, p in found if p.text.strip() and (at := read.find(_squeezed(p.text))) >= 0
        ]
        if used:
            return each_once(p for _, _, p in sorted(used, key=lambda one: one[0])), used[0][1]
    given: list[tuple[Sequence[Document], PassagesFrom]] = [
        (part, kind) for near in documents for kind, part in near.items() if part and kind != "state"
    ]
    return (each_once(map(to_passage, given[0][0])), given[0][1]) if given else ((), None)


def read_from(exchange: Exchange, documents: Sequence[Document]) -> Exchange:
    """Return the exchange of a retry with the documents that the guard retrieved for it; they count before all others.

    Args:
        exchange: the new answer.
        documents: what it was to be written from; empty where the chain retrieved by itself.
    """
    passages, found = passages_in([{"retriever": documents}], exchange.prompt)
    return replace(exchange, passages=passages, passages_from=found) if passages else exchange


def _squeezed(text: str) -> str:
    return " ".join(text.split())


# --- tags, metadata and the traced run --------------------------------------------------------------------------------


def _about(context: CallContext, run: LlmRun | None) -> dict[str, Any]:
    """Return tags and metadata of an exchange."""
    manager = context.manager
    traced = _traced(manager, run) if run is not None else None
    return about_run(run, traced, manager.tags if manager else (), manager.metadata if manager else {})


def about_run(
    run: LlmRun | None, traced: RunRef | None, tags: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return tags and metadata of an exchange: the user's own, and which model call wrote the answer.

    Args:
        run: the model call.
        traced: its ids in LangSmith, where they are recorded.
        tags: tags of the call.
        metadata: metadata of the call; what JSON cannot hold is left out.
    """
    entries: dict[str, Json] = {key: value for key, value in metadata.items() if _is_users(key, value)}
    if run is not None:
        entries |= {"llm_run_id": str(run.id), "llm_run_name": run.name}
    if traced is not None:
        entries[RUN_KEY] = traced.fields()
    return {"tags": frozenset(tag for tag in tags if not _OWN_TAG.match(tag)), "metadata": entries}


def _is_users(key: str, value: object) -> bool:
    """Tell whether an entry of the metadata is the user's own, and JSON can hold it."""
    return not key.startswith(_OWN_METADATA) and (value is None or isinstance(value, bool | int | float | str))


def _traced(manager: BaseRunManager | BaseCallbackManager | None, run: LlmRun) -> RunRef | None:
    """Return the ids of the model call in LangSmith, when a tracer records this chain."""
    ours = recorded(manager)
    if ours is None:
        return None
    return RunRef(run_id=str(run.id), trace_id=str(ours.trace_id), session_name=ours.session_name)
