"""One driver for each form of each adapter: it asks its framework a question and returns what came out as plain values.

A new framework needs one class with `abilities`, `ask` and `aask`, and a place in `DRIVERS`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import operator
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import ToolOutput
from pydantic import BaseModel
from typing_extensions import override

from langchain_semgrad import SemGradGraphState, SemGradGuard, SemGradMiddleware, SemGradNode, SemGradOutputParser
from llama_index_semgrad import ReviewNeededEvent, ReviewWorkflow
from llama_index_semgrad import SemGradGuard as LlamaIndexGuard
from semgrad_guard.adapter_kit import GuardedPipeline
from semgrad_guard.adapter_kit.contract import (
    BROKEN_ARGUMENTS,
    BROKEN_REQUEST,
    FALLBACK,
    TOOL,
    TOOL_REQUEST,
    Ability,
    Case,
    Driver,
    Reply,
    copies_of,
    reachable,
)
from semgrad_guard.models import Generated
from tests.adapters.llama_index.index_and_llm import PASSAGES, index, llm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from semgrad_guard.adapter_kit.contract import Writer

SYSTEM = "Answer in a few words."
"""What every LangChain form tells its model before the question, so that all make the same prompt."""


TOOLS: tuple[Ability, ...] = ("tools", "tool_text", "broken_tools", "copies")
"""What every form of LangChain can do that gives messages."""


def can(*names: Ability) -> frozenset[Ability]:
    """Return the abilities of a form."""
    return frozenset(names)


# --- LangChain --------------------------------------------------------------------------------------------------------


class ChatWriter(BaseChatModel):
    """Chat model that writes what its writer says."""

    writer: Any
    copies: bool = False

    @property
    def _llm_type(self) -> str:
        return "writer"

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        """Know all tools already."""
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        message = message_of(self.writer.write())
        if self.copies:
            message.additional_kwargs = copies_of(message.text)
            message.response_metadata = copies_of(message.text)
        return ChatResult(generations=[ChatGeneration(message=message)])


def message_of(text: str) -> AIMessage:
    """Message that a writer's text stands for."""
    if text.endswith(TOOL_REQUEST):
        return AIMessage(text.removesuffix(TOOL_REQUEST), tool_calls=[look_up_call()])
    if text.endswith(BROKEN_REQUEST):
        broken = {"name": TOOL, "args": BROKEN_ARGUMENTS, "id": "call-1", "error": "no JSON"}
        return AIMessage(text.removesuffix(BROKEN_REQUEST), invalid_tool_calls=[broken])
    return AIMessage(text)


class Facts(BaseRetriever):
    """Returns the first `k` passages."""

    k: int = 2

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(text) for text in PASSAGES[: self.k]]


@tool(TOOL)
def look_up(query: str) -> str:
    """Look something up."""
    return f"Nothing about {query}."


def look_up_call(**more: Any) -> Any:
    """Request for the tool, as a model writes it."""
    return {"name": TOOL, "args": {"query": "radium", **more}, "id": "call-1"}


def model_of(case: Case) -> ChatWriter:
    """Return the case's model."""
    return ChatWriter(writer=case.model, copies=case.copies)


class CopyingWriter(ChatWriter):
    """Asks for a tool first, with all that it will answer in its request."""

    copies: bool = True

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        if isinstance(messages[-1], HumanMessage):
            text = self.writer.script[0]
            request = AIMessage("", tool_calls=[look_up_call(more=copies_of(text))], additional_kwargs=copies_of(text))
            return ChatResult(generations=[ChatGeneration(message=request)])
        return super()._generate(messages)


def prompt(context: str = "") -> Runnable[Any, Any]:
    """Prompt of the chains; passages stand behind the question where there are any."""
    return ChatPromptTemplate.from_messages([("system", SYSTEM), ("human", "{question}" + context)])


def reply_of(value: Any) -> Reply:
    """What a chain gave: a message with the findings in its metadata."""
    return Reply(text=value.text, findings=value.response_metadata.get("semgrad"), everything=reachable(value))


def reply_in(state: Mapping[str, Any]) -> Reply:
    """What a graph gave: its state, with the answer as the last message."""
    return Reply(text=state["messages"][-1].text, findings=state.get("semgrad"), everything=reachable(state))


def on_withheld(case: Case) -> Any:
    """Option of the guard."""
    return "raise" if case.raises else "message"


def chat_fallbacks(case: Case) -> dict[str, ChatWriter]:
    """Fallback models that the policy names."""
    return {name: ChatWriter(writer=case.fallback) for name in case.fallbacks}


