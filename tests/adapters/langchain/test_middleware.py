"""The guard in agents made by `create_agent`."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import BaseModel, ValidationError

from langchain_semgrad import SemGradMiddleware
from semgrad_guard.errors import LowConfidenceError, OptionError
from semgrad_guard.flow import FallbackModel, HumanReview, RetryRetrieval
from tests.adapters.langchain.agents import THREAD, agent_of, ask, call_of, says, search
from tests.adapters.langchain.chains import LYON, REFUSAL, seen_by
from tests.adapters.langchain.rag import Facts
from tests.fakes import LadderDecider, MemoryQueue, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

REVIEW = LadderDecider([HumanReview(message="Wait for a person.")])


# --- judging ----------------------------------------------------------------------------------------------------------


def test_a_good_final_answer_passes_with_its_findings(guard: Guard) -> None:
    """The state tells the caller how sure the answer is."""
    state = ask(agent_of(says("Paris"), guard))
    assert state["messages"][-1].content == "Paris"
    assert state["semgrad"]["status"] == "answered"
    assert state["messages"][-1].response_metadata["semgrad"] == state["semgrad"]


def test_a_doubtful_final_answer_is_replaced(guard: Guard) -> None:
    """Its words are nowhere in the state."""
    state = ask(agent_of(says(LYON), guard))
    assert state["messages"][-1].content == REFUSAL
    assert state["semgrad"]["withheld"] is True
    assert "Lyon" not in str(state)


def test_only_final_answers_are_judged_with_what_the_tools_found(guard: Guard) -> None:
    """A request for tools is no answer; the tool's documents are the passages."""
    agent = create_agent(
        says(call_of("search", query="capital"), "Paris"),
        [search],
        system_prompt="Be brief.",
        middleware=[SemGradMiddleware(guard=guard)],
    )
    ask(agent)
    (seen,) = seen_by(guard)
    assert [m.role for m in seen.prompt] == ["system", "user", "assistant", "tool"]
    assert (seen.answer, seen.question) == ("Paris", "Capital?")
    assert [(p.text, p.source) for p in seen.passages] == [("Paris is the capital.", "atlas")]


def test_texts_of_tools_count_beside_documents_of_others(guard: Guard) -> None:
    """Either may hold the answer; a text has the tool's name as its source."""

    @tool
    def calendar(day: str) -> str:
        """Look a day up."""
        return f"{day} is a holiday."

    calls = [call_of("search", "c1", query="capital"), call_of("calendar", "c2", day="Monday")]
    for called, tools in ((calls, [search, calendar]), (calls[1:], [calendar])):
        ask(create_agent(says(*called, "Paris"), tools, middleware=[SemGradMiddleware(guard=guard)]))
    both, text = seen_by(guard)
    assert [(p.text, p.source) for p in both.passages] == [
        ("Paris is the capital.", "atlas"),
        ("Monday is a holiday.", "calendar"),
    ]
    assert [(p.text, p.source) for p in text.passages] == [("Monday is a holiday.", "calendar")]


def test_the_prompt_is_what_the_model_really_read(guard: Guard) -> None:
    """Middleware below may change the request."""

    class Shout(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(messages=[HumanMessage("CAPITAL!")]))

    agent = create_agent(says("Paris"), [], middleware=[SemGradMiddleware(guard=guard), Shout()])
    ask(agent)
    assert seen_by(guard)[0].prompt[-1].content == "CAPITAL!"


async def test_asynchronous_agents_are_guarded_too(guard: Guard) -> None:
    """LangChain calls other hooks there."""
    state = await agent_of(says(LYON), guard).ainvoke({"messages": [HumanMessage("?")]})
    assert state["messages"][-1].content == REFUSAL


class City(BaseModel):
    """A structured answer."""

    city: str


def test_a_structured_answer_is_judged_by_its_text(guard: Guard) -> None:
    """It is final although it is written as the call of a tool."""
    guard = guard_of(scores={'{"name": "City", "arguments": {"city": "Lyon"}}': 0.9}, default=0.1)
    for city, given in (("Paris", City(city="Paris")), ("Lyon", None)):
        agent = create_agent(
            says(call_of("City", city=city)),
            [],
            response_format=ToolStrategy(City),
            middleware=[SemGradMiddleware(guard=guard)],
        )
        state = ask(agent)
        assert state.get("structured_response") == given
    assert [m.content for m in state["messages"]] == ["Capital?", REFUSAL]


