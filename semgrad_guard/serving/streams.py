"""Streamed answers: sent as they come, by sentence once the answer so far is good enough, or when all is judged."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from semgrad_guard.adapter_kit import ScoredAnswer
from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.serving.backend import in_own_thread
from semgrad_guard.serving.judged import Given, Question, Written
from semgrad_guard.serving.openai_forms import OWN, Fields, wants_usage
from semgrad_guard.serving.problems import Report, RequestError, TooSlowError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from semgrad_guard.serving.writers import Reply, Writer

T = TypeVar("T")
DONE = "data: [DONE]\n\n"
_LOOK_EVERY_S = 1.0


def event(fields: Fields) -> str:
    """Return one event of a stream."""
    return f"data: {json.dumps(fields)}\n\n"


async def checked(events: AsyncGenerator[str], may_go_on: Callable[[], bool]) -> AsyncGenerator[str]:
    """Yield events while the caller's key is valid, looked up once a second; errors become the last event."""
    looked_at = time.monotonic()
    async with aclosing(events):
        try:
            async for one in events:
                if time.monotonic() - looked_at > _LOOK_EVERY_S:
                    looked_at = time.monotonic()
                    if not may_go_on():
                        yield event({"error": {"message": "the key was revoked", "type": "authentication_error",
                                               "param": None, "code": "invalid_api_key"}})  # fmt: skip
                        return
                yield one
        except SemGradGuardError as error:
            yield event(Report.of(error).body())


async def whole_as_stream(question: Question, reply: Reply, given: Sequence[Given]) -> AsyncGenerator[str]:
    """Yield an answer that is judged already as a stream of a few pieces."""
    whole = question.response(reply.response, reply.written, given)
    around = {key: one for key, one in whole.items() if key not in {"choices", "usage", OWN}}
    around["object"] = question.dialect.piece_kind
    piece = question.dialect.piece
    for number, (one, was) in enumerate(zip(given, reply.written, strict=True)):
        yield event({**around, "choices": [piece(number, None)]})
        if one.text or was.tools:
            yield event({**around, "choices": [piece(number, one.text, None, was.tools)]})
        yield event({**around, "choices": [piece(number, None, one.finish or "stop")], OWN: one.tells})
    if wants_usage(question.body) and isinstance(whole.get("usage"), dict):
        yield event({**around, "choices": [], "usage": whole["usage"], OWN: given[0].tells})
    yield DONE


@dataclass(slots=True)
class _Heard:
    """What came of a stream so far."""

    question: Question
    texts: dict[int, str] = field(default_factory=dict[int, str])
    finish: dict[int, str] = field(default_factory=dict[int, str])
    tools: set[int] = field(default_factory=set[int])
    around: Fields = field(default_factory=dict[str, Any])
    scored: ScoredAnswer | None = None
    tail: list[Fields] = field(default_factory=list[Fields])
    """Pieces from the first end of a choice on, which wait for the judgement."""

    def hear(self, piece: Fields) -> bool:
        """Take a piece in, and return whether it belongs to the tail."""
        dialect = self.question.dialect
        self.around = {key: one for key, one in piece.items() if key not in {"choices", "usage"}}
        for choice in piece["choices"]:
            index = choice.get("index", 0)
            self.texts[index] = self.texts.get(index, "") + dialect.piece_text(choice)
            if dialect.asks_for_tools(choice):
                self.tools.add(index)
            if choice.get("finish_reason"):
                self.finish[index] = choice["finish_reason"]
        is_tail = bool(self.tail) or not piece["choices"] or bool(self.finish)
        if is_tail:
            self.tail.append(piece)
        return is_tail

    def written(self, index: int) -> Written:
        """Return a choice as it was written so far."""
        tools = True if index in self.tools else None
        return Written(self.texts.get(index, ""), self.finish.get(index), tools, self.scored)

    def judge(self, broken: RequestError | None, cancel: threading.Event) -> Given:
        """Return what the caller gets of the only choice; where the stream broke off, a fallback's answer."""
        if broken is not None:
            return self.question.elsewhere(broken, cancel)
        return self.question.judge(0, self.written(0), self.around, cancel)

    def tell(self, index: int, given: Given) -> None:
        """Put what is said of a choice into the pieces that end it."""
        for piece in self.tail:
            if any(choice.get("index", 0) == index and choice.get("finish_reason") for choice in piece["choices"]):
                piece[OWN] = given.tells
            if isinstance(piece.get("usage"), dict) and index == 0:
                piece["usage"] = {**piece["usage"], OWN: given.short}
                piece[OWN] = given.tells  # some clients keep the last piece alone
        if not any(OWN in piece for piece in self.tail):
            self.tail.append({**self.around, "choices": [], OWN: given.tells})


