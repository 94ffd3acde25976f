"""The guard as a node of a hand-built graph."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document  # noqa: TC002 - LangGraph reads the annotations
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from langchain_semgrad import SemGradGraphState, SemGradNode
from semgrad_guard.errors import NotGuardableError
from semgrad_guard.flow import FallbackModel, HumanReview, RetryRetrieval
from tests.adapters.langchain.chains import LYON, REFUSAL, asked, model_of, seen_by
from tests.adapters.langchain.rag import RAG, Facts, Reader, shown
from tests.fakes import LadderDecider, MemoryQueue, guard_of

THREAD: Any = {"configurable": {"thread_id": "t1"}}


class Chat(MessagesState, SemGradGraphState):
    """State of a chat graph."""


class Rag(SemGradGraphState, total=False):
    """State of the RAG graph of the tutorials."""

    question: str
    documents: list[Document]
    generation: str


def chat_graph(model: Any, node: SemGradNode, checkpointer: Any = None) -> Any:
    """Model, guard, person."""
    builder = StateGraph(Chat)
    builder.add_node(
        "model", lambda state: {"messages": [model.invoke([SystemMessage("Be brief."), *state["messages"]])]}
    )
    builder.add_node("guard", node)
    builder.add_node("review", node.review)
    builder.add_edge(START, "model")
    builder.add_edge("model", "guard")
    builder.add_edge("guard", "review")
    builder.add_edge("review", END)
    return builder.compile(checkpointer=checkpointer)


def rag_graph(retriever: Any, model: Any, node: SemGradNode) -> Any:
    """Retriever, model, guard."""
    builder = StateGraph(Rag)
    builder.add_node("retrieve", lambda state: {"documents": retriever.invoke(state["question"])})
    builder.add_node(
        "generate",
        lambda state: {"generation": (RAG | model).invoke({**state, "context": shown(state["documents"])}).text},
    )
    builder.add_node("guard", node)
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "generate")
    builder.add_edge("generate", "guard")
    builder.add_edge("guard", END)
    return builder.compile()


def test_the_last_message_is_judged_by_the_prompt_of_an_earlier_node() -> None:
    """The model's node may add a system message that the state does not hold."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1)
    graph = chat_graph(model_of("Paris", LYON), SemGradNode(guard=guard))
    good = graph.invoke({"messages": [HumanMessage("Capital?")]})
    bad = graph.invoke({"messages": [HumanMessage("Capital?")]})
    assert [m.content for m in good["messages"]] == ["Capital?", "Paris"]
    assert [m.content for m in bad["messages"]] == ["Capital?", REFUSAL]
    assert (good["semgrad"]["action"], bad["semgrad"]["action"]) == ("accept", "abstain")
    assert [(m.role, m.content) for m in seen_by(guard)[0].prompt] == [("system", "Be brief."), ("user", "Capital?")]
    assert seen_by(guard)[0].question == "Capital?"


async def test_asynchronous_graphs_are_guarded_too() -> None:
    """The node must not block the loop."""
    graph = chat_graph(model_of(LYON), SemGradNode(guard=guard_of(default=0.9)))
    assert (await graph.ainvoke({"messages": [HumanMessage("?")]}))["messages"][-1].content == REFUSAL


def test_a_text_in_the_state_is_judged_with_its_documents() -> None:
    """The RAG graph of the tutorials keeps question, documents and generation."""
    guard = guard_of(scores={"2 facts": 0.9}, default=0.1)
    state = rag_graph(Facts(), Reader(), SemGradNode(guard=guard, answer_key="generation")).invoke(
        {"question": "How many?"}
    )
    assert state["generation"] == REFUSAL
    (seen,) = seen_by(guard)
    assert (seen.question, len(seen.passages)) == ("How many?", 2)
    assert asked(seen).startswith("Context:")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_retry_answers_from_more_documents(asynchronous: bool) -> None:
    """By the function that the graph's author gives."""
    guard = guard_of(scores={"8 facts": 0.1}, default=0.9, decider=LadderDecider([RetryRetrieval(top_k=8)]))
    facts, model = Facts(), Reader()

    def answer(question: str, documents: list[Document]) -> AIMessage:
        return (RAG | model).invoke({"question": question, "context": shown(documents)})

    graph = rag_graph(facts, model, SemGradNode(guard=guard, answer_key="generation", retriever=facts, answer=answer))
    question = {"question": "How many?"}
    state = await graph.ainvoke(question) if asynchronous else graph.invoke(question)
    assert state["generation"] == "8 facts"
    assert state["semgrad"]["n_attempts"] == 2


