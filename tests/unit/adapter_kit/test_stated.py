"""`answering`: what a program states about its question."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.adapter_kit import NOTHING_STATED, Answer, ModelCall, answering, candidate_of, stated_here
from semgrad_guard.errors import OptionError
from semgrad_guard.flow import Exchange, Passage

if TYPE_CHECKING:
    from collections.abc import Iterator

FOUND = Exchange(prompt="Passage: one\nQuestion: Who?", answer="x")


def test_what_is_stated_takes_the_place_of_what_was_found() -> None:
    """The question alone, the passages alone, or both."""
    with answering(question="Why?"):
        seen = stated_here().apply(FOUND)
        assert (seen.question, [p.text for p in seen.passages], seen.passages_from) == ("Why?", ["one"], "prompt")
    with answering(passages=["two", Passage("three", "s"), "two"]):
        seen = stated_here().apply(FOUND)
        assert (seen.question, seen.passages) == ("Who?", (Passage("two"), Passage("three", "s")))
        assert seen.passages_from == "stated"
    assert stated_here() is NOTHING_STATED


def test_no_passages_at_all_can_be_stated() -> None:
    """Then the prompt is not searched for any."""
    with answering(passages=[]):
        assert stated_here().apply(FOUND).passages == ()


def test_the_inner_block_counts_more() -> None:
    """And what it leaves out is taken from the outer one; a block may be used again, also within itself."""
    block = answering(question="inner")
    with answering(question="outer", passages="one text"):
        with block, block:
            assert stated_here().question == "inner"
            assert stated_here().passages == (Passage("one text"),)
        assert stated_here().question == "outer"
        with block:
            assert stated_here().question == "inner"


def test_an_error_ends_the_block_too() -> None:
    """The next question must not be judged by this one's passages."""
    with pytest.raises(RuntimeError), answering(question="Who?"):
        raise RuntimeError
    assert stated_here() is NOTHING_STATED


async def test_each_task_states_its_own() -> None:
    """A server answers many people at once, in tasks and in the threads that these start."""

    async def ask(question: str) -> list[str | None]:
        with answering(question=question):
            await asyncio.sleep(0)
            here = stated_here().question
            return [here, (await asyncio.to_thread(stated_here)).question]

    assert await asyncio.gather(*(ask(f"q{i}") for i in range(20))) == [[f"q{i}"] * 2 for i in range(20)]


def test_a_generator_that_several_threads_read_can_be_left() -> None:
    """Web servers read a stream's pieces in whatever thread is free, each with its own context."""

    def stream() -> Iterator[str]:
        with answering(question="Who?"):
            yield "a"
            yield "b"

    pieces = stream()
    with ThreadPoolExecutor(1) as pool:
        read = [pool.submit(contextvars.copy_context().run, next, pieces, None).result() for _ in range(3)]
    assert read == ["a", "b", None]
    assert stated_here() is NOTHING_STATED


@pytest.mark.parametrize("passages", [[1], ["a", None], [{"text": "a"}]])
def test_what_is_no_text_is_refused_at_once(passages: list[object]) -> None:
    """Not at the first answer."""
    with pytest.raises(OptionError) as raised:
        answering(passages=passages)
    assert raised.value.option == "passages"
    with pytest.raises(OptionError, match="question='int'"):
        answering(question=1)  # type: ignore[arg-type]


def test_a_pipeline_of_ones_own_is_judged_by_what_is_stated() -> None:
    """The kit's way from a value to an exchange knows the block."""
    with answering(question="Why?", passages=["two"]):
        seen = candidate_of(Answer(text="x"), [ModelCall(prompt=FOUND.prompt, text="x")], question="Who?").exchange
    assert (seen.question, seen.passages, seen.passages_from) == ("Why?", (Passage("two"),), "stated")