# --- other models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_fallback_model_answers_instead(asynchronous: bool) -> None:
    """The policy names it; the agent's tools and middleware stay."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1, decider=LadderDecider([FallbackModel(name="big")]))
    big = says("Paris")
    agent = agent_of(says(LYON), guard, fallbacks={"big": big})
    question = {"messages": [HumanMessage("Capital?")]}
    state = await agent.ainvoke(question) if asynchronous else agent.invoke(question)
    assert [m.content for m in state["messages"]] == ["Capital?", "Paris"]
    assert state["semgrad"]["n_attempts"] == 2
    assert big.prompts[0][-1].content == "Capital?"


def test_a_fallback_that_asks_for_tools_is_a_failed_step() -> None:
    """It did not answer."""
    guard = guard_of(default=0.9, decider=LadderDecider([FallbackModel(name="big")]))
    state = ask(agent_of(says(LYON), guard, fallbacks={"big": says(call_of("search", query="x"))}, tools=[search]))
    assert state["messages"][-1].content == REFUSAL
    assert "asked for tools" in state["semgrad"]["error"]


def test_raising_composes_with_langchains_fallback_middleware() -> None:
    """People may have it already; it must be listed first."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1)
    middleware = [ModelFallbackMiddleware(says("Paris")), SemGradMiddleware(guard=guard, on_withheld="raise")]
    state = ask(create_agent(says(LYON), [], middleware=middleware))
    assert state["messages"][-1].content == "Paris"


def test_raising_in_the_wrong_order_escapes() -> None:
    """The order matters, as the documentation says."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1)
    middleware = [SemGradMiddleware(guard=guard, on_withheld="raise"), ModelFallbackMiddleware(says("Paris"))]
    with pytest.raises(LowConfidenceError):
        ask(create_agent(says(LYON), [], middleware=middleware))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_retry_shows_the_model_more_passages(asynchronous: bool) -> None:
    """The bad answer is not in the new prompt."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1, decider=LadderDecider([RetryRetrieval(top_k=3)]))
    model = says(LYON, "Paris")
    agent = agent_of(model, guard, retriever=Facts(k=1), stream="annotate")
    question = {"messages": [HumanMessage("Capital?")]}
    state = await agent.ainvoke(question) if asynchronous else agent.invoke(question)
    assert [m.content for m in state["messages"]] == ["Capital?", "Paris"]
    again = model.prompts[1]
    assert "[3] Fact 2." in again[0].text
    assert not any(LYON in m.text for m in again)
    assert [p.text for p in seen_by(guard)[1].passages] == ["Fact 0.", "Fact 1.", "Fact 2."]


def test_a_retry_without_retriever_and_tools_says_what_to_pass() -> None:
    """Silence would look like a retry that did not help."""
    guard = guard_of(default=0.9, decider=LadderDecider([RetryRetrieval(top_k=3)]))
    state = ask(agent_of(says(LYON), guard))
    assert "SemGradMiddleware(retriever=retriever)" in state["semgrad"]["error"]


# --- a person ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "text", "status"),
    [
        ({"type": "approve"}, LYON, "reviewed"),
        ("approve", LYON, "reviewed"),
        ({"type": "edit", "answer": "Paris"}, "Paris", "reviewed"),
        ({"type": "reject", "message": "no"}, REFUSAL, "abstained"),
        ({"decisions": [{"type": "approve"}]}, LYON, "reviewed"),
        (
            {"decisions": [{"type": "edit", "edited_action": {"name": "semgrad_answer", "args": {"answer": "Paris"}}}]},
            "Paris",
            "reviewed",
        ),
        ({"decisions": [{"type": "respond", "message": "Paris"}]}, "Paris", "reviewed"),
    ],
    ids=str,
)
def test_a_person_decides_and_the_model_is_not_called_again(verdict: Any, text: str, status: str) -> None:
    """The graph stops before anything reaches the user, and goes on from there."""
    model, guard = says(LYON), guard_of(default=0.9, decider=REVIEW)
    agent = agent_of(model, guard, checkpointer=InMemorySaver())
    stopped = ask(agent, config=THREAD)
    (interrupt,) = stopped["__interrupt__"]
    assert stopped["messages"][-1].content == "Wait for a person."
    assert interrupt.value["action_requests"][0]["args"]["answer"] == LYON
    assert interrupt.value["action_requests"][0]["args"]["confidence"] == pytest.approx(0.1)
    state = agent.invoke(Command(resume=verdict), THREAD)
    assert [m.content for m in state["messages"]] == ["Capital?", text]
    assert state["semgrad"]["status"] == state["messages"][-1].response_metadata["semgrad"]["status"] == status
    assert (len(model.prompts), len(seen_by(guard))) == (1, 1)


async def test_a_person_decides_in_asynchronous_agents() -> None:
    """The twin of the above."""
    agent = agent_of(says(LYON), guard_of(default=0.9, decider=REVIEW), checkpointer=InMemorySaver())
    await agent.ainvoke({"messages": [HumanMessage("?")]}, THREAD)
    state = await agent.ainvoke(Command(resume={"type": "edit", "answer": "Paris"}), THREAD)
    assert state["messages"][-1].content == "Paris"


def test_a_verdict_after_a_restart_is_carried_out(tmp_path: Any) -> None:
    """People take hours; the process may not live as long."""
    guard = guard_of(default=0.9, decider=REVIEW)
    for verdict in (None, Command(resume="approve")):
        with sqlite3.connect(tmp_path / "graph.db", check_same_thread=False) as connection:
            agent = agent_of(says(LYON), guard, checkpointer=SqliteSaver(connection))
            state = agent.invoke(verdict, THREAD) if verdict else ask(agent, config=THREAD)
        connection.close()
    assert state["messages"][-1].content == LYON


