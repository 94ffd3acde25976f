"""A chat engine whose answers are guarded; its conversation never holds a withheld answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole
from llama_index.core.memory import BaseMemory
from pydantic import Field, PrivateAttr
from typing_extensions import override

from llama_index_semgrad.convert import METADATA_KEY, asks_for_tools
from llama_index_semgrad.copies import cleaned_beside, cleaned_turn, without_text
from llama_index_semgrad.rerun import EngineRun, RerunTools, with_memory
from llama_index_semgrad.responses import Reply, mark
from llama_index_semgrad.responses import read as read_response
from llama_index_semgrad.streams import (
    acaptured_pieces,
    annotated_chat,
    captured_pieces,
    chat_piece,
    chat_stream_of,
    late_findings,
    passes,
)
from llama_index_semgrad.watcher import capturing
from semgrad_guard.adapter_kit import findings, judge_beside_tools, recording_faults
from semgrad_guard.errors import NotGuardableError
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence
    from typing import Self

    from llama_index.core.tools import ToolOutput

    from llama_index_semgrad.convert import LlmCall
    from llama_index_semgrad.streams import GuardedStreamingChatResponse, StreamMode
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard


class DraftMemory(BaseMemory):
    """A memory for one attempt: it reads the real memory, and keeps what is written to itself.

    So an answer that is held back never gets into the conversation, and a retry sees no earlier attempt.
    """

    written: list[ChatMessage] = Field(default_factory=list)
    """Messages of this attempt, oldest first."""
    _real: BaseMemory = PrivateAttr()
    _read: dict[str, list[ChatMessage]] = PrivateAttr()

    def __init__(self, real: BaseMemory, read: dict[str, list[ChatMessage]] | None = None) -> None:
        """Keep the real memory.

        Args:
            real: the memory of the chat engine.
            read: what earlier attempts at the same question read in it. Later ones read the same: a turn at the same
                time cannot come between, and a memory of another event loop is not read from a worker thread.
        """
        super().__init__()
        self._real, self._read = real, {} if read is None else read

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradDraftMemory"

    @classmethod
    @override
    def from_defaults(cls, **kwargs: Any) -> Self:
        return cls(kwargs["real"])

    @property
    def tokenizer_fn(self) -> Callable[[str], Sequence[Any]]:
        """The tokenizer of the real memory; engines use it where there is one."""
        found: Callable[[str], Sequence[Any]] = getattr(self._real, "tokenizer_fn")  # noqa: B009 - not on every memory
        return found

    @override
    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        key = repr((input, kwargs))
        if key not in self._read:
            self._read[key] = list(self._real.get(input=input, **kwargs))
        return [*self._read[key], *self.written]

    @override
    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        key = repr((input, kwargs))
        if key not in self._read:
            self._read[key] = list(await self._real.aget(input=input, **kwargs))
        return [*self._read[key], *self.written]

    @override
    def get_all(self) -> list[ChatMessage]:
        return [*self._real.get_all(), *self.written]

    @override
    async def aget_all(self) -> list[ChatMessage]:
        return [*await self._real.aget_all(), *self.written]

    @override
    def put(self, message: ChatMessage) -> None:
        self.written.append(message)

    @override
    async def aput(self, message: ChatMessage) -> None:
        self.written.append(message)

    @override
    def put_messages(self, messages: list[ChatMessage]) -> None:
        self.written.extend(messages)

    @override
    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        self.written.extend(messages)

    @override
    def set(self, messages: list[ChatMessage]) -> None:
        self.written = list(messages)

    @override
    def reset(self) -> None:
        self.written = []


def finished_turn(written: Sequence[ChatMessage], question: str, text: str) -> list[ChatMessage]:
    """Return the messages of a turn for the conversation: the engine's, with the text that the caller got.

    Args:
        written: the messages that the engine wrote in the chosen attempt.
        question: the user's message, for an engine that did not write it.
        text: the answer, or the policy's message in its place.
    """
    answers = [message for message in written if message.role is MessageRole.ASSISTANT]
    if answers and (answers[-1].content or "").strip() == text.strip():
        return list(written)
    # A request for tools stays: without it, what the tools said would follow nothing.
    others = [m for m in written if m.role is not MessageRole.ASSISTANT or asks_for_tools(m)]
    user_turn = others or [ChatMessage(role=MessageRole.USER, content=question)]
    return [*user_turn, ChatMessage(role=MessageRole.ASSISTANT, content=text)]


@dataclass(frozen=True, slots=True)
class ChatAsker:
    """Asks a chat engine one question, without a change to the conversation."""

    question: str
    memory: BaseMemory
    read: dict[str, list[ChatMessage]] = field(default_factory=dict[str, list[ChatMessage]])
    """What the attempts at this question read in the conversation."""

    def draft(self) -> DraftMemory:
        """Return a memory for one attempt."""
        return DraftMemory(self.memory, self.read)

    def ask(self, engine: Any) -> Reply:
        """Return the engine's answer."""
        if isinstance(engine, BaseQueryEngine):  # as a fallback
            return read_response(engine.query(self.question))
        draft = self.draft()
        return reply_of((with_memory(engine, draft) or engine).chat(self.question), draft)


def reply_of(native: AgentChatResponse, draft: DraftMemory) -> Reply:
    """Return a chat response as a reply, together with the messages that the engine wrote."""
    vars(native)["_semgrad_written"] = draft.written
    return Reply(native, native.response)


