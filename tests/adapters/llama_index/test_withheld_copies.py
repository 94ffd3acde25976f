"""What was withheld is nowhere in a response of LlamaIndex, a conversation or a stored workflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from typing_extensions import override

from llama_index_semgrad import ReviewNeededEvent, ReviewWorkflow, SemGradGuard, VerdictEvent
from llama_index_semgrad.convert import asks_for_tools, said_text
from semgrad_guard.adapter_kit.contract import reachable
from semgrad_guard.flow import HumanReview
from tests.adapters.llama_index.index_and_llm import QUESTION, ScriptedLLM, llm
from tests.fakes import LadderDecider, MemorySink, guard_of

BAD, MESSAGE = "It was Albert Einstein.", "I do not know."
PASSAGE = "Some say that it was Albert Einstein. Radium was found in 1898."


class Engine(BaseQueryEngine):
    """Answers from one node, and tells all over its response how it did."""

    def __init__(self, model: ScriptedLLM) -> None:
        super().__init__(callback_manager=None)
        self.model = model

    @override
    def _query(self, query_bundle: Any) -> Response:
        text = self.model.complete(f"{PASSAGE}\n{query_bundle.query_str}").text
        related = RelatedNodeInfo(node_id="n2", metadata={"summary": f"So: {text}"})
        node = TextNode(
            text=PASSAGE,
            id_="n1",
            metadata={"title": "Who found radium", "draft": text},
            relationships={NodeRelationship.NEXT: related},
        )
        metadata = {"n1": {"draft": text.upper()}, "sql": {"result": [(text,)]}, "log": f"Thought: {text}"}
        return Response(text, source_nodes=[NodeWithScore(node=node, score=0.5)], metadata=metadata)

    @override
    async def _aquery(self, query_bundle: Any) -> Response:
        return self._query(query_bundle)

    @override
    def _get_prompt_modules(self) -> Any:
        return {}


def engine(score: float, **options: Any) -> Any:
    """The engine under a guard."""
    guard = guard_of(scores={BAD: score}, **options)
    return SemGradGuard(guard=guard).wrap(Engine(llm(lambda _: BAD)))


def test_metadata_of_response_and_nodes_are_cleaned_and_the_nodes_keep_their_text() -> None:
    """A passage that says the same was there before."""
    response = engine(0.9).query(QUESTION)
    (found,) = response.source_nodes
    assert found.node.text == PASSAGE
    assert found.node.metadata == {"title": "Who found radium", "draft": MESSAGE}
    assert found.node.relationships[NodeRelationship.NEXT].metadata == {"summary": "[left out]"}
    assert {k: v for k, v in response.metadata.items() if k != "semgrad"} == {
        "n1": {"draft": MESSAGE},
        "sql": {"result": [(MESSAGE,)]},
        "log": "[left out]",
    }
    assert set(response.metadata["semgrad"]["left_out"]) == {
        "metadata.n1.draft",
        "metadata.sql.result.0.0",
        "metadata.log",
        "source_nodes.0.metadata.draft",
        "source_nodes.0.relationships.NodeRelationship.NEXT.metadata.summary",
    }


def test_a_response_that_is_given_keeps_everything() -> None:
    """Nothing is secret then."""
    response = engine(0.1).query(QUESTION)
    assert response.metadata["log"] == f"Thought: {BAD}"
    assert response.source_nodes[0].node.metadata["draft"] == BAD
    assert response.metadata["semgrad"]["left_out"] == []


async def test_a_workflow_that_was_decided_keeps_no_answer() -> None:
    """A stored run is read by others than the reviewer."""
    handler = ReviewWorkflow(engine(0.9, decider=LadderDecider([HumanReview(message="Wait.")]))).run(question=QUESTION)
    async for event in handler.stream_events():
        if isinstance(event, ReviewNeededEvent):
            assert "Einstein" in json.dumps(handler.ctx.to_dict())
            handler.ctx.send_event(VerdictEvent(review_id=event.review_id, verdict="rejected"))
    assert (await handler).text == MESSAGE
    assert "Einstein" not in json.dumps(handler.ctx.to_dict()["state"])


# --- conversations ----------------------------------------------------------------------------------------------------


class ToolChat(SimpleChatEngine):
    """Asks for a tool first, and says something beside the request."""

    said: str = "Let me see."

    @override
    def chat(self, message: str, chat_history: Any = None) -> Any:
        response = super().chat(message)
        user, answer = self._memory.written
        blocks = [ToolCallBlock(tool_name="find", tool_kwargs={"draft": BAD}, tool_call_id="c1")]
        asked = ChatMessage(role="assistant", content=self.said)
        asked.blocks += blocks
        thought = ChatMessage(role="assistant", blocks=[ThinkingBlock(content=f"Hm, {BAD}"), *blocks])
        tool = ChatMessage(role="tool", content="nothing", additional_kwargs={"tool_call_id": "c1"})
        self._memory.set([user, asked, tool, thought, tool, answer])
        return response


def conversation(said: str, handling: Any = None, **scores: float) -> tuple[list[ChatMessage], MemorySink]:
    """The conversation after one question, and the records."""
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)
    chat = ToolChat.from_defaults(llm=llm(lambda _: BAD), memory=memory)
    chat.said = said
    decider = LadderDecider()
    if handling:
        decider.beside_tool_calls = lambda _: (handling, "rule")  # type: ignore[attr-defined]
    sink = MemorySink()
    guard = guard_of(scores={BAD: 0.9, **scores}, decider=decider, sink=sink)
    guarded = SemGradGuard(guard=guard).wrap(chat)
    assert guarded.chat(QUESTION).response == MESSAGE
    return guarded.chat_history, sink


def test_the_conversation_has_no_copy_in_requests_for_tools() -> None:
    """The requests stay, because what the tools said follows them."""
    history, _ = conversation("Let me see.", **{"Let me see.": 0.1})
    assert [str(m.role.value) for m in history] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [m.content or "" for m in history] == [QUESTION, "Let me see.", "nothing", "", "nothing", MESSAGE]
    assert "Einstein" not in reachable(history)


@pytest.mark.parametrize(
    ("handling", "said", "content", "status"),
    [
        (None, "So far so good", "So far so good", "answered"),
        (None, "I guess Marconi", "", "abstained"),
        ("blank", "So far so good", "", "abstained"),
        ("pass", "I guess Marconi", "I guess Marconi", "answered"),
    ],
)
def test_text_beside_requests_for_tools_is_treated_as_the_policy_says(
    handling: Any, said: str, content: str, status: str
) -> None:
    """It gets into the conversation, where the user can read it."""
    history, sink = conversation(said, handling, **{"So far so good": 0.1})
    assert (history[1].content or "") == content
    assert [(r.beside_tool_calls, r.status) for r in sink.records] == [
        (None, "abstained"),
        (handling or "judge", status),
    ]


# --- requests for tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "asks", "text"),
    [
        ({"blocks": [ToolCallBlock(tool_name="f", tool_kwargs={})]}, True, ""),
        ({"blocks": [ToolCallBlock(tool_name="f", tool_kwargs='{"a": 1}')]}, True, ""),
        ({"blocks": [ToolCallBlock(tool_name="f", tool_kwargs='{"a": "Lyo')]}, False, '{"a": "Lyo'),
        ({"content": "Lyon", "additional_kwargs": {"tool_calls": [{"function": {"arguments": "{"}}]}}, False, "Lyon"),
        ({"additional_kwargs": {"tool_calls": [{"function": {"arguments": "{Ly"}}]}}, False, "{Ly"),
        ({"additional_kwargs": {"tool_calls": [{"function": {"arguments": ""}}]}}, True, ""),
        ({"content": "Let me see.", "additional_kwargs": {"tool_calls": [{"name": "f"}]}}, True, "Let me see."),
        ({"content": "Lyon"}, False, "Lyon"),
    ],
)
def test_a_request_that_cannot_be_read_is_an_answer(message: Any, asks: bool, text: str) -> None:
    """No tool runs for it, so its message is what the user gets."""
    read = ChatMessage(role="assistant", **message)
    assert (asks_for_tools(read), said_text(read)) == (asks, text)
