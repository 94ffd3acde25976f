"""Agents for tests: a model that follows a script, a search tool, a policy file's decider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from pydantic import Field

from langchain_semgrad import SemGradMiddleware
from semgrad_guard.policy import PolicyDecider, policy_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langgraph.graph.state import CompiledStateGraph

    from semgrad_guard.guard import Guard

THREAD: Any = {"configurable": {"thread_id": "t1"}}


class Scripted(BaseChatModel):
    """Chat model that gives prepared messages, in pieces when streamed; every prompt is kept."""

    script: list[AIMessage]
    prompts: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        """Know all tools already."""
        return self

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        self.prompts.append(messages)
        return self.script[min(len(self.prompts), len(self.script)) - 1].model_copy()

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        message = self._next(messages)
        for piece in str(message.content):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        yield ChatGenerationChunk(
            message=AIMessageChunk(content="", tool_calls=message.tool_calls, chunk_position="last")
        )


def says(*script: AIMessage | str) -> Scripted:
    """Model that says these things in turn."""
    return Scripted(script=[AIMessage(said) if isinstance(said, str) else said for said in script])


def call_of(name: str, id_: str = "c1", **args: Any) -> AIMessage:
    """Message that asks for a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": id_}])


@tool(response_format="content_and_artifact")
def search(query: str) -> tuple[str, list[Document]]:
    """Search the atlas."""
    text = "Paris is the capital." if query == "capital" else f"Nothing about {query}."
    return text, [Document(text, metadata={"source": "atlas"})]


def agent_of(
    model: Any, guard: Guard, *, tools: Any = (), checkpointer: Any = None, **options: Any
) -> CompiledStateGraph:
    """Guarded agent."""
    return create_agent(
        model, list(tools), middleware=[SemGradMiddleware(guard=guard, **options)], checkpointer=checkpointer
    )


def ask(agent: Any, text: str = "Capital?", config: Any = None) -> dict[str, Any]:
    """State after a question."""
    return agent.invoke({"messages": [HumanMessage(text)]}, config)


def decider(**policy: Any) -> Any:
    """Decider of a policy file."""
    return PolicyDecider(policy_from({"version": 1, "accept": 0.7, "review": {"url": "interrupt"}, **policy}))
