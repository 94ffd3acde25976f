"""Stream an answer that a thread generates, for sync and async callers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from semgrad_guard.models.generate import Generated

    Item = str | Generated | BaseException


class Write(Protocol):
    """Generates an answer: `LocalModel.generate` with all arguments bound except these two."""

    def __call__(self, *, on_text: Callable[[str], None], cancel: threading.Event) -> Generated:
        """Return the whole answer."""
        ...


def stream(write: Write) -> Generator[str | Generated, None, None]:
    """Yield the pieces of an answer as they are generated, then the whole answer; closing it stops the model."""
    items: SimpleQueue[Item] = SimpleQueue()
    cancel = _start(write, items.put)
    try:
        while isinstance(item := items.get(), str):
            yield item
        yield _whole(item)
    finally:
        cancel.set()


async def astream(write: Write) -> AsyncGenerator[str | Generated, None]:
    """Same as `stream`, without blocking the event loop; cancelling the reader stops the model."""
    items: asyncio.Queue[Item] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(item: Item) -> None:
        with suppress(RuntimeError):  # the loop was closed, so there is no reader any more
            loop.call_soon_threadsafe(items.put_nowait, item)

    cancel = _start(write, put)
    try:
        while isinstance(item := await items.get(), str):
            yield item
        yield _whole(item)
    finally:
        cancel.set()


def _start(write: Write, put: Callable[[Item], None]) -> threading.Event:
    cancel = threading.Event()

    def work() -> None:
        try:
            put(write(on_text=put, cancel=cancel))
        except BaseException as error:  # noqa: BLE001 - passed on to the reader of the stream
            put(error)

    threading.Thread(target=work, name="semgrad-guard stream", daemon=True).start()
    return cancel


def _whole(item: Item) -> Generated:
    if isinstance(item, BaseException):
        raise item
    if isinstance(item, str):
        msg = "a piece of text came after the end of a stream"
        raise TypeError(msg)
    return item
