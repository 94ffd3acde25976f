"""A graph's state without copies of a withheld answer, and text beside its requests for tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.messages import BaseMessage
from langgraph.types import Overwrite

from langchain_semgrad.agents.search import final_answer
from langchain_semgrad.convert import text_of
from langchain_semgrad.copies import cleaned_messages, cleaner_for
from langchain_semgrad.judging import findings_with_run
from langchain_semgrad.values import METADATA_KEY, Slot, texts_beside_tools, with_message
from semgrad_guard.adapter_kit import judge_beside_tools, withheld_by

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Mapping, Sequence

    from typing_extensions import TypeIs

    from langchain_semgrad.exchanges import OwnModel
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard


def cleaned_state(
    state: Mapping[str, Any], outcome: Outcome, answer_key: str, *, answered: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Return a graph's state without what repeats an answer that the caller does not get, and the places' names.

    The answer itself is not looked at.

    Args:
        state: the graph's state.
        outcome: how the question ended.
        answer_key: key of the state that holds the answer.
        answered: whether the answer is there already: the last message, or the text.
    """
    withheld, changed = withheld_by(outcome), dict(state)
    if withheld is None:
        return changed, []
    cleaner = cleaner_for(withheld)
    others = {key: part for key, part in state.items() if key != answer_key and not key.startswith(METADATA_KEY)}
    changed |= cleaner.mapping(others, ())
    messages = state.get(answer_key)
    if isinstance(messages, list | tuple):
        earlier, last = (messages[:-1], messages[-1:]) if answered else (messages, ())
        cleaned = [*cleaned_messages(earlier, cleaner, (answer_key,)), *last]
        if any(new is not old for new, old in zip(cleaned, messages, strict=True)):
            changed[answer_key] = cleaned
    return changed, cleaner.left_out


def state_update(before: Mapping[str, Any], after: Mapping[str, Any], reduced: Collection[str] = ()) -> dict[str, Any]:
    """Return what a node of the graph must give, so that one state becomes another.

    Messages that change are given with their ids, by which LangGraph's reducer of messages finds the old ones.

    Args:
        before: the graph's state.
        after: the state that it shall have.
        reduced: keys whose reducer adds to what is there, as `operator.add` does; they are overwritten.
    """
    update: dict[str, Any] = {}
    for key, part in after.items():
        old = before.get(key)
        if _is_conversation(old) and _is_conversation(part):
            if changed := [new for was, new in zip(old, part, strict=True) if new is not was]:
                update[key] = changed
        elif part is not old:
            update[key] = Overwrite(part) if key in reduced else part
    return update


def _is_conversation(part: Any) -> TypeIs[Sequence[BaseMessage]]:
    """Return whether this is a list of messages that have ids."""
    return isinstance(part, list | tuple) and bool(part) and all(isinstance(m, BaseMessage) and m.id for m in part)


def treated_beside_tools(
    messages: Sequence[BaseMessage],
    before: Sequence[BaseMessage],
    guard: Guard,
    *,
    own_model: OwnModel | None,
    within: bool,
    cancel: threading.Event | None = None,
) -> tuple[list[Any], list[Outcome]]:
    """Return messages whose texts beside requests for tools are treated as the policy says, and how each ended.

    Args:
        messages: what may ask for tools; those before the question are left alone.
        before: the messages before them.
        guard: judges the texts.
        own_model: the scoring model, where it may have written them.
        within: whether the model was called by the node that runs now.
        cancel: set when the outcome is no longer needed.
    """
    treated, outcomes = list[Any](messages), list["Outcome"]()
    for slot in texts_beside_tools(treated, None):
        (index,) = slot.path
        message: Any = slot.message
        read = [*before, *treated[: int(index)]]
        candidate = final_answer(message, read, own_model=own_model, within=within, text=text_of(message))
        outcome = judge_beside_tools(guard, candidate, cancel)
        text = slot.text if outcome.text == outcome.exchange.answer else outcome.text
        changed = with_message(message, Slot((), slot.text, message), text, findings_with_run(outcome))
        treated[int(index)] = changed if changed.id else changed.model_copy(update={"id": str(uuid4())})
        outcomes.append(outcome)
    return treated, outcomes