def test_a_retry_without_the_function_says_what_to_pass() -> None:
    """The node cannot call the graph's other nodes."""
    guard = guard_of(default=0.9, decider=LadderDecider([RetryRetrieval(top_k=8)]))
    state = rag_graph(Facts(), Reader(), SemGradNode(guard=guard, answer_key="generation", retriever=Facts())).invoke(
        {"question": "?"}
    )
    assert state["generation"] == REFUSAL
    assert "answer=function" in state["semgrad"]["error"]


def test_a_fallback_model_reads_the_same_prompt() -> None:
    """Its answer takes the message's place."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1, decider=LadderDecider([FallbackModel(name="big")]))
    big = Reader(reply="Paris")
    state = chat_graph(model_of(LYON), SemGradNode(guard=guard, fallbacks={"big": big})).invoke(
        {"messages": [HumanMessage("Capital?")]}
    )
    assert [m.content for m in state["messages"]] == ["Capital?", "Paris"]
    assert big.prompts == ["Capital?"]


@pytest.mark.parametrize(
    ("verdict", "text"), [("approve", LYON), ({"type": "edit", "answer": "Paris"}, "Paris"), ("reject", REFUSAL)]
)
def test_a_person_decides_and_nothing_runs_twice(verdict: Any, text: str) -> None:
    """The review node alone is run again."""
    guard = guard_of(default=0.9, decider=LadderDecider([HumanReview(message="Wait.")]))
    graph = chat_graph(model_of(LYON), SemGradNode(guard=guard), InMemorySaver())
    stopped = graph.invoke({"messages": [HumanMessage("Capital?")]}, THREAD)
    assert stopped["messages"][-1].content == "Wait."
    assert stopped["__interrupt__"][0].value["action_requests"][0]["args"]["answer"] == LYON
    state = graph.invoke(Command(resume=verdict), THREAD)
    assert [m.content for m in state["messages"]] == ["Capital?", text]
    assert state["semgrad_held"] is None
    assert len(seen_by(guard)) == 1


def test_without_a_checkpointer_the_queue_takes_the_answer() -> None:
    """An interrupt could not be answered."""
    queue = MemoryQueue()
    guard = guard_of(default=0.9, decider=LadderDecider([HumanReview(message="Wait.")]), queue=queue)
    state = chat_graph(model_of(LYON), SemGradNode(guard=guard)).invoke({"messages": [HumanMessage("?")]})
    assert (state["messages"][-1].content, queue.items[0].answer) == ("Wait.", LYON)
    assert "__interrupt__" not in state


def test_after_a_restart_the_messages_before_are_the_prompt() -> None:
    """The model's call was seen by another process."""
    guard = guard_of(default=0.1)
    builder = StateGraph(Chat)
    builder.add_node("guard", SemGradNode(guard=guard))
    builder.add_edge(START, "guard")
    messages = [HumanMessage("Capital?"), AIMessage("Paris", id="1")]
    assert builder.compile().invoke({"messages": messages})["messages"][-1].content == "Paris"
    assert asked(seen_by(guard)[0]) == "Capital?"


def test_a_text_without_a_known_prompt_is_held_back() -> None:
    """There is nothing that could stand for its prompt."""
    builder = StateGraph(Rag)
    builder.add_node("guard", SemGradNode(guard=guard_of(default=0.1), answer_key="generation"))
    builder.add_edge(START, "guard")
    assert builder.compile().invoke({"generation": "Paris"})["generation"] == REFUSAL


def test_a_state_without_an_answer_is_refused() -> None:
    """The node stands at the wrong place."""

    class Other(TypedDict):
        x: int

    builder = StateGraph(Other)
    builder.add_node("guard", SemGradNode(guard=guard_of()))
    builder.add_edge(START, "guard")
    with pytest.raises(NotGuardableError, match="answer_key='generation'"):
        builder.compile().invoke({"x": 1})


def test_a_request_for_tools_changes_nothing() -> None:
    """It is no answer."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}], id="m")
    assert SemGradNode(guard=guard_of()).invoke({"messages": [HumanMessage("?"), call]}) == {}
