"""A chat memory for one attempt: it reads the conversation and keeps what is new until the guard has decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory
from pydantic import Field, PrivateAttr
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self


class DraftMemory(BaseMemory):
    """Reads through to the real memory and writes nothing to it.

    An answer that the guard holds back never gets into the conversation, and a retry sees no earlier attempt.
    """

    written: list[ChatMessage] = Field(default_factory=list)
    """Messages of this attempt, oldest first."""
    _real: BaseMemory = PrivateAttr()
    _read: dict[str, list[ChatMessage]] = PrivateAttr()

    def __init__(self, real: BaseMemory, read: dict[str, list[ChatMessage]] | None = None) -> None:
        """Read from a memory.

        Args:
            real: the memory.
            read: what earlier attempts at the same question read of it. Later ones read the same, so a concurrent turn
                does not come between, and a memory of another event loop is not asked from a worker thread.
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
        """The real memory's tokenizer; engines ask for it where there is one."""
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


def settled(written: Sequence[ChatMessage], question: str, text: str) -> list[ChatMessage]:
    """Return the messages of a finished turn: as the engine wrote them, with the text that the caller got.

    Args:
        written: what the engine wrote of the chosen attempt.
        question: the user's message, for an engine that did not write it.
        text: the answer or the policy's message in its place.
    """
    turn = [m for m in written if m.role is not MessageRole.ASSISTANT]
    own = [m for m in written if m.role is MessageRole.ASSISTANT]
    if not turn:
        turn = [ChatMessage(role=MessageRole.USER, content=question)]
    if own and (own[-1].content or "").strip() == text.strip():
        return list(written)
    return [*turn, ChatMessage(role=MessageRole.ASSISTANT, content=text)]
