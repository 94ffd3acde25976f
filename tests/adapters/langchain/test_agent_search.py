"""Agents that search again by their own tools when an answer was not good enough."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import BaseModel

from langchain_semgrad import SemGradMiddleware
from langchain_semgrad.agents.search import SEARCH_AGAIN
from semgrad_guard.flow import FallbackModel, HumanReview, RetryRetrieval
from tests.adapters.langchain.agents import THREAD, agent_of, ask, call_of, decider, says, search
from tests.adapters.langchain.chains import LYON
from tests.adapters.langchain.rag import Facts
from tests.fakes import LadderDecider, MemorySink, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

AGAIN = LadderDecider([RetryRetrieval()])
FIRST, SECOND = call_of("search", "c1", query="France"), call_of("search", "c2", query="capital")


def doubting(answer: str = LYON, steps: Any = AGAIN, **parts: Any) -> Guard:
    """Guard that doubts one answer."""
    return guard_of(scores={answer: 0.9}, default=0.1, decider=steps, **parts)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agent_searches_again_and_answers_anew(asynchronous: bool) -> None:
    """It has tools of its own: no retriever is needed, and one question stays one record."""
    sink = MemorySink()
    model, guard = says(FIRST, LYON, SECOND, "Paris"), doubting(sink=sink)
    agent, question = agent_of(model, guard, tools=[search]), {"messages": [HumanMessage("Capital?")]}
    state = await agent.ainvoke(question) if asynchronous else agent.invoke(question)
    assert [type(m) for m in state["messages"]] == [HumanMessage, *[AIMessage, ToolMessage] * 2, AIMessage]
    assert state["messages"][-1].content == "Paris"
    assert (state["semgrad"]["n_attempts"], state["semgrad"]["status"]) == (2, "answered")
    (record,) = sink.records
    assert [a.exchange.answer for a in record.attempts] == [LYON, "Paris"]
    assert [len(a.exchange.passages) for a in record.attempts] == [1, 2]
    assert "semgrad_search" not in state


def test_the_rejected_answer_is_in_no_later_prompt() -> None:
    """The model would repeat it; what it reads is told by the system message, behind the agent's own."""
    model = says(FIRST, LYON, SECOND, "Paris")
    agent = create_agent(model, [search], system_prompt="Be brief.", middleware=[SemGradMiddleware(guard=doubting())])
    ask(agent)
    assert [len(prompt) for prompt in model.prompts] == [2, 4, 4, 6]
    assert [m for prompt in model.prompts for m in prompt if LYON in str(m.content)] == []
    told = [str(prompt[0].content) for prompt in model.prompts]
    assert told == ["Be brief."] * 2 + [f"Be brief.\n\n{SEARCH_AGAIN}"] * 2
    assert not any(m.content == "" and not m.tool_calls for p in model.prompts for m in p if isinstance(m, AIMessage))


def test_the_reworded_question_is_proposed() -> None:
    """The policy may ask for a rewriter."""
    model = says(FIRST, LYON, SECOND, "Paris")
    rewriter = RunnableLambda(lambda _: "seat of government")
    guard = doubting(steps=LadderDecider([RetryRetrieval(rewrite_query=True)]))
    ask(agent_of(model, guard, tools=[search], rewriter=rewriter))
    assert isinstance(model.prompts[2][0], SystemMessage)
    assert model.prompts[2][0].text.endswith("You may ask for: seat of government")


def test_the_budget_bounds_the_searches() -> None:
    """Each search costs a model call or more; the best answer of all is the one that is returned."""
    guard = guard_of(
        scores={"one": 0.5, "two": 0.4, "three": 0.6},
        decider=decider(
            escalate=[{"retry_retrieval": {"attempts": 9}}],
            budget={"attempts": 3},
            otherwise="answer_with_warning",
            messages={"warning": "Doubtful:"},
        ),
    )
    searches = [call_of("search", f"c{n}", query=f"q{n}") for n in range(3)]
    model = says(searches[0], "one", searches[1], "two", searches[2], "three")
    state = ask(agent_of(model, guard, tools=[search]))
    assert len(model.prompts) == 6
    assert state["messages"][-1].content == "Doubtful:\n\ntwo"
    assert state["semgrad"]["rule"] == "budget.attempts"
    assert state["semgrad"]["confidence"] == pytest.approx(0.6)


def test_a_search_that_found_nothing_new_is_not_made_again() -> None:
    """An agent that answers without its tools would be asked until the budget is used up."""
    guard = guard_of(default=0.9, decider=decider(escalate=[{"retry_retrieval": {"attempts": 9}}], otherwise="abstain"))
    model = says(FIRST, LYON)
    state = ask(agent_of(model, guard, tools=[search]))
    assert len(model.prompts) == 3
    assert "found nothing new" in state["semgrad"]["error"]
    assert state["semgrad"]["status"] == "abstained"


def test_the_ladder_goes_on_after_a_search() -> None:
    """The fallback model reads what was found, but is not told to search: it cannot."""
    guard = guard_of(
        scores={"Paris": 0.1}, default=0.9, decider=LadderDecider([RetryRetrieval(), FallbackModel(name="big")])
    )
    big = says("Paris")
    state = ask(agent_of(says(FIRST, LYON, SECOND, "Nice"), guard, tools=[search], fallbacks={"big": big}))
    assert (state["messages"][-1].content, state["semgrad"]["n_attempts"]) == ("Paris", 3)
    assert [type(m) for m in big.prompts[0]] == [HumanMessage, *[AIMessage, ToolMessage] * 2]