class LangChainChain:
    """Form (a): `prompt | llm | SemGradGuard()`."""

    abilities = can("sync", "async", "cancel", "queue", "raise", *TOOLS)

    def chain(self, case: Case) -> Runnable[Any, Any]:
        guard = SemGradGuard(guard=case.guard, on_withheld=on_withheld(case))
        return prompt() | model_of(case) | guard

    def ask(self, case: Case) -> Reply:
        return reply_of(self.chain(case).invoke({"question": case.question}))

    async def aask(self, case: Case) -> Reply:
        return reply_of(await self.chain(case).ainvoke({"question": case.question}))


class LangChainWrap(LangChainChain):
    """Form (b): `SemGradGuard().wrap(chain)`."""

    abilities = can("sync", "async", "cancel", "fallback", "queue", "raise", *TOOLS)

    @override
    def chain(self, case: Case) -> Runnable[Any, Any]:
        guard = SemGradGuard(guard=case.guard, on_withheld=on_withheld(case))
        return guard.wrap(prompt() | model_of(case), fallbacks=chat_fallbacks(case))


class LangChainRag(LangChainChain):
    """Form (b) around a chain with a retriever."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", "raise", *TOOLS)

    @override
    def chain(self, case: Case) -> Runnable[Any, Any]:
        facts = Facts()
        found = (lambda inputs: inputs["question"]) | facts | (lambda docs: "\n".join(d.page_content for d in docs))
        chain = RunnablePassthrough.assign(context=found) | prompt("\n{context}") | model_of(case)
        guard = SemGradGuard(guard=case.guard, on_withheld=on_withheld(case))
        return guard.wrap(chain, retriever=facts, fallbacks=chat_fallbacks(case))


class LangChainMapping:
    """Form (a) behind a chain that gives a mapping, with passages and all that led to the answer."""

    abilities = can("sync", "async", "cancel", "queue", "raise", "copies", "field")

    def chain(self, case: Case) -> Runnable[Any, Any]:
        found = (lambda inputs: inputs["question"]) | Facts()
        asked = RunnablePassthrough.assign(context=found) | RunnablePassthrough.assign(
            raw=prompt("\n{context}") | model_of(case)
        )
        guard = SemGradGuard(guard=case.guard, on_withheld=on_withheld(case))
        return asked | RunnableLambda(lambda value: self.value(value, case)) | guard

    def value(self, value: dict[str, Any], case: Case) -> dict[str, Any]:
        text = value["raw"].text
        if not case.copies:
            return {**value, "answer": text}
        request = AIMessage([{"type": "text", "text": text}], tool_calls=[look_up_call(draft=text)], id="m1")
        request.response_metadata = {"semgrad": {"beside_tool_calls": "pass"}}  # an inner guard let it through
        documents = [Document(d.page_content, metadata=copies_of(text)) for d in value["context"]]
        return {
            **copies_of(text),
            **value,
            "answer": text,
            "context": documents,
            "messages": [HumanMessage(case.question), request, ToolMessage("found", tool_call_id="call-1", id="m2")],
            "intermediate_steps": [(AgentAction(tool=TOOL, tool_input={"q": text}, log=f"Thought: {text}"), "found")],
            "parsed": Parsed(said=text),
            "nested": {"value": copies_of(text)},
        }

    def reply(self, value: Any) -> Reply:
        return Reply(text=value["answer"], findings=value["semgrad"], everything=reachable(value))

    def ask(self, case: Case) -> Reply:
        return self.reply(self.chain(case).invoke({"question": case.question}))

    async def aask(self, case: Case) -> Reply:
        return self.reply(await self.chain(case).ainvoke({"question": case.question}))


class Parsed(BaseModel):
    """Object that was parsed from an answer."""

    said: str


class DraftState(AgentState[Any]):
    """State of an agent with parts of its own."""

    draft: NotRequired[Any]


class Drafts(AgentMiddleware[DraftState, Any, Any]):
    """Keeps what the model is about to say in the agent's state."""

    state_schema = DraftState

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    @override
    def before_model(self, state: DraftState, runtime: Any) -> dict[str, Any]:
        return {"draft": copies_of(str(self.case.model.script[0]))}