def test_a_resume_that_is_no_verdict_leaves_the_question_open() -> None:
    """A typo of a reviewer must neither let the answer out nor lose it."""
    agent = agent_of(says(LYON), guard_of(default=0.9, decider=REVIEW), checkpointer=InMemorySaver())
    ask(agent, config=THREAD)
    for nonsense in ({"type": "maybe"}, {"type": "edit"}, 7):
        with pytest.raises(ValidationError):
            agent.invoke(Command(resume=nonsense), THREAD)
    assert agent.invoke(Command(resume="approve"), THREAD)["messages"][-1].content == LYON


def test_a_new_question_instead_of_a_verdict_is_answered_by_itself() -> None:
    """An answer that still waits must not stop later ones."""
    guard = guard_of(scores={LYON: 0.9}, default=0.1, decider=REVIEW)
    model = says(LYON, call_of("search", query="x"), "Paris")
    agent = agent_of(model, guard, tools=[search], checkpointer=InMemorySaver(), stream="annotate")
    ask(agent, config=THREAD)
    state = ask(agent, "And now?", config=THREAD)
    assert "__interrupt__" not in state
    assert state["messages"][-1].content == "Paris"


def test_without_a_checkpointer_the_queue_takes_the_answer() -> None:
    """An interrupt would hand out the unreviewed answer there."""
    queue = MemoryQueue()
    state = ask(agent_of(says(LYON), guard_of(default=0.9, decider=REVIEW, queue=queue)))
    assert state["messages"][-1].content == "Wait for a person."
    assert (state["semgrad"]["review_id"], queue.items[0].answer) == ("item-1", LYON)
    assert "__interrupt__" not in state


@pytest.mark.parametrize("review", ["interrupt", "both"])
def test_an_interrupt_that_is_wanted_without_a_checkpointer_holds_the_answer_back(review: Any) -> None:
    """Nothing could go on afterwards; the error says how to compile the graph."""
    queue = MemoryQueue()
    state = ask(agent_of(says(LYON), guard_of(default=0.9, decider=REVIEW, queue=queue), review=review), config=THREAD)
    assert state["messages"][-1].content == REFUSAL
    assert "checkpointer=" in state["semgrad"]["error"]
    assert "Lyon" not in str(state)
    assert queue.items == []


def test_both_ways_of_asking_a_person() -> None:
    """The queue shows it to reviewers, and the thread to resume."""
    queue = MemoryQueue()
    agent = agent_of(
        says(LYON), guard_of(default=0.9, decider=REVIEW, queue=queue), review="both", checkpointer=InMemorySaver()
    )
    (interrupt,) = ask(agent, config=THREAD)["__interrupt__"]
    assert interrupt.value["action_requests"][0]["args"]["review_id"] == "item-1"
    assert queue.items[0].metadata["thread_id"] == "t1"


def test_the_queue_alone_with_a_checkpointer() -> None:
    """Agents that remember need not stop."""
    queue = MemoryQueue()
    guard = guard_of(default=0.9, decider=REVIEW, queue=queue)
    state = ask(agent_of(says(LYON), guard, review="queue", checkpointer=InMemorySaver()), config=THREAD)
    assert state["messages"][-1].content == "Wait for a person."
    assert "__interrupt__" not in state


# --- streams ----------------------------------------------------------------------------------------------------------


def shown(agent: Any) -> list[str]:
    """Texts of the message stream."""
    stream = agent.stream({"messages": [HumanMessage("Capital?")]}, stream_mode="messages")
    return [m.content for m, _ in stream if not isinstance(m, HumanMessage | ToolMessage) and m.content]


def test_tokens_of_a_withheld_answer_stay_out_of_the_message_stream(guard: Guard) -> None:
    """They cannot be taken back."""
    assert shown(agent_of(says(LYON), guard)) == [REFUSAL]


def test_tokens_of_a_failed_fallback_stay_out_too() -> None:
    """Only what is given is shown."""
    guard = guard_of(default=0.9, decider=LadderDecider([FallbackModel(name="big")]))
    assert shown(agent_of(says(LYON), guard, fallbacks={"big": says("wrong Nice")})) == [REFUSAL]


def test_annotating_lets_tokens_pass(guard: Guard) -> None:
    """Chosen by people who prefer speed."""
    assert "".join(shown(agent_of(says("Paris"), guard, stream="annotate"))).startswith("Paris")


async def test_event_streams_show_every_token(guard: Guard) -> None:
    """A limit that the documentation states: buffer on the caller's side there."""
    events = agent_of(says(LYON), guard).astream_events({"messages": [HumanMessage("?")]}, version="v2")
    tokens = [e["data"]["chunk"].content async for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(tokens) == LYON


def test_an_unknown_option_is_refused() -> None:
    """At build time."""
    with pytest.raises(OptionError, match="review"):
        SemGradMiddleware(guard=guard_of(), review="phone")
