"""What a program states about its question: `answering`, where nothing can be found or something else is meant."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from semgrad_guard.context import with_context
from semgrad_guard.errors import OptionError
from semgrad_guard.flow import Passage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from semgrad_guard.flow import Exchange


@dataclass(frozen=True, slots=True)
class Stated:
    """A question and passages that a program stated; `None` for what it did not."""

    question: str | None = None
    passages: tuple[Passage, ...] | None = None

    def over(self, outer: Stated) -> Stated:
        """Return both together; where both state something, this one counts."""
        return Stated(
            outer.question if self.question is None else self.question,
            outer.passages if self.passages is None else self.passages,
        )

    def apply(self, exchange: Exchange) -> Exchange:
        """Return an exchange with what is stated in the place of what was found, and with what its prompt shows."""
        if self.question is not None:
            exchange = replace(exchange, question=self.question)
        if self.passages is not None:
            exchange = replace(exchange, passages=self.passages, passages_from="stated")
        return with_context(exchange)


NOTHING_STATED = Stated()

_here: ContextVar[Stated] = ContextVar("semgrad_guard_answering", default=NOTHING_STATED)


def stated_here() -> Stated:
    """Return what the `answering` blocks around this call state; a block inside another one counts more."""
    return _here.get()


class Answering:
    """The `with` block that `answering` makes; it may be entered again, also within itself."""

    def __init__(self, stated: Stated) -> None:
        """Keep what is stated."""
        self._stated = stated
        self._tokens: list[Token[Stated]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_here.set(self._stated.over(_here.get())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(
            ValueError
        ):  # left in another context than it was entered in: a generator read by several threads
            _here.reset(self._tokens.pop())


def _is_no_document(_: object) -> Passage | None:
    return None


def answering(
    question: str | None = None,
    passages: Iterable[object] | None = None,
    *,
    convert: Callable[[object], Passage | None] = _is_no_document,
) -> Answering:
    """State the question and the passages of the answers that are written or judged within a `with` block.

    They are used in the place of those that are found. A block inside another one counts more, and what it leaves out
    is taken from the outer one. Threads and tasks that are started within the block know it where they get a copy of
    the context, as those of LangChain's `batch`, of `asyncio` and of `asyncio.to_thread` do. A retry that retrieves
    other passages is judged by those.

    Args:
        question: the user's question alone; `None` leaves it to be found.
        passages: the texts that the answer is written from, in order: strings or `Passage`, or a single one. An empty
            list says that it is written without any; `None` leaves them to be found.
        convert: returns the passage of a framework's document; `None` for anything else.

    Raises:
        OptionError: the question, or something among the passages, is no text.

    Example:
        >>> with answering(question="Who found it?", passages=["Radium was found by Marie Curie."]):
        ...     stated_here().question
        'Who found it?'
    """
    if question is not None and not isinstance(question, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise OptionError("question", type(question).__name__, "a text, the user's question alone")
    if passages is None:
        return Answering(Stated(question))
    single = _passage_or_none(passages, convert)
    if single is not None:
        return Answering(Stated(question, (single,)))
    return Answering(Stated(question, tuple(_passage(one, convert) for one in passages)))


def _passage_or_none(value: object, convert: Callable[[object], Passage | None]) -> Passage | None:
    if isinstance(value, Passage):
        return value
    return Passage(value) if isinstance(value, str) else convert(value)


def _passage(value: object, convert: Callable[[object], Passage | None]) -> Passage:
    passage = _passage_or_none(value, convert)
    if passage is None:
        raise OptionError("passages", type(value).__name__, "texts, Passage, and documents or nodes of the framework")
    return passage