def test_a_person_sees_the_best_of_all_attempts() -> None:
    """Also when it is the one before the search."""
    guard = guard_of(
        scores={LYON: 0.5, "Nice": 0.9}, decider=LadderDecider([RetryRetrieval(), HumanReview(message="Wait.")])
    )
    agent = agent_of(says(FIRST, LYON, SECOND, "Nice"), guard, tools=[search], checkpointer=InMemorySaver())
    (interrupt,) = ask(agent, config=THREAD)["__interrupt__"]
    assert interrupt.value["action_requests"][0]["args"]["answer"] == LYON
    assert agent.invoke(Command(resume="approve"), THREAD)["messages"][-1].content == LYON


class _ConsentFrom(HumanInTheLoopMiddleware):
    """Asks for consent from the nth request for tools on."""

    def __init__(self, n: int) -> None:
        super().__init__(interrupt_on={"search": True})
        self._left = n

    def after_model(self, state: Any, runtime: Any) -> Any:
        self._left -= bool(state["messages"][-1].tool_calls)
        return super().after_model(state, runtime) if self._left < 1 else None


def test_a_search_survives_an_interrupt_and_a_restart(tmp_path: Any) -> None:
    """A tool may wait for a person's consent; until then everything is in the checkpoint."""
    guard = guard_of(scores={LYON: 0.4, "Nice": 0.9}, decider=decider(escalate=["retry_retrieval"]))
    consented = Command(resume={"decisions": [{"type": "approve"}]})
    question = {"messages": [HumanMessage("Capital?")]}
    given: list[dict[str, Any]] = []
    for said, model, n in ((question, says(FIRST, LYON, SECOND), 2), (consented, says("Nice"), 1)):
        with sqlite3.connect(tmp_path / "graph.db", check_same_thread=False) as connection:
            agent = create_agent(
                model,
                [search],
                middleware=[SemGradMiddleware(guard=guard), _ConsentFrom(n)],
                checkpointer=SqliteSaver(connection),
            )
            given.append(agent.invoke(said, THREAD))
        connection.close()
    assert given[0]["__interrupt__"]
    assert LYON not in str(given[0]["messages"])
    assert given[1]["semgrad"]["n_attempts"] == 2
    assert given[1]["semgrad"]["confidence"] == pytest.approx(0.6)


def test_a_new_question_begins_afresh() -> None:
    """A search that was broken off is another question's."""
    model = says(FIRST, LYON, SECOND, "Nice", "Paris")
    guard = guard_of(scores={"Paris": 0.1}, default=0.9, decider=AGAIN)
    agent = agent_of(model, guard, tools=[search], checkpointer=InMemorySaver())
    agent.invoke({"messages": [HumanMessage("Capital?")]}, THREAD, interrupt_before=["tools"])
    agent.invoke(None, THREAD, interrupt_before=["tools"])
    assert agent.get_state(THREAD).values["semgrad_search"]
    model.script = [AIMessage("Paris")]
    state = ask(agent, "And now?", THREAD)
    assert state["semgrad"]["n_attempts"] == 1
    assert not any(SEARCH_AGAIN in str(m.content) for m in model.prompts[-1])
    assert agent.get_state(THREAD).values["semgrad_search"] is None


class City(BaseModel):
    """A structured answer."""

    city: str


def test_a_structured_answer_is_searched_for_again() -> None:
    """And an earlier one is given back whole where it is the best."""
    named = {city: f'{{"name": "City", "arguments": {{"city": "{city}"}}}}' for city in ("Lyon", "Nice")}
    for best, worse in (("Lyon", "Nice"), ("Nice", "Lyon")):
        guard = guard_of(
            scores={named[best]: 0.4, named[worse]: 0.6},
            decider=decider(escalate=["retry_retrieval"], otherwise="answer_with_warning", messages={"warning": ""}),
        )
        model = says(FIRST, call_of("City", city="Lyon"), SECOND, call_of("City", "c3", city="Nice"))
        agent = create_agent(
            model, [search], response_format=ToolStrategy(City), middleware=[SemGradMiddleware(guard=guard)]
        )
        state = ask(agent)
        assert state["structured_response"] == City(city=best)
        assert state["semgrad"]["n_attempts"] == 2


def test_nothing_of_a_rejected_answer_is_streamed() -> None:
    """What was rejected is not shown while the agent searches, nor is the empty message in its place."""
    agent = agent_of(says(FIRST, LYON, SECOND, "Paris"), doubting(), tools=[search])
    stream = agent.stream({"messages": [HumanMessage("Capital?")]}, stream_mode="messages")
    texts = [m.content for m, _ in stream if isinstance(m, AIMessage) and m.content]
    assert texts == ["Paris"]


def test_a_retry_with_a_retriever_of_the_guards_does_not_search_by_tools() -> None:
    """The retriever was given for that."""
    model = says(FIRST, LYON, "Paris")
    state = ask(agent_of(model, doubting(), tools=[search], retriever=Facts(k=2)))
    assert state["messages"][-1].content == "Paris"
    assert SEARCH_AGAIN not in model.prompts[2][0].text
    assert "Fact 1." in model.prompts[2][0].text