class LangChainAgent:
    """Middleware in an agent of `create_agent`."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", "raise", *TOOLS)

    def agent(self, case: Case) -> Any:
        middleware = SemGradMiddleware(
            guard=case.guard,
            retriever=Facts(),
            fallbacks=chat_fallbacks(case),
            on_withheld=on_withheld(case),
        )
        model = CopyingWriter(writer=case.model) if case.copies else ChatWriter(writer=case.model)
        drafts = [Drafts(case)] if case.copies else []
        return create_agent(model, [look_up], system_prompt=SYSTEM, middleware=[middleware, *drafts])

    def ask(self, case: Case) -> Reply:
        return reply_in(self.agent(case).invoke({"messages": [HumanMessage(case.question)]}))

    async def aask(self, case: Case) -> Reply:
        return reply_in(await self.agent(case).ainvoke({"messages": [HumanMessage(case.question)]}))


class Chat(MessagesState, SemGradGraphState):
    """State of the graph."""

    draft: Any
    steps: Annotated[list[Any], operator.add]


class LangGraphNode:
    """Node behind the model's node of a graph."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", *TOOLS)

    def graph(self, case: Case) -> Any:
        model = model_of(case)
        builder = StateGraph(Chat)
        node = SemGradNode(
            guard=case.guard,
            fallbacks=chat_fallbacks(case),
            retriever=Facts(),
            answer=lambda question, documents: model.invoke(
                [SystemMessage(SYSTEM), HumanMessage("\n".join([question, *(d.page_content for d in documents)]))]
            ),
            reduced_keys=["steps"],
        )

        def answer(state: Any) -> dict[str, Any]:
            message = model.invoke([SystemMessage(SYSTEM), *state["messages"]])
            if not case.copies:
                return {"messages": [message]}
            text = message.text
            earlier = AIMessage(f"Draft: {text}", additional_kwargs=copies_of(text))
            return {"messages": [earlier, message], "draft": copies_of(text), "steps": [text, copies_of(text)]}

        builder.add_node("model", answer)
        builder.add_node("guard", node)
        builder.add_edge(START, "model")
        builder.add_edge("model", "guard")
        builder.add_edge("guard", END)
        return builder.compile()

    def ask(self, case: Case) -> Reply:
        return reply_in(self.graph(case).invoke({"messages": [HumanMessage(case.question)]}))

    async def aask(self, case: Case) -> Reply:
        return reply_in(await self.graph(case).ainvoke({"messages": [HumanMessage(case.question)]}))


class LangChainParser:
    """Output parser at the end of a chain: it gives text, so there is no place for findings."""

    abilities = can("sync", "async", "cancel", "queue", "raise")

    def chain(self, case: Case) -> Runnable[Any, Any]:
        inner = StrOutputParser() if case.raises else None
        return prompt() | ChatWriter(writer=case.model) | SemGradOutputParser(parser=inner, guard=case.guard)

    def ask(self, case: Case) -> Reply:
        text = self.chain(case).invoke({"question": case.question})
        return Reply(text=text, findings=None, everything=text)

    async def aask(self, case: Case) -> Reply:
        text = await self.chain(case).ainvoke({"question": case.question})
        return Reply(text=text, findings=None, everything=text)


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


@contextmanager
def own_loop() -> Iterator[None]:
    """Give LlamaIndex' synchronous methods an event loop, which they would otherwise make and leave behind."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def written_by(writer: Writer) -> Any:
    """LLM that writes what a writer says."""
    return llm(lambda _: writer.write())


def fallbacks_of(case: Case) -> dict[str, Any]:
    """Fallback models that the policy names."""
    return {name: written_by(case.fallback) for name in case.fallbacks}


class CopyingEngine(BaseQueryEngine):
    """Puts copies of the answer into the response's metadata and that of its nodes."""

    def __init__(self, engine: BaseQueryEngine) -> None:
        super().__init__(callback_manager=None)
        self._query_engine = engine

    def _with_copies(self, response: Any) -> Any:
        add_copies(response, response.response)
        return response

    @override
    def _query(self, query_bundle: Any) -> Any:
        return self._with_copies(self._query_engine.query(query_bundle))

    @override
    async def _aquery(self, query_bundle: Any) -> Any:
        return self._with_copies(await self._query_engine.aquery(query_bundle))

    @override
    def _get_prompt_modules(self) -> Any:
        return {}


def add_copies(response: Any, text: str) -> None:
    """Put copies of a text beside a response."""
    for found in response.source_nodes:
        found.node.metadata.update(copies_of(text))
    nodes = {found.node.node_id: dict(found.node.metadata) for found in response.source_nodes}
    response.metadata = {**nodes, **copies_of(text), "nested": copies_of(text)}


