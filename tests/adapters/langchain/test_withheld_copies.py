"""What was withheld is nowhere in a chain's value, an agent's state or a graph's."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from pydantic import BaseModel

from langchain_semgrad import SemGradGraphState, SemGradGuard, SemGradNode
from semgrad_guard.adapter_kit.contract import reachable
from semgrad_guard.flow import HumanReview
from tests.adapters.langchain.agents import THREAD, agent_of, ask, call_of, says, search
from tests.adapters.langchain.chains import LYON, PROMPT, REFUSAL, model_of
from tests.fakes import LadderDecider, MemoryQueue, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.guard import Guard

LONG = "The capital of that country has always been Lyon on the river. Nobody there doubts it at all."


class Reply(BaseModel):
    """Structured answer with a field that repeats it."""

    answer: str
    trace: str = ""
    n: int = 0


@pytest.fixture(name="guard")
def _guard() -> Guard:
    return guard_of(scores={"Paris": 0.1})


def given(make: Callable[[AIMessage], Any], guard: Guard, answer: str = LYON, **options: Any) -> Any:
    """What a guarded chain gives whose last step makes this value of the model's message."""
    chain = PROMPT | model_of(answer) | RunnableLambda(make) | SemGradGuard(guard=guard, **options)
    return chain.invoke({"question": "?"})


def request(text: str, key: str, **more: Any) -> AIMessage:
    """Message that asks for a tool and names the answer in doing so."""
    args: Any = {"q": text} if key == "tool_calls" else text
    return AIMessage("", **{key: [{"name": "t", "args": args, "id": "1", **more}]})


BESIDE: dict[str, Callable[[AIMessage], Any]] = {
    "text": lambda m: f"I said: {m.text}",
    "nested": lambda m: {"list": [{"deep": m.text.upper()}]},
    "message": lambda m: m,
    "blocks": lambda m: m.model_copy(update={"content": [{"type": "text", "text": m.text}]}),
    "steps": lambda m: [(AgentAction(tool="t", tool_input=m.text, log=f"Thought: {m.text}"), "seen")],
    "object": lambda m: Reply(answer=m.text),
    "turn": lambda m: [HumanMessage("?"), AIMessage(f"Draft: {m.text}"), AIMessage("fine")],
    "reasoning": lambda m: [HumanMessage("?"), AIMessage([{"type": "reasoning", "reasoning": m.text}])],
    "metadata": lambda m: AIMessage("fine", response_metadata={"a": m.text}, additional_kwargs={"b": [m.text]}),
    "request": lambda m: request(m.text, "tool_calls"),
    "unreadable": lambda m: request(m.text, "invalid_tool_calls", error=None),
    "document": lambda m: Document("A passage.", metadata={"draft": f"So: {m.text}", "title": "t"}),
}
"""What chains put beside an answer."""