async def _heard(heard: _Heard, writer: Writer, ends_at: float) -> AsyncGenerator[Fields]:
    """Yield the pieces of a stream that do not belong to its tail."""
    async with aclosing(writer.pieces()) as pieces:
        while True:
            limit = asyncio.timeout(max(0.0, ends_at - time.monotonic()))
            try:
                async with limit:
                    piece = await anext(pieces, None)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise TooSlowError(heard.question.backend.settings.limits.seconds) from None
            if piece is None:
                return
            if isinstance(piece, ScoredAnswer):
                heard.scored = piece
            elif not heard.hear(piece):
                yield piece


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """Do work in a thread; closing the stream ends it."""
    cancel = threading.Event()
    try:
        return await in_own_thread(work, cancel)
    finally:
        cancel.set()


async def annotated(question: Question, writer: Writer) -> AsyncGenerator[str]:
    """Yield an answer as it comes; its last piece says how sure it is."""
    heard = _Heard(question)
    async for piece in _heard(heard, writer, _ends_at(question)):
        yield event(piece)
    for index in sorted(heard.texts):
        written = heard.written(index)

        def watch(cancel: threading.Event, index: int = index, written: Written = written) -> Given:
            return question.watch(index, written, heard.around, cancel)

        heard.tell(index, await _in_thread(watch))
    for piece in heard.tail:
        yield event(piece)
    yield DONE


async def by_sentence(question: Question, writer: Writer) -> AsyncGenerator[str]:
    """Yield each sentence once the answer up to its end is good enough; from the first that is not, wait for the end.

    What was sent cannot be taken back: the policy's text, or another model's answer, follows it after an empty line.
    So does a fallback's answer where the stream breaks off.
    """
    heard, dialect = _Heard(question), question.dialect
    sentences, broken = _Sentences(question, heard), None
    try:
        async with aclosing(_good_sentences(heard, sentences, writer)) as good:
            async for one in good:
                yield one
    except RequestError as error:
        if not (heard.around and error.may_differ_elsewhere):
            raise
        broken = error
    given = await _in_thread(lambda cancel: heard.judge(broken, cancel))
    if rest := sentences.rest_of(given.text):
        yield event({**heard.around, "choices": [dialect.piece(0, rest)]})
    yield event({**heard.around, "choices": [dialect.piece(0, None, given.finish or "stop")], OWN: given.tells})
    for piece in heard.tail:
        if isinstance(piece.get("usage"), dict) and not piece["choices"]:
            yield event({**piece, "usage": {**piece["usage"], OWN: given.short}, OWN: given.tells})
    yield DONE


async def _good_sentences(heard: _Heard, sentences: _Sentences, writer: Writer) -> AsyncGenerator[str]:
    """Yield the opening of an answer, and each of its sentences as long as the answer up to there is good enough."""
    dialect, is_begun = heard.question.dialect, False
    async for _ in _heard(heard, writer, _ends_at(heard.question)):
        if not is_begun:
            is_begun = True
            yield event({**heard.around, "choices": [dialect.piece(0, None)]})
        if good := await sentences.next_good():
            yield event({**heard.around, "choices": [dialect.piece(0, good)]})


@dataclass(slots=True)
class _Sentences:
    """Which part of a streamed answer may be sent."""

    question: Question
    heard: _Heard
    sent: int = 0
    """Characters that were sent."""
    is_open: bool = True
    """Whether every part so far was good enough."""

    async def next_good(self) -> str:
        """Return what may be sent now: whole sentences, if the answer up to there is good enough."""
        from semgrad_guard.scoring.texts.spans import sentence_spans  # loads torch

        text = self.heard.texts.get(0, "")
        end = max((end for _, end in sentence_spans(text)[:-1]), default=0) if self.is_open else 0
        if end <= self.sent:
            return ""
        so_far = replace(self.heard.written(0), text=text[:end], scored=None)
        candidate = self.question.candidate(0, so_far, self.heard.around)
        self.is_open = await _in_thread(lambda cancel: self.question.is_good(candidate, cancel))
        if not self.is_open:
            return ""
        good, self.sent = text[self.sent : end], end
        return good

    def rest_of(self, text: str) -> str:
        """Return what follows the part that was sent, for the whole text that the caller is to get."""
        before = self.heard.texts.get(0, "")[: self.sent]
        return text[self.sent :] if text.startswith(before) else f"\n\n{text}"


def _ends_at(question: Question) -> float:
    return time.monotonic() + question.backend.settings.limits.seconds
