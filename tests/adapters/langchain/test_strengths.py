"""The three strengths in chains, graphs and agents: measuring changes nothing, holding back fails closed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import (
    CommaSeparatedListOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
    StrOutputParser,
)
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_semgrad import (
    SemGradCallbackHandler,
    SemGradGraphState,
    SemGradGuard,
    SemGradMiddleware,
    SemGradNode,
    SemGradOutputParser,
)
from semgrad_guard.errors import LowConfidenceError, NotGuardableError, OptionError
from semgrad_guard.flow import AnswerWithWarning, FallbackModel
from tests.adapters.langchain.chains import PROMPT, model_of
from tests.fakes import LadderDecider, ProfileScorer, TableScorer, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUESTION: Any = {"question": "Capital?"}
CITY = '{"city": "Paris"}'
REFUSAL = "I am not sure enough to answer that."
WAYS = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"]
SCORERS: dict[str, Callable[[], TableScorer]] = {
    "fits": ProfileScorer,
    "no profile": TableScorer,
    "fails": lambda: TableScorer(dict.fromkeys(("Paris", CITY), RuntimeError("no weights"))),
}
"""What may become of scoring: a confidence, none, or an error."""


class City(BaseModel):
    """An object that holds no text under a usual key."""

    city: str


@dataclass
class Town:
    """The same as a dataclass."""

    city: str


OBJECTS: dict[str, Any] = {
    "pydantic": PydanticOutputParser(pydantic_object=City),
    "dataclass": RunnableLambda(lambda message: Town(**json.loads(message.text))),
    "number": RunnableLambda(lambda message: len(message.text)),
    "list": CommaSeparatedListOutputParser(),
    "mapping": JsonOutputParser(),
    "nothing": RunnableLambda(lambda _: None),
}
"""What a chain may make of its model's text that is no text."""


async def given_by(chain: Any, how: str) -> list[Any]:
    """Everything that a chain gives when it is called in one way."""
    if how in {"batch", "abatch"}:
        return chain.batch([QUESTION]) if how == "batch" else await chain.abatch([QUESTION])
    if how == "stream":
        return list(chain.stream(QUESTION))
    if how == "astream":
        return [chunk async for chunk in chain.astream(QUESTION)]
    return [chain.invoke(QUESTION) if how == "invoke" else await chain.ainvoke(QUESTION)]


# --- measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("scorer", SCORERS)
async def test_measuring_gives_every_answer_to_the_letter(how: str, scorer: str) -> None:
    """Neither a low confidence nor a failure may show anywhere but in the findings."""
    guard = SemGradGuard(scorer=SCORERS[scorer]())
    for chain in (PROMPT | model_of("Paris") | guard, guard.wrap(PROMPT | model_of("Paris"))):
        first, *rest = await given_by(chain, how)
        whole = sum(rest, first)
        found = whole.response_metadata["semgrad"]
        assert whole.content == "Paris"
        assert (found["confidence"] is not None) is (scorer == "fits")
        assert found["withheld"] is False
        assert found["warning"] is None
        assert (found["error"] == "RuntimeError: no weights") is (scorer == "fails")
        assert found["why"]


@pytest.mark.parametrize("parser", OBJECTS)
@pytest.mark.parametrize("scorer", SCORERS)
def test_measuring_gives_objects_as_they_are(parser: str, scorer: str) -> None:
    """No failure, no lack of a confidence may cost the caller an object; in a mapping the findings stand beside it."""
    chain = PROMPT | model_of(CITY) | OBJECTS[parser]
    value = chain.invoke(QUESTION)
    given = (chain | SemGradGuard(scorer=SCORERS[scorer]())).invoke(QUESTION)
    assert given == value
    result = (chain | SemGradGuard(scorer=SCORERS[scorer](), output="result")).invoke(QUESTION)
    assert (result.confidence is not None) is (scorer == "fits")


