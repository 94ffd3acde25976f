"""A small real index over a few passages, an embedding, and models without weights."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import TextNode
from pydantic import Field
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

PASSAGES = (
    "Radium was discovered by Marie Curie in 1898.",
    "Gallium melts in the hand at 30 degrees.",
    "Helium was first seen in the spectrum of the sun.",
    "Tungsten has the highest melting point of all metals.",
    "Curium is named after Marie and Pierre Curie.",
    "Radium glows and was painted on watch dials.",
)
QUESTION = "Who discovered radium?"


@pytest.fixture(name="own_loop", autouse=True)
def _own_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the event loop that LlamaIndex' sync methods take or make, for counting tokens, and leave behind."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


class WordEmbedding(BaseEmbedding):
    """Counts words in hashed places: deterministic, and near for texts that share words."""

    @classmethod
    @override
    def class_name(cls) -> str:
        return "WordEmbedding"

    def _vector(self, text: str) -> list[float]:
        vector = [0.01] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[int(hashlib.sha256(word.encode()).hexdigest(), 16) % 64] += 1.0
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)


class ScriptedLLM(CustomLLM):
    """Writes what a function of the prompt says, word by word when streaming."""

    reply: Any = Field(default=None, exclude=True)
    name: str = "scripted"
    is_chat: bool = False
    dies_after: int | None = None
    """Pieces after which a stream raises."""
    prompts: list[str] = Field(default_factory=list, exclude=True)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "ScriptedLLM"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name, is_chat_model=self.is_chat, context_window=4096)

    def _write(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return str(self.reply(prompt))

    @llm_completion_callback()
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self._write(prompt))

    @llm_completion_callback()
    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        def stream() -> Generator[CompletionResponse, None, None]:
            text = ""
            for i, piece in enumerate(re.findall(r"\S+\s*", self._write(prompt))):
                if self.dies_after is not None and i >= self.dies_after:
                    raise ConnectionResetError("the model server went away")
                text += piece
                yield CompletionResponse(text=text, delta=piece)

        return stream()


def join_writers() -> None:
    """Wait for the threads in which LlamaIndex writes chat streams: they end after the reader has the last piece."""
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-") and thread is not threading.current_thread():
            thread.join(20)


def llm(reply: str | Callable[[str], str], **fields: Any) -> ScriptedLLM:
    """Return a model that always writes a text, or what a function of the prompt gives."""
    return ScriptedLLM(reply=reply if callable(reply) else lambda _: reply, **fields)


def index(passages: tuple[str, ...] = PASSAGES) -> VectorStoreIndex:
    """Return a real index over passages."""
    nodes = [TextNode(text=text, id_=f"node-{i}", metadata={"source": f"doc-{i}"}) for i, text in enumerate(passages)]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding())