class GuardedChatEngine(BaseChatEngine):
    """Asks the wrapped chat engine and returns what the policy allows; `SemGradGuard.wrap` makes it.

    The conversation holds what the caller got: an answer that was held back is not in it.
    """

    def __init__(
        self, engine: BaseChatEngine, guard: Guard, tools: RerunTools, stream: StreamMode | None = None
    ) -> None:
        """Wrap a chat engine.

        Raises:
            NotGuardableError: the engine hides its conversation, so a withheld answer would stay in it.
        """
        self._engine, self._tools = engine, tools
        self._stream: StreamMode | None = stream
        self._memory = _memory_of(engine)
        self.guard = guard

    @override
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        if chat_history is not None:
            self._memory.set(chat_history)
        asker = ChatAsker(message, self._memory)
        run = EngineRun(self._tools, asker)
        with recording_faults(self.guard, message), capturing() as calls:
            reply = asker.ask(self._engine)
        outcome, reply = run.outcome(self.guard, reply, calls)
        self._memory.put_messages(self._turn(run, reply, calls, outcome))
        return _chat_response(reply, outcome)

    @override
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        if chat_history is not None:
            await self._memory.aset(chat_history)
        asker = ChatAsker(message, self._memory)
        draft, run = asker.draft(), EngineRun(self._tools, asker)
        with recording_faults(self.guard, message), capturing() as calls:
            reply = reply_of(await with_memory(self._engine, draft).achat(message), draft)
        outcome, reply = await in_thread(run.outcome, self.guard, reply, calls)
        await self._memory.aput_messages(await in_thread(self._turn, run, reply, calls, outcome))
        return _chat_response(reply, outcome)

    @override
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> GuardedStreamingChatResponse:
        if not passes(self._stream, self.guard):
            return chat_stream_of(self.chat(message, chat_history))
        if chat_history is not None:
            self._memory.set(chat_history)
        asker = ChatAsker(message, self._memory)
        draft, run = asker.draft(), EngineRun(self._tools, asker)
        with recording_faults(self.guard, message), capturing() as calls:
            first = with_memory(self._engine, draft).stream_chat(message)
        response = annotated_chat(first)

        def stream() -> Generator[ChatResponse, None, None]:
            text = ""
            with recording_faults(self.guard, message):
                for piece in captured_pieces(iter(first.response_gen), calls):
                    text += piece
                    yield chat_piece(text, piece)
            response.metadata[METADATA_KEY] = late_findings(self.guard, run, Reply(first, text), calls)
            self._memory.put_messages(finished_turn(draft.written, message, text))

        response.chat_stream = stream()
        return response

    @override
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> GuardedStreamingChatResponse:
        if not passes(self._stream, self.guard):
            return chat_stream_of(await self.achat(message, chat_history))
        if chat_history is not None:
            await self._memory.aset(chat_history)
        asker = ChatAsker(message, self._memory)
        draft, run = asker.draft(), EngineRun(self._tools, asker)
        with recording_faults(self.guard, message), capturing() as calls:
            first = await with_memory(self._engine, draft).astream_chat(message)
        response = annotated_chat(first)

        async def stream() -> AsyncGenerator[ChatResponse, None]:
            text = ""
            with recording_faults(self.guard, message):
                async for piece in acaptured_pieces(first.async_response_gen(), calls):
                    text += piece
                    yield chat_piece(text, piece)
            reply = Reply(first, text)
            response.metadata[METADATA_KEY] = await in_thread(late_findings, self.guard, run, reply, calls)
            await self._memory.aput_messages(finished_turn(draft.written, message, text))

        response.achat_stream = stream()
        return response

    def _turn(
        self,
        run: EngineRun,
        reply: Reply,
        calls: Sequence[LlmCall],
        outcome: Outcome,
        cancel: threading.Event | None = None,
    ) -> list[ChatMessage]:
        """Return the messages of a turn for the conversation, without what the caller did not get."""
        written: list[ChatMessage] = list(getattr(reply.native, "_semgrad_written", ()))
        for index, message in enumerate(written):
            if asks_for_tools(message) and (message.content or "").strip():
                beside = run.beside_tools(message.content or "", reply, calls)
                if not judge_beside_tools(self.guard, beside, cancel).text:
                    written[index] = without_text(message)
        return finished_turn(cleaned_turn(outcome, written), run.question, outcome.text)

    @override
    def reset(self) -> None:
        self._engine.reset()

    @property
    @override
    def chat_history(self) -> list[ChatMessage]:
        return self._engine.chat_history


def _memory_of(engine: BaseChatEngine) -> BaseMemory:
    memory = getattr(engine, "_memory", None)
    if not isinstance(memory, BaseMemory):
        msg = (
            f"{type(engine).__name__} keeps its conversation out of reach (no memory in `_memory`), so an answer that "
            "is held back would stay in it: guard the query engine inside it instead"
        )
        raise NotGuardableError(msg)
    return memory


def _chat_response(reply: Reply, outcome: Outcome) -> AgentChatResponse:
    """Return the response that the caller gets; sources are left out where they may repeat a withheld answer."""
    native = reply.native
    metadata, nodes, left_out = cleaned_beside(outcome, getattr(native, "metadata", None), reply.nodes)
    metadata[METADATA_KEY] = findings(outcome, left_out=left_out)
    given = outcome.text == outcome.exchange.answer and not outcome.withheld
    sources: list[ToolOutput] = list(getattr(native, "sources", None) or ()) if given else []
    response = AgentChatResponse(response=outcome.text, sources=sources, metadata=metadata)
    response.source_nodes = nodes
    return mark(response)