def test_measuring_lets_every_token_pass() -> None:
    """A reader must not wait for a score that changes nothing."""
    chain = PROMPT | model_of("Paris") | SemGradGuard(scorer=TableScorer())
    *pieces, last = chain.stream(QUESTION)
    assert [piece.content for piece in pieces if piece.content] == list("Paris")
    assert last.response_metadata["semgrad"]["confidence"] is None


@pytest.mark.parametrize("accept", [None, 0.1])
@pytest.mark.parametrize("answer", ['{"answer": "Paris", "sure": true}', CITY])
def test_a_streamed_mapping_is_the_one_that_the_model_wrote(answer: str, accept: float | None) -> None:
    """Parsers of JSON give the whole so far, again and again: added up, it would be another answer."""
    scorer = ProfileScorer()
    *_, last = (PROMPT | model_of(answer) | JsonOutputParser() | SemGradGuard(accept=accept, scorer=scorer)).stream(
        QUESTION
    )
    assert {key: value for key, value in last.items() if key != "semgrad"} == json.loads(answer)
    assert [exchange.answer for exchange in scorer.seen] == ["Paris" if "answer" in last else CITY]


@pytest.mark.parametrize("accept", [None, 0.7])
def test_no_file_appears_and_nobody_is_promised(
    accept: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes a policy which names a queue."""
    monkeypatch.chdir(tmp_path)
    value = (PROMPT | model_of("Paris") | SemGradGuard(accept=accept, scorer=TableScorer())).invoke(QUESTION)
    assert value.content == ("Paris" if accept is None else REFUSAL)
    assert list(tmp_path.iterdir()) == []


# --- holding back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("scorer", ["no profile", "fails"])
async def test_holding_back_fails_closed(how: str, scorer: str) -> None:
    """What was not judged is no answer, however the chain is called."""
    guard = SemGradGuard(accept=0.1, scorer=SCORERS[scorer]())
    for chain in (PROMPT | model_of("Paris") | guard, guard.wrap(PROMPT | model_of("Paris"))):
        first, *rest = await given_by(chain, how)
        assert sum(rest, first).content == REFUSAL


def test_holding_back_compares_with_the_threshold() -> None:
    """The number in the constructor is the one that counts."""
    chain = PROMPT | model_of("Paris")
    confidence = (chain | SemGradGuard(scorer=ProfileScorer(), output="result")).invoke(QUESTION).confidence
    given = [
        (chain | SemGradGuard(accept=confidence + step, scorer=ProfileScorer())).invoke(QUESTION).content
        for step in (-0.01, 0.01)
    ]
    assert given == ["Paris", REFUSAL]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("parser", OBJECTS)
async def test_an_object_without_text_that_must_be_held_back_raises(how: str, parser: str) -> None:
    """There is no place in it for a message, and it must not pass: at the end of a chain and around one."""
    guard = SemGradGuard(accept=0.9, scorer=TableScorer())
    chain = PROMPT | model_of(CITY) | OBJECTS[parser]
    for guarded in (chain | guard, guard.wrap(chain)):
        with pytest.raises(LowConfidenceError) as raised:
            await given_by(guarded, how)
        assert "Paris" not in str(raised.value)


def test_an_object_is_not_given_in_the_place_of_a_fallbacks_text() -> None:
    """The fallback's text was accepted, the object was not; it was made of the chain's own answer."""
    guard = guard_of(scores={CITY: 0.9, '{"city": "Rome"}': 0.1}, decider=LadderDecider([FallbackModel(name="big")]))
    chain = PROMPT | model_of(CITY) | OBJECTS["pydantic"]
    guarded = SemGradGuard(guard=guard).wrap(chain, fallbacks={"big": model_of('{"city": "Rome"}')})
    with pytest.raises(LowConfidenceError) as raised:
        guarded.invoke(QUESTION)
    assert raised.value.outcome is not None
    assert "guard the chain before its parser" in raised.value.outcome.record.failures[0].message


# --- warnings ---------------------------------------------------------------------------------------------------------

CAREFUL = guard_of(default=0.9, decider=LadderDecider(otherwise=AnswerWithWarning(warning="Careful:")))
"""A guard that warns of every answer."""


@pytest.mark.parametrize(
    ("answer", "then", "expected"),
    [
        ("Paris", None, "Careful:\n\nParis"),
        ("Paris", StrOutputParser(), "Careful:\n\nParis"),
        (CITY, None, CITY),
        (CITY, StrOutputParser(), CITY),
        (f"```json\n{CITY}\n```", StrOutputParser(), f"```json\n{CITY}\n```"),
    ],
)
def test_a_warning_is_put_before_prose_only(answer: str, then: Any, expected: str) -> None:
    """A text that a parser reads next must stay readable; its findings say what is the matter."""
    chain = PROMPT | model_of(answer) | then if then else PROMPT | model_of(answer)
    result = (chain | SemGradGuard(guard=CAREFUL, output="result")).invoke(QUESTION)
    assert getattr(result.value, "content", result.value) == expected
    assert result.status == "warned"


@pytest.mark.parametrize("parser", ["pydantic", "dataclass", "list", "mapping", "number"])
def test_a_warning_never_enters_an_object(parser: str) -> None:
    """It stays what the parser made of the answer."""
    chain = PROMPT | model_of(CITY) | OBJECTS[parser]
    assert (chain | SemGradGuard(guard=CAREFUL)).invoke(QUESTION) == chain.invoke(QUESTION)


def test_a_warning_never_enters_a_field_of_a_mapping() -> None:
    """Programs read fields; a message in a mapping is read by people."""
    text = {"answer": PROMPT | model_of("Paris") | StrOutputParser()} | SemGradGuard(guard=CAREFUL)
    given = text.invoke(QUESTION)
    assert given["answer"] == "Paris"
    assert (given["semgrad"]["status"], given["semgrad"]["warning"]) == ("warned", "Careful:")
    message = {"answer": PROMPT | model_of("Paris")} | SemGradGuard(guard=CAREFUL)
    assert message.invoke(QUESTION)["answer"].content == "Careful:\n\nParis"


def test_a_doubtful_structured_answer_of_an_agent_stays_whole() -> None:
    """A warning in the text would cost the caller the object that was made beside it."""
    call = {"name": "City", "args": {"city": "Paris"}, "id": "call-1"}
    model = _ToolModel(messages=iter([AIMessage("Here it is.", tool_calls=[call])]))
    agent = create_agent(model, [], middleware=[SemGradMiddleware(guard=CAREFUL)], response_format=ToolStrategy(City))
    state = agent.invoke({"messages": [HumanMessage("Capital?")]})
    assert state["structured_response"] == City(city="Paris")
    assert (state["semgrad"]["status"], state["semgrad"]["warning"]) == ("warned", "Careful:")


class _ToolModel(GenericFakeChatModel):
    def bind_tools(self, *_: Any, **__: Any) -> Any:
        """Know all tools already."""
        return self


# --- the other entry points -------------------------------------------------------------------------------------------


class State(SemGradGraphState, total=False):
    """State of a graph with an answer of any kind."""

    question: str
    answer: Any


def graph_of(node: SemGradNode, make: Callable[[AIMessage], Any]) -> Any:
    """Model, then guard."""
    builder = StateGraph(State)
    builder.add_node("model", lambda state: {"answer": make((PROMPT | model_of(CITY)).invoke(state))})
    builder.add_node("guard", node)
    builder.add_edge(START, "model")
    builder.add_edge("model", "guard")
    builder.add_edge("guard", END)
    return builder.compile()


def test_a_graphs_answer_is_measured_held_back_or_raised() -> None:
    """The text of a field gets the refusal; an object cannot, and must not stay."""

    def given(node: SemGradNode, make: Callable[[AIMessage], Any] = lambda message: message.text) -> dict[str, Any]:
        state: dict[str, Any] = graph_of(node, make).invoke(QUESTION)
        return state

    measuring = SemGradNode(answer_key="answer", scorer=TableScorer())
    holding = SemGradNode(answer_key="answer", accept=0.9, scorer=TableScorer())
    warning = SemGradNode(answer_key="answer", guard=CAREFUL)
    assert given(measuring)["answer"] == CITY
    assert given(measuring)["semgrad"]["status"] == "warned"
    assert given(holding)["answer"] == REFUSAL
    assert given(warning, lambda _: "Paris")["answer"] == "Paris"
    for node in (measuring, warning):
        assert given(node, lambda message: City(**json.loads(message.text)))["answer"] == City(city="Paris")
    for make in (lambda message: City(**json.loads(message.text)), lambda message: json.loads(message.text), len):
        with pytest.raises(LowConfidenceError):
            given(holding, make if make is not len else lambda message: len(message.text))


def test_a_graph_without_an_answer_is_a_finding_while_it_is_measured() -> None:
    """Measuring breaks nothing; any other guard says what is wired wrongly."""

    class Empty(TypedDict):
        question: str

    def ended(node: SemGradNode) -> dict[str, Any]:
        builder = StateGraph(State)
        builder.add_node("guard", node)
        builder.add_edge(START, "guard")
        state: dict[str, Any] = builder.compile().invoke(QUESTION)
        return state

    assert (
        "holds no answer under 'answer'"
        in ended(SemGradNode(answer_key="answer", scorer=TableScorer()))["semgrad"]["error"]
    )
    with pytest.raises(NotGuardableError):
        ended(SemGradNode(answer_key="answer", accept=0.7, scorer=TableScorer()))


def test_an_agents_answer_is_measured_or_held_back() -> None:
    """Its last message is the answer; the tokens of a measured one pass as they come."""

    def ended(**options: Any) -> tuple[str, bool]:
        model = GenericFakeChatModel(messages=iter([AIMessage("Paris is it.")]))
        agent = create_agent(model, [], middleware=[SemGradMiddleware(scorer=TableScorer(), **options)])
        asked = {"messages": [HumanMessage("Capital?")]}
        seen = [piece for piece, _ in agent.stream(asked, stream_mode="messages") if piece.content]
        model = GenericFakeChatModel(messages=iter([AIMessage("Paris is it.")]))
        agent = create_agent(model, [], middleware=[SemGradMiddleware(scorer=TableScorer(), **options)])
        return agent.invoke(asked)["messages"][-1].content, len(seen) > 1

    assert ended() == ("Paris is it.", True)
    assert ended(accept=0.9) == (REFUSAL, False)


def test_a_parser_and_an_observer_take_the_same_options() -> None:
    """`accept=` means the same wherever a guard is made."""
    chain = PROMPT | model_of(CITY)
    assert (chain | SemGradOutputParser(City, scorer=TableScorer())).invoke(QUESTION) == City(city="Paris")
    with pytest.raises(LowConfidenceError):
        (chain | SemGradOutputParser(City, accept=0.9, scorer=TableScorer())).invoke(QUESTION)
    rules = []
    for accept in (None, 0.9):
        handler = SemGradCallbackHandler(accept=accept, scorer=TableScorer(), background=False)
        chain.invoke(QUESTION, {"callbacks": [handler]})
        rules.append(handler.records[0].attempts[0].decision.action)
    assert rules == ["answer_with_warning", "abstain"]


@pytest.mark.parametrize(
    "make", [SemGradGuard, SemGradMiddleware, SemGradNode, SemGradCallbackHandler, SemGradOutputParser]
)
def test_a_threshold_beside_a_policy_or_a_guard_is_refused(make: Callable[..., object]) -> None:
    """One of the two would be ignored in silence."""
    for other in ({"policy": {"accept": 0.5}}, {"guard": guard_of()}):
        with pytest.raises(OptionError, match="one of them"):
            make(accept=0.7, **other)