class CopyingChatEngine(ContextChatEngine):
    """Writes copies of its answer beside it, and into the conversation."""

    def _with_copies(self, response: Any) -> Any:
        add_copies(response, response.response)
        output = ToolOutput(TOOL, content=response.response, raw_input={}, raw_output=response.response)
        response.sources = [output]
        call = ToolCallBlock(tool_name=TOOL, tool_kwargs={"draft": response.response})
        asked = ChatMessage(role="assistant", blocks=[call], additional_kwargs=copies_of(response.response))
        *before, last = self._memory.written
        self._memory.set([*before, asked, ChatMessage(role="tool", content="found"), last])
        return response

    @override
    def chat(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_copies(super().chat(*args, **kwargs))

    @override
    async def achat(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_copies(await super().achat(*args, **kwargs))


def query_engine(case: Case) -> Any:
    """Guarded query engine."""
    engine: Any = index().as_query_engine(llm=written_by(case.model), similarity_top_k=2)
    if case.copies:
        engine = CopyingEngine(engine)
    return LlamaIndexGuard(guard=case.guard).wrap(engine, fallbacks=fallbacks_of(case))


class LlamaIndexQuery:
    """Query engine."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", "copies")

    def ask(self, case: Case) -> Reply:
        with own_loop():
            return self.reply(query_engine(case).query(case.question))

    async def aask(self, case: Case) -> Reply:
        return self.reply(await query_engine(case).aquery(case.question))

    def reply(self, response: Any) -> Reply:
        return Reply(text=response.response, findings=response.metadata["semgrad"], everything=reachable(response))


class LlamaIndexChat:
    """Chat engine; the caller can also read the conversation."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", "copies")

    def engine(self, case: Case) -> Any:
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)
        retriever = index().as_retriever(similarity_top_k=2)
        kind = CopyingChatEngine if case.copies else ContextChatEngine
        engine = kind.from_defaults(retriever, llm=written_by(case.model), memory=memory)
        return LlamaIndexGuard(guard=case.guard).wrap(engine, fallbacks=fallbacks_of(case))

    def ask(self, case: Case) -> Reply:
        with own_loop():
            engine = self.engine(case)
            return self.reply(engine, engine.chat(case.question))

    async def aask(self, case: Case) -> Reply:
        engine = self.engine(case)
        return self.reply(engine, await engine.achat(case.question))

    def reply(self, engine: Any, response: Any) -> Reply:
        everything = reachable([response, engine.chat_history])
        return Reply(text=response.response, findings=response.metadata["semgrad"], everything=everything)


class LlamaIndexWorkflow:
    """Workflow, which asks a person by an event and not by the queue; the event's `answer` is for reviewers only."""

    abilities = can("async", "cancel", "fallback", "retry", "copies")

    async def aask(self, case: Case) -> Reply:
        handler = ReviewWorkflow(query_engine(case)).run(question=case.question)
        try:
            async for event in handler.stream_events():
                if isinstance(event, ReviewNeededEvent):
                    shown = event.model_dump(exclude={"answer"})
                    return Reply(text=event.message, findings=None, everything=reachable(shown))
            result = await handler
        finally:
            await handler.cancel_run()  # LlamaIndex lets a run go on that nobody waits for any more
        return Reply(text=result.text, findings=result.semgrad, everything=reachable(result))

    def ask(self, case: Case) -> Reply:
        return asyncio.run(self.aask(case))


# --- a framework of one's own -----------------------------------------------------------------------------------------


def example(name: str) -> Any:
    """Module of an example."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class OwnFramework:
    """The example's pipeline, by the five functions of the kit."""

    abilities = can("sync", "async", "cancel", "fallback", "retry", "queue", "raise", "copies")

    def __init__(self) -> None:
        self.example = example("own_framework")

    def pipeline(self, case: Case) -> GuardedPipeline[Any]:
        def model_of(writer: Writer) -> Any:
            return lambda _: Generated(prompt_ids=(1,), answer_ids=(2,), text=writer.write(), finish_reason="stop")

        desk = self.example.TrainDesk({"own": model_of(case.model), FALLBACK: model_of(case.fallback)})
        if case.copies:
            ask = desk.ask
            desk.ask = lambda *args: with_notes(ask(*args))
        pipeline = self.example.TrainDeskPipeline(desk)
        return GuardedPipeline(pipeline, case.guard, fallbacks=[FALLBACK], on_withheld=on_withheld(case))

    def ask(self, case: Case) -> Reply:
        return self.reply(self.pipeline(case).ask(case.question))

    async def aask(self, case: Case) -> Reply:
        return self.reply(await self.pipeline(case).aask(case.question))

    def reply(self, value: Any) -> Reply:
        return Reply(text=value.text, findings=value.notes["semgrad"], everything=reachable(value))


def with_notes(reply: Any) -> Any:
    """Reply of the desk with copies of its text in its notes."""
    return replace(reply, notes=copies_of(reply.text))


SAME_PROMPT: list[Driver] = [LangChainChain(), LangChainWrap(), LangChainAgent(), LangGraphNode(), LangChainParser()]
"""Forms whose model reads the very same prompt."""
DRIVERS: list[Driver] = [
    *SAME_PROMPT,
    LangChainRag(),
    LangChainMapping(),
    LlamaIndexQuery(),
    LlamaIndexChat(),
    LlamaIndexWorkflow(),
    OwnFramework(),
]
