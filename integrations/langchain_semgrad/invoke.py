"""Calls runnables: in this thread or on the caller's event loop, below runs of their own, whole or as streams."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from semgrad_guard.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
    from concurrent.futures import Future
    from uuid import UUID

    from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun


def add_chunk(whole: Any, chunk: Any) -> Any:
    """Return the sum of a stream and its next chunk; the chunk alone where they cannot be added, as in LangChain.

    Mappings that a chain's steps give key by key are added; a parser of JSON gives the whole so far each time.
    """
    if whole is None:
        return chunk
    try:
        return whole + chunk
    except TypeError:
        return chunk


class ChunkSum:
    """Adds up the chunks of a stream while they pass."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.total: Any = None

    def adding(self, chunks: Iterator[Any]) -> Iterator[Any]:
        """Yield the chunks as they come."""
        for chunk in chunks:
            self.total = add_chunk(self.total, chunk)
            yield chunk

    async def aadding(self, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Same as `adding`, for async streams."""
        async for chunk in chunks:
            self.total = add_chunk(self.total, chunk)
            yield chunk


class AsReceived(Runnable[Any, Any]):
    """Gives what it receives, without a run of its own: the chain of a guard that judges its own input."""

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return input

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return input

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        return list(inputs)

    @override
    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return input

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async for chunk in input:
            yield chunk


class Caller(Protocol):
    """Calls a runnable and waits for its value."""

    def __call__(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
        """Return what the runnable gives for a value."""
        ...


def call_here(runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
    """Call in this thread."""
    return runnable.invoke(value, config)


class LoopCaller:
    """Calls runnables on an event loop from a worker thread, so chains that are only asynchronous work as well."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the loop."""
        self._loop = loop
        self._lock = threading.Lock()
        self._running: set[Future[Any]] = set()
        self._closed = False

    def __call__(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
        """Return what the runnable gives for a value.

        Raises:
            RoutingError: the task that asked for it was cancelled.
        """
        return self.wait_for(lambda: runnable.ainvoke(value, config))

    def wait_for(self, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return what a coroutine gives that runs on the loop.

        Raises:
            RoutingError: the task that asked for it was cancelled.
        """
        with self._lock:
            if self._closed:
                msg = "the task was cancelled"
                raise RoutingError(msg)
            future = asyncio.run_coroutine_threadsafe(start(), self._loop)
            self._running.add(future)
        try:
            return future.result()
        finally:
            self._running.discard(future)

    def close(self) -> None:
        """Cancel the running calls and refuse new ones."""
        with self._lock:
            self._closed = True
            for future in list(self._running):
                future.cancel()


@contextmanager
def on_this_loop() -> Generator[LoopCaller]:
    """Yield a caller for the running event loop; it is closed with the task that opened it, cancelled or not."""
    caller = LoopCaller(asyncio.get_running_loop())
    try:
        yield caller
    finally:
        caller.close()


class Tracked(Runnable[Any, Any]):
    """Runs another runnable below a run of its own, whose id is known afterwards."""

    def __init__(self, inner: Runnable[Any, Any], name: str) -> None:
        """Keep what to run, and the name that traces show."""
        self._inner = inner
        self.name = name
        self.run_id: UUID | None = None

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run it."""
        return self._call_with_config(self._invoke, input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run it."""
        return await self._acall_with_config(self._ainvoke, input, config)

    def _invoke(self, value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
        self.run_id = run_manager.run_id
        return self._inner.invoke(value, patch_config(config, callbacks=run_manager.get_child()))

    async def _ainvoke(self, value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
        self.run_id = run_manager.run_id
        return await self._inner.ainvoke(value, patch_config(config, callbacks=run_manager.get_child()))
