"""Text beside requests for tools, and requests that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_semgrad import SemGradCallbackHandler, SemGradGraphState, SemGradGuard, SemGradNode, SemGradOutputParser
from semgrad_guard.errors import LowConfidenceError
from tests.adapters.langchain.agents import agent_of, ask, decider, says, search
from tests.adapters.langchain.chains import LYON, PROMPT, REFUSAL, seen_by
from tests.fakes import MemorySink, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

CALL: Any = {"name": "search", "args": {"query": "capital"}, "id": "c1"}
BROKEN: Any = {"name": "search", "args": '{"query": "Lyo', "id": "c1", "error": "no JSON"}
ASKING = AIMessage(LYON, tool_calls=[CALL])
QUESTION: Any = {"question": "?"}


def guard_with(**policy: Any) -> Guard:
    """Guard of a policy that doubts Lyon."""
    return guard_of(scores={LYON: 0.9, "Paris": 0.1, "Let me see.": 0.1}, decider=decider(**policy), sink=MemorySink())


def records_of(guard: Guard) -> list[tuple[str | None, str]]:
    """What was recorded of each text."""
    sink: Any = guard.parts.sink
    return [(record.beside_tool_calls, str(record.status)) for record in sink.records]


def model(*messages: AIMessage) -> Any:
    """Model that gives these messages."""
    return GenericFakeChatModel(messages=iter([message.model_copy() for message in messages]))


@pytest.mark.parametrize(
    ("handling", "text", "content"),
    [("judge", LYON, ""), ("judge", "Let me see.", "Let me see."), ("blank", "Let me see.", ""), ("pass", LYON, LYON)],
)
def test_in_a_chain(handling: str, text: str, content: str) -> None:
    """The request itself passes untouched; the findings are in its message."""
    guard = guard_with(beside_tool_calls=handling)
    message = AIMessage([{"type": "text", "text": text}], tool_calls=[CALL], additional_kwargs={"raw": text})
    given = (PROMPT | model(message) | SemGradGuard(guard=guard)).invoke(QUESTION)
    assert given.text == content
    assert given.tool_calls == message.tool_calls
    assert ("Lyon" in repr(given)) is (content == LYON)
    assert given.response_metadata["semgrad"]["beside_tool_calls"] == handling
    assert records_of(guard) == [(handling, "answered" if content else "abstained")]


def test_its_prompt_is_the_one_of_its_own_call() -> None:
    """It is judged like an answer."""
    guard = guard_with()
    (PROMPT | model(ASKING) | SemGradGuard(guard=guard)).invoke(QUESTION)
    (seen,) = seen_by(guard)
    assert (seen.answer, seen.prompt[-1].content) == (LYON, "Answer briefly. ?")


def test_raising_is_for_answers() -> None:
    """The agent around the chain goes on with the request."""
    guard = guard_with()
    given = (PROMPT | model(ASKING) | SemGradGuard(guard=guard, on_withheld="raise")).invoke(QUESTION)
    assert (given.content, given.tool_calls[0]["name"]) == ("", "search")


async def test_in_every_way_to_call_a_chain() -> None:
    """Streams are held back for it as for answers."""
    guard = guard_with()

    def chain() -> Any:
        return PROMPT | says(ASKING) | SemGradGuard(guard=guard)

    (streamed,) = chain().stream(QUESTION)
    given = [await chain().ainvoke(QUESTION), chain().batch([QUESTION])[0], streamed]
    assert [message.content for message in given] == [""] * 3
    assert [message.tool_calls[0]["name"] for message in given] == ["search"] * 3


def test_an_annotated_stream_ends_with_its_findings() -> None:
    """The text has passed; the record and the last chunk say what the policy thinks of it."""
    guard = guard_with()
    *_, last = (PROMPT | says(ASKING) | SemGradGuard(guard=guard, stream="annotate")).stream(QUESTION)
    assert last.response_metadata["semgrad"]["beside_tool_calls"] == "judge"
    assert records_of(guard) == [("judge", "abstained")]


def test_a_conversation_is_treated_message_by_message() -> None:
    """A chain around an agent gives all its messages."""
    guard = guard_with()
    chain = (
        PROMPT
        | model(AIMessage("Paris"))
        | RunnableLambda(
            lambda m: {"messages": [HumanMessage("?"), ASKING, ToolMessage("Nothing.", tool_call_id="c1"), m]}
        )
    )
    given = (chain | SemGradGuard(guard=guard)).invoke(QUESTION)
    assert [m.content for m in given["messages"]] == ["?", "", "Nothing.", "Paris"]
    assert given["messages"][1].tool_calls[0]["args"] == CALL["args"]
    assert given["semgrad"]["status"] == "answered"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("handling", "text", "content"),
    [("judge", LYON, ""), ("judge", "Let me see.", "Let me see."), ("blank", "Let me see.", ""), ("pass", LYON, LYON)],
)
async def test_in_an_agent(handling: str, text: str, content: str, asynchronous: bool) -> None:
    """The tool is called all the same, and the answer is judged on its own."""
    guard = guard_with(beside_tool_calls=handling)
    agent = agent_of(says(AIMessage(text, tool_calls=[CALL]), "Paris"), guard, tools=[search])
    state = await agent.ainvoke({"messages": [HumanMessage("Capital?")]}) if asynchronous else ask(agent)
    assert [m.content for m in state["messages"]] == ["Capital?", content, "Paris is the capital.", "Paris"]
    assert records_of(guard) == [(handling, "answered" if content else "abstained"), (None, "answered")]
    assert state["semgrad"]["status"] == "answered"


class Chat(MessagesState, SemGradGraphState):
    """State of a chat graph."""


def graph_of(guard: Guard, *messages: AIMessage) -> Any:
    """Model, guard, and a tool that leads back to the model."""
    writes, builder = model(*messages), StateGraph(Chat)
    builder.add_node("model", lambda state: {"messages": [writes.invoke(state["messages"])]})
    builder.add_node("guard", SemGradNode(guard=guard, review="queue"))
    builder.add_node("tool", lambda _: {"messages": [ToolMessage("Nothing.", tool_call_id="c1")]})
    builder.add_edge(START, "model")
    builder.add_edge("model", "guard")
    builder.add_edge("tool", "model")
    builder.add_conditional_edges("guard", lambda state: "tool" if state["messages"][-1].tool_calls else END)
    return builder.compile()


def test_in_a_graph_each_text_is_treated_once() -> None:
    """The node sees the same messages again each time round."""
    guard = guard_with()
    asking = [AIMessage(text, tool_calls=[CALL], id=f"m{i}") for i, text in enumerate([LYON, "Let me see."])]
    state = graph_of(guard, *asking, AIMessage("Paris", id="m2")).invoke({"messages": [HumanMessage("?")]})
    assert [m.content for m in state["messages"]] == ["?", "", "Nothing.", "Let me see.", "Nothing.", "Paris"]
    assert records_of(guard) == [("judge", "abstained"), ("judge", "answered"), (None, "answered")]


def test_a_request_without_text_needs_no_treatment() -> None:
    """The message stays the very same object."""
    guard, call = guard_with(beside_tool_calls="blank"), AIMessage("", tool_calls=[CALL])
    assert (RunnableLambda(lambda _: call) | SemGradGuard(guard=guard)).invoke("?") is call
    assert records_of(guard) == []


# --- requests that cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "judged"), [(LYON, LYON), ("", BROKEN["args"])])
def test_a_request_that_cannot_be_read_is_an_answer(text: str, judged: str) -> None:
    """No tool runs for it, so its message is what the user gets."""
    guard = guard_with()
    message = AIMessage(text, invalid_tool_calls=[BROKEN])
    given = (PROMPT | model(message) | SemGradGuard(guard=guard)).invoke(QUESTION)
    assert [exchange.answer for exchange in seen_by(guard)] == [judged]
    assert (given.content, given.invalid_tool_calls) == (REFUSAL_OF_FILES, [])
    assert "Lyo" not in repr(given)


REFUSAL_OF_FILES = "I am not sure enough to answer that."
"""What a policy file says by default."""


def test_an_agent_ends_with_it() -> None:
    """Its loop ends there; the text is its answer."""
    guard = guard_with()
    state = ask(agent_of(says(AIMessage(LYON, invalid_tool_calls=[BROKEN])), guard, tools=[search]))
    assert state["messages"][-1].content == REFUSAL_OF_FILES
    assert state["semgrad"]["withheld"] is True
    assert "Lyo" not in repr(state)


def test_one_that_is_good_enough_passes_as_it_is() -> None:
    """Its caller may know what to do with it."""
    guard = guard_with()
    message = AIMessage("Paris", invalid_tool_calls=[BROKEN])
    given = (PROMPT | model(message) | SemGradGuard(guard=guard)).invoke(QUESTION)
    assert (given.content, given.invalid_tool_calls[0]["args"]) == ("Paris", BROKEN["args"])


def test_a_parser_judges_it_too() -> None:
    """Before it reads it."""
    guard = guard_of()
    parser: Any = SemGradOutputParser(guard=guard)
    assert (PROMPT | model(AIMessage(LYON, invalid_tool_calls=[BROKEN])) | parser).invoke(QUESTION) == REFUSAL
    assert [exchange.answer for exchange in seen_by(guard)] == [LYON]


def test_a_fallbacks_unreadable_request_is_its_answer() -> None:
    """It asked for no tool that could run."""
    guard = guard_with(escalate=[{"fallback_model": "big"}])
    chain = SemGradGuard(guard=guard, on_withheld="raise").wrap(
        PROMPT | model(AIMessage(LYON)), fallbacks={"big": model(AIMessage("", invalid_tool_calls=[BROKEN]))}
    )
    with pytest.raises(LowConfidenceError):
        chain.invoke(QUESTION)
    assert [exchange.answer for exchange in seen_by(guard)] == [LYON, BROKEN["args"]]


# --- observing --------------------------------------------------------------------------------------------------------


def test_the_handler_records_it_and_changes_nothing() -> None:
    """It is there to see everything."""
    guard = guard_with()
    handler = SemGradCallbackHandler(guard=guard, background=False)
    given = model(ASKING).invoke("?", {"callbacks": [handler]})
    assert given.content == LYON
    assert [(record.beside_tool_calls, record.text) for record in handler.records] == [("judge", LYON)]
