"""No text of a withheld answer leaves by the error of a foreign part that repeats it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langgraph.graph import END, START, MessagesState, StateGraph
from typing_extensions import override

from langchain_semgrad import GuardedAnswer, SemGradGraphState, SemGradGuard, SemGradNode, SemGradOutputParser
from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.flow import HumanReview
from tests.adapters.langchain.agents import agent_of, ask, decider, says
from tests.adapters.langchain.chains import LYON, PROMPT, model_of
from tests.fakes import LadderDecider, MemoryQueue, guard_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Decision, Exchange, ReviewId
    from semgrad_guard.guard import Guard

QUESTION: Any = {"question": "?"}
SCORES: dict[str, float | Exception] = {"scorer": RuntimeError(f"bad input: {LYON}"), "queue": 0.9}
"""What the scorer does with the answer, by the part that fails."""
TYPES = {"RuntimeError", "QueueUnavailableError"}
"""What is left of the error: of the scorer's, and of the queue's."""
DECIDERS: dict[str, Any] = {
    "fake": LadderDecider([HumanReview(message="Wait for a person.")]),
    "file": decider(escalate=["human_review"]),
}
WAYS = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"]


@dataclass
class LeakyQueue(MemoryQueue):
    """A review queue that takes nothing and prints what it was given."""

    handed: list[str] = field(default_factory=list)

    @override
    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[object] = ()) -> ReviewId:
        self.handed.append(exchange.answer)
        msg = f"could not store {exchange.answer!r}"
        raise RuntimeError(msg)


@pytest.fixture(name="leaky", params=["scorer fake", "scorer file", "queue fake", "queue file"])
def _leaky(request: pytest.FixtureRequest) -> Guard:
    """Guard that holds everything back because a part of it fails with an error that repeats the answer."""
    part, policy = request.param.split()
    return guard_of(scores={LYON: SCORES[part]}, decider=DECIDERS[policy], queue=LeakyQueue())


async def given_by(chain: Any, how: str) -> list[Any]:
    """Everything that a chain gives when it is called in one way."""
    if how == "astream":
        return [chunk async for chunk in chain.astream(QUESTION)]
    if how == "stream":
        return list(chain.stream(QUESTION))
    many = how.endswith("batch")
    called = getattr(chain, how)([QUESTION] if many else QUESTION)
    given = await called if how.startswith("a") else called
    return given if many else [given]


@pytest.mark.parametrize("how", WAYS)
async def test_a_guard_in_a_chain_gives_none_of_it(leaky: Guard, how: str) -> None:
    """The finding says what failed, and not of which text."""
    (given,) = await given_by(PROMPT | model_of(LYON) | SemGradGuard(guard=leaky), how)
    found = given.response_metadata["semgrad"]
    assert found["withheld"] is True
    assert found["error"] in TYPES
    assert "Lyon" not in repr(given)


@pytest.mark.parametrize("how", WAYS)
async def test_a_guard_around_a_chain_gives_none_of_it(leaky: Guard, how: str) -> None:
    """Form (b) finds its own outcome."""
    (given,) = await given_by(SemGradGuard(guard=leaky).wrap(PROMPT | model_of(LYON)), how)
    assert given.response_metadata["semgrad"]["error"] in TYPES
    assert "Lyon" not in repr(given)


def test_a_mapping_gives_none_of_it(leaky: Guard) -> None:
    """There the findings are beside the answer."""
    chain = PROMPT | model_of(LYON) | StrOutputParser() | (lambda text: {"answer": text}) | SemGradGuard(guard=leaky)
    given = chain.invoke(QUESTION)
    assert given["semgrad"]["error"] in TYPES
    assert "Lyon" not in repr(given)


def test_the_full_result_explains_its_decision_without_it(leaky: Guard) -> None:
    """Its outcome is the whole truth for whoever debugs; what it shows is not."""
    given = (PROMPT | model_of(LYON) | SemGradGuard(guard=leaky, output="result")).invoke(QUESTION)
    assert isinstance(given, GuardedAnswer)
    assert "Lyon" not in repr((given.text, given.value, given.decision))
    assert given.decision.rule == given.outcome.decision.rule
    assert "Lyon" in given.outcome.decision.why


@pytest.mark.parametrize("how", WAYS)
async def test_an_exception_in_its_place_has_none_of_it(leaky: Guard, how: str) -> None:
    """Its text is printed, traced and shown to users by many an application."""
    chain = PROMPT | model_of(LYON) | SemGradGuard(guard=leaky, on_withheld="raise")
    with pytest.raises(LowConfidenceError) as raised:
        await given_by(chain, how)
    assert "Lyon" not in f"{raised.value} {raised.value.decision}"
    assert raised.value.outcome is not None


@pytest.mark.parametrize("how", ["stream", "astream"])
async def test_an_annotated_stream_ends_without_it(leaky: Guard, how: str) -> None:
    """The text has passed, but the last chunk is often the only one that is logged."""
    chain = PROMPT | model_of(LYON) | SemGradGuard(guard=leaky, stream="annotate")
    last = (await given_by(chain, how))[-1]
    assert last.response_metadata["semgrad"]["error"] in TYPES
    assert "Lyon" not in repr(last)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agent_has_none_of_it_in_its_state(leaky: Guard, asynchronous: bool) -> None:
    """Its state is stored and shown."""
    agent = agent_of(says(LYON), leaky, review="queue")
    state = await agent.ainvoke({"messages": [HumanMessage("?")]}) if asynchronous else ask(agent)
    assert state["semgrad"]["withheld"] is True
    assert state["semgrad"]["error"] in TYPES
    assert "Lyon" not in repr(state)


def test_an_agent_that_raises_says_none_of_it(leaky: Guard) -> None:
    """A fallback middleware logs what it caught."""
    with pytest.raises(LowConfidenceError) as raised:
        ask(agent_of(says(LYON), leaky, review="queue", on_withheld="raise"))
    assert "Lyon" not in f"{raised.value} {raised.value.decision}"


class Chat(MessagesState, SemGradGraphState):
    """State of a chat graph."""


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_graph_has_none_of_it_in_its_state(leaky: Guard, asynchronous: bool) -> None:
    """Edges read the findings, and a checkpointer keeps them."""
    model = model_of(LYON)
    builder = StateGraph(Chat)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("guard", SemGradNode(guard=leaky, review="queue"))
    builder.add_edge(START, "model")
    builder.add_edge("model", "guard")
    builder.add_edge("guard", END)
    graph, asked = builder.compile(), {"messages": [HumanMessage("?")]}
    state = await graph.ainvoke(asked) if asynchronous else graph.invoke(asked)
    assert state["semgrad"]["withheld"] is True
    assert state["semgrad"]["error"] in TYPES
    assert "Lyon" not in repr(state)


@pytest.mark.parametrize("how", WAYS)
async def test_a_parser_raises_without_it(leaky: Guard, how: str) -> None:
    """There is no other place for a withheld answer than the exception."""
    chain = PROMPT | model_of(LYON) | SemGradOutputParser(parser=JsonOutputParser(), guard=leaky)
    with pytest.raises(LowConfidenceError) as raised:
        await given_by(chain, how)
    assert "Lyon" not in f"{raised.value} {raised.value.decision}"


def test_an_answer_that_is_given_keeps_the_whole_error() -> None:
    """The caller reads the answer anyway, and needs to know what went wrong."""
    guard = guard_of(scores={LYON: SCORES["scorer"]}, decider=decider(on_error="answer_with_warning"))
    given = (PROMPT | model_of(LYON) | SemGradGuard(guard=guard)).invoke(QUESTION)
    assert given.response_metadata["semgrad"]["error"] == f"RuntimeError: bad input: {LYON}"