@pytest.mark.parametrize("answer", [LYON, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", BESIDE)
def test_copies_beside_the_answer_are_left_out(guard: Guard, name: str, answer: str) -> None:
    """Programs carry along how they came to it."""
    value = given(lambda m: {"answer": m.text, "x": BESIDE[name](m)}, guard, answer)
    assert "lyon" not in reachable(value).casefold()
    assert value["answer"] == REFUSAL
    assert value["semgrad"]["left_out"]
    assert "answer" not in value["semgrad"]["left_out"]


def test_question_passages_and_the_conversation_before_stay(guard: Guard) -> None:
    """They were there before the answer, which is a word of each."""
    before = {
        "question": "Is it wrong Lyon?",
        "context": [Document("Some said wrong Lyon.", metadata={"title": "On wrong Lyon", "page": 3})],
        "chat_history": [HumanMessage("And?"), AIMessage("I said wrong Lyon.")],
        "messages": [HumanMessage("Is it wrong Lyon?"), ToolMessage("Some said wrong Lyon.", tool_call_id="1")],
    }
    chain = (
        RunnablePassthrough.assign(answer=lambda x: [HumanMessage(str(x["context"])), HumanMessage(x["question"])])
        | RunnablePassthrough.assign(answer=lambda x, config: model_of(LYON).invoke(x["answer"], config).text)
        | SemGradGuard(guard=guard)
    )
    value = chain.invoke(before)
    found = value.pop("semgrad")
    assert value == {**before, "answer": REFUSAL}
    assert found["left_out"] == []


def test_an_answer_that_is_given_leaves_all_as_it_was(guard: Guard) -> None:
    """Nothing is secret then."""
    value = given(
        lambda m: {"answer": m.text, "trace": [m.text, {"x": m}], "obj": Reply(answer=m.text)}, guard, "Paris"
    )
    assert value["trace"][0] == value["trace"][1]["x"].text == value["obj"].answer == "Paris"
    assert value["semgrad"]["left_out"] == []


def test_a_pydantic_value_keeps_its_type_without_the_copy(guard: Guard) -> None:
    """Its other fields may repeat the answer."""
    value = given(lambda m: Reply(answer=m.text, trace=f"Thought: {m.text}", n=2), guard)
    assert value == Reply(answer=REFUSAL, trace="[left out]", n=2)


def test_earlier_messages_of_a_list_are_cleaned(guard: Guard) -> None:
    """A chain may give all its messages."""
    value = given(lambda m: [HumanMessage("wrong Lyon?"), AIMessage(f"Maybe {m.text}"), m], guard)
    assert [m.content for m in value] == ["wrong Lyon?", "[left out]", REFUSAL]


def test_of_several_answers_only_the_withheld_one_is_searched_for(guard: Guard) -> None:
    """The other one was judged, and may be said anywhere."""
    chain = (
        RunnablePassthrough.assign(a=PROMPT | model_of(LYON), b=PROMPT | model_of("Paris"))
        | RunnablePassthrough.assign(log=lambda x: [x["a"].text, x["b"].text])
        | SemGradGuard(guard=guard)
    )
    value = chain.invoke({"question": "?"})
    assert (value["a"].text, value["b"].text, value["log"]) == (REFUSAL, "Paris", [REFUSAL, "Paris"])
    assert [value["semgrad"][name]["left_out"] for name in "ab"] == [["log.0"], []]


def test_the_full_result_has_no_copy_in_its_value(guard: Guard) -> None:
    """Its outcome is the whole truth for whoever debugs; what it shows is not."""
    result = given(lambda m: {"answer": m.text, "trace": m.text}, guard, output="result")
    assert result.value["trace"] == REFUSAL


def test_raising_needs_no_cleaning(guard: Guard) -> None:
    """No value comes out; the text of the exception says nothing."""
    with pytest.raises(Exception, match="held back") as raised:
        given(lambda m: {"answer": m.text, "trace": m.text}, guard, on_withheld="raise")
    assert "Lyon" not in str(raised.value)


# --- agents -----------------------------------------------------------------------------------------------------------


def test_an_agents_earlier_requests_do_not_tell_its_answer(guard: Guard) -> None:
    """The model may say in the arguments of a tool what it is going to answer."""
    asked = call_of("search", query="capital", draft=LYON)
    state = ask(agent_of(says(asked, LYON), guard, tools=[search]))
    assert [type(m).__name__ for m in state["messages"]] == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert state["messages"][1].tool_calls[0]["args"] == {"query": "capital", "draft": REFUSAL}
    assert state["messages"][2].content == "Paris is the capital."
    assert state["semgrad"]["left_out"] == ["messages.1.tool_calls.0.args.draft"]


def test_earlier_turns_of_an_agent_stay(guard: Guard) -> None:
    """The user has read them."""
    agent = agent_of(says("Paris", "Not Paris"), guard, checkpointer=InMemorySaver(), review="queue")
    ask(agent, config=THREAD)
    state = ask(agent, "Again?", THREAD)
    assert [m.content for m in state["messages"]] == ["Capital?", "Paris", "Again?", REFUSAL]


def test_a_rejected_answer_is_in_no_part_of_the_state() -> None:
    """While a person decides it is kept apart; afterwards it is nowhere."""
    guard = guard_of(decider=LadderDecider([HumanReview(message="Wait.")]))
    asked = call_of("search", query="capital", draft=LYON)
    agent = agent_of(says(asked, LYON), guard, tools=[search], checkpointer=InMemorySaver(), review="interrupt")
    ask(agent, config=THREAD)
    state = agent.invoke(Command(resume={"type": "reject", "message": "no"}), THREAD)
    assert state["messages"][-1].content == REFUSAL
    assert "Lyon" not in repr(state)


# --- graphs -----------------------------------------------------------------------------------------------------------


class Chat(MessagesState, SemGradGraphState):
    """State with drafts beside the messages."""

    draft: str
    steps: Annotated[list[str], operator.add]
    question: str


def graph_of(guard: Guard, **options: Any) -> Any:
    """Model that leaves drafts, then the guard."""
    model, builder = model_of(LYON), StateGraph(Chat)

    def answer(state: Chat) -> Any:
        message = model.invoke([SystemMessage("Be brief."), *state["messages"]])
        return {"messages": [AIMessage(f"Draft: {LYON}"), message], "draft": f"so {LYON}", "steps": ["read", LYON]}

    builder.add_node("model", answer)
    builder.add_node("guard", SemGradNode(guard=guard, review="queue", **options))
    builder.add_edge(START, "model")
    builder.add_edge("model", "guard")
    builder.add_edge("guard", END)
    return builder.compile()


def test_a_graphs_state_has_no_copy() -> None:
    """Messages are replaced by their ids, parts with a reducer are overwritten."""
    graph = graph_of(guard_of(queue=MemoryQueue()), reduced_keys=["steps"])
    state = graph.invoke(
        {"messages": [HumanMessage("Is it wrong Lyon?")], "steps": ["begin"], "question": "wrong Lyon?"}
    )
    assert [m.content for m in state["messages"]] == ["Is it wrong Lyon?", "[left out]", REFUSAL]
    assert (state["draft"], state["steps"]) == ("[left out]", ["begin", "read", REFUSAL])
    assert state["question"] == "wrong Lyon?"
    assert state["semgrad"]["left_out"] == ["draft", "steps.2", "messages.1.content"]


def test_a_graphs_state_stays_where_the_answer_is_given() -> None:
    """The node changes nothing but the answer's message."""
    graph = graph_of(guard_of(scores={LYON: 0.1}))
    state = graph.invoke({"messages": [HumanMessage("?")], "steps": ["begin"]})
    assert (state["draft"], state["steps"]) == (f"so {LYON}", ["begin", "read", LYON])
    assert [m.content for m in state["messages"]] == ["?", f"Draft: {LYON}", LYON]
