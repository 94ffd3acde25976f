"""The contract that every adapter keeps, as checks that an adapter's own tests can run.

A test supplies a `Driver`, which asks its framework one question under a guard. `checks_for` returns the checks that
the driver's abilities allow; each raises `AssertionError` with what went wrong. No test framework is needed:

    >>> for check in checks_for(MyDriver()):  # doctest: +SKIP
    ...     check()

What is checked: no text of a withheld answer reaches the caller or a log without texts, copies beside the answer
included, while question and passages stay; text beside requests for tools is treated as the policy says; the policy's
`on_error` decides about an answer that cannot be judged; fallbacks and retries are carried out; cancelling ends the
scoring and the question; the time limit holds; an answer has the same confidence as in every other adapter; requests
for tools pass.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from typing_extensions import override

from semgrad_guard.adapter_kit.contract_case import (
    ABSTAIN,
    ALSO_DOUBTFUL,
    BROKEN_ARGUMENTS,
    BROKEN_REQUEST,
    DOUBTFUL,
    FALLBACK,
    GOOD,
    LONG,
    PENDING,
    QUESTION,
    TOOL,
    TOOL_REQUEST,
    UNCHECKED,
    Ability,
    AnswerScorer,
    Case,
    Driver,
    ListQueue,
    ListSink,
    Reply,
    Writer,
    copies_of,
    doubt,
    reachable,
)
from semgrad_guard.adapter_kit.options import check_option
from semgrad_guard.errors import EmptyAnswerError, LowConfidenceError, ScoringError
from semgrad_guard.telemetry.jsonl import JsonlSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet

    from semgrad_guard.flow import Record

__all__ = [
    "BROKEN_ARGUMENTS",
    "BROKEN_REQUEST",
    "FALLBACK",
    "TOOL",
    "TOOL_REQUEST",
    "Ability",
    "Case",
    "Check",
    "Driver",
    "Reply",
    "Writer",
    "checks_for",
    "copies_of",
    "reachable",
]

LIMIT_S = 0.2
"""Time limit of a question whose scorer is too slow."""
SLACK_S = 3.0
"""Seconds that an adapter may take beside the time limit, and after it was cancelled."""
PATIENCE_S = 20.0
"""Seconds after which a check that waits is given up."""


def _logged(record: Record) -> str:
    """Return what a file of records holds where the policy says `log_text: false`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        JsonlSink(path, log_text=False).emit(record)
        return path.read_text()


def _only_record(case: Case, what: str) -> Record:
    records = case.sink.records
    _require(len(records) == 1, f"{what}: a question has one record, here it has {len(records)}")
    return records[0]


def _require(condition: object, what: str, *about: object) -> None:
    if not condition:
        raise AssertionError(f"{what}: {', '.join(map(repr, about))}" if about else what)


def _reply(driver: Driver, case: Case, *, asynchronous: bool) -> Reply:
    return asyncio.run(driver.aask(case)) if asynchronous else driver.ask(case)


def _found(reply: Reply, what: str, **expected: object) -> None:
    """Require that the findings say so, where the form has a place for them."""
    if reply.findings is not None:
        found = {key: reply.findings.get(key) for key in expected}
        _require(found == expected, f"{what}: the findings are wrong (found, expected)", found, expected)


# --- the checks -------------------------------------------------------------------------------------------------------


def check_nothing_leaks(driver: Driver, *, asynchronous: bool) -> None:
    """Nothing that the caller can read, and nothing logged without texts, holds a word of a withheld answer."""
    for what, case in _withheld(driver):
        withheld = _raised if case.raises else _shown
        reply = withheld(driver, case, what, asynchronous=asynchronous)
        readable = f"{reply.text}\n{json.dumps(reply.findings, default=repr)}\n{reply.everything}".casefold()
        logged = _logged(_only_record(case, what)).casefold()
        for word in f"{DOUBTFUL} {ALSO_DOUBTFUL}".replace(".", "").casefold().split():
            _require(word not in readable, f"{what}: the caller can read a word of a withheld answer", word)
            _require(word not in logged, f"{what}: a word of a withheld answer is in the log", word)


def check_no_copies(driver: Driver, *, asynchronous: bool) -> None:
    """Copies of a withheld answer beside it are left out, and the findings name their places."""
    for answer in (DOUBTFUL, LONG):
        case = Case(model=Writer([answer]), scorer=AnswerScorer({answer: 0.9}), copies=True)
        reply = _shown(driver, case, "copies", asynchronous=asynchronous)
        readable = f"{reply.text}\n{json.dumps(reply.findings, default=repr)}\n{reply.everything}".casefold()
        for word in answer.replace(".", "").casefold().split():
            _require(word not in readable, "copies: the caller can read a word of a withheld answer", word)
        left_out = reply.findings.get("left_out") if reply.findings is not None else ["unknown"]
        _require(left_out, "copies: the findings name no place that was left out")
        given = replace(case, scorer=AnswerScorer({answer: 0.1}), model=Writer([answer]), sink=ListSink())
        reply = _reply(driver, given, asynchronous=asynchronous)
        _require(answer in reply.everything, "copies: an answer that was given is left out")
        _found(reply, "copies of an answer that was given", left_out=[])


MEASURING: dict[str, object] = {"accept": 0, "otherwise": "give", "on_error": "give", "on_uncalibrated": "give"}
"""The policy of a guard that changes no answer."""


def check_measuring(driver: Driver, *, asynchronous: bool) -> None:
    """A guard that only measures changes nothing: doubtful answers, copies, text beside tools, scorers that fail."""
    has_copies = "copies" in driver.abilities
    accepted = Case(model=Writer([LONG]), scorer=AnswerScorer({LONG: 0.1}), copies=has_copies)
    before = _reply(driver, accepted, asynchronous=asynchronous)
    for what, value in (("doubtful", 0.9), ("not judged", ScoringError("the model is gone"))):
        scorer = AnswerScorer({LONG: value})
        case = replace(accepted, model=Writer([LONG]), scorer=scorer, policy=MEASURING, sink=ListSink())
        reply = _reply(driver, case, asynchronous=asynchronous)
        _require(reply.text == before.text == LONG, f"measuring, {what}: another answer was given", reply.text)
        _found(reply, f"measuring, {what}", withheld=False, left_out=[])
        for copy in _strings(copies_of(LONG)):
            _require(
                copy in reply.everything or copy not in before.everything, f"measuring, {what}: a copy is gone", copy
            )
    if "tool_text" in driver.abilities:
        writer = Writer([f"{DOUBTFUL}{TOOL_REQUEST}", GOOD])
        case = Case(model=writer, scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.9}), policy=MEASURING)
        reply = _reply(driver, case, asynchronous=asynchronous)
        for text in (DOUBTFUL, TOOL):
            _require(text in reply.everything, "measuring, beside tools: a text was left out", text)


def _strings(value: object) -> Iterator[str]:
    """Yield the texts in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def check_passages_stay(driver: Driver, *, asynchronous: bool) -> None:
    """A withheld answer that is a word of the question and of passages takes neither away."""
    answer = "Radium"
    policy: dict[str, object] = {"accept": 0.7}
    given = Case(model=Writer([answer]), scorer=AnswerScorer({answer: 0.1}), policy=policy)
    before = _reply(driver, given, asynchronous=asynchronous).everything
    held = replace(given, model=Writer([answer]), scorer=AnswerScorer({answer: 0.9}), sink=ListSink())
    after = _shown(driver, held, "passages", asynchronous=asynchronous).everything
    for text in (QUESTION, *(passage.text for passage in given.scorer.seen[0].passages)):
        _require(text in after or text not in before, "passages: a withheld answer took a text from before away", text)


def _shown(driver: Driver, case: Case, what: str, *, asynchronous: bool) -> Reply:
    reply = _reply(driver, case, asynchronous=asynchronous)
    _require(reply.text in {ABSTAIN, PENDING}, f"{what}: the answer was not withheld", reply.text)
    _found(reply, what, withheld=True)
    return reply


def _raised(driver: Driver, case: Case, what: str, *, asynchronous: bool) -> Reply:
    try:
        reply = _reply(driver, case, asynchronous=asynchronous)
    except LowConfidenceError as error:
        return Reply(text="", findings=None, everything=reachable(error))
    msg = f"{what}: LowConfidenceError was not raised, but this was given: {reply.text!r}"
    raise AssertionError(msg)


def _withheld(driver: Driver) -> Iterator[tuple[str, Case]]:
    """Yield the ways in which an answer is withheld, after a fallback's answer where the driver has one."""
    steps: list[object] = [{"fallback_model": FALLBACK}] if "fallback" in driver.abilities else []
    review: list[object] = [*steps, "human_review"]

    def case(
        escalate: list[object], first: Exception | float = 0.9, then: Exception | float = 0.8, **options: Any
    ) -> Case:
        policy = {"escalate": escalate, "on_error": options.pop("on_error", "abstain")}
        scorer = AnswerScorer({DOUBTFUL: first, ALSO_DOUBTFUL: then})
        return Case(model=Writer([DOUBTFUL]), fallback=Writer([ALSO_DOUBTFUL]), scorer=scorer, policy=policy, **options)

    def repeats() -> Exception:
        return RuntimeError(f"INSERT failed: {json.dumps({'answer': DOUBTFUL})} {ALSO_DOUBTFUL!r}")

    yield "abstain", case(steps)
    yield "human review", case(review)
    yield "on_error: abstain", case(steps, repeats())
    yield "on_error: human_review", case(steps, repeats(), on_error="human_review")
    if "fallback" in driver.abilities:
        yield "on_error after a fallback", case(steps, then=repeats())
    if "queue" in driver.abilities:
        yield "a queue that fails", case(review, queue=ListQueue(fault=repeats()))
    if "raise" in driver.abilities:
        yield "raising", case(steps, raises=True)
        yield "raising after an error", case(steps, repeats(), raises=True)


def check_on_error(driver: Driver, *, asynchronous: bool) -> None:
    """An answer that cannot be scored is treated as the policy's `on_error` says, and nothing is raised."""
    texts = {
        "abstain": (ABSTAIN, "abstained"),
        "human_review": (PENDING, "pending"),
        "answer_with_warning": (DOUBTFUL if "field" in driver.abilities else f"{UNCHECKED}\n\n{DOUBTFUL}", "warned"),
    }
    for on_error, (text, status) in texts.items():
        for error in (RuntimeError("the device is gone"), EmptyAnswerError()):
            what = f"on_error: {on_error} after {type(error).__name__}"
            scorer = AnswerScorer({DOUBTFUL: error})
            case = Case(model=Writer([DOUBTFUL]), scorer=scorer, policy={"on_error": on_error})
            reply = _reply(driver, case, asynchronous=asynchronous)
            _require(reply.text == text, f"{what}: another text was given (given, expected)", reply.text, text)
            _found(reply, what, rule="on_error", status=status, confidence=None)
            record = _only_record(case, what)
            _require(record.status == status, f"{what}: the record has another status", record.status)
            types = {failure.type for failure in record.failures}
            _require(type(error).__name__ in types, f"{what}: the record does not name the error", types)
            if on_error == "human_review" and "queue" in driver.abilities:
                _require([item.answer for item in case.queue.items] == [DOUBTFUL], f"{what}: the queue got no answer")


def check_small_answers(driver: Driver, *, asynchronous: bool) -> None:
    """An answer of one small word, or of a sign, is an answer: it is judged, and given where the policy allows it."""
    for answer in ("No", "0", "Yes.", "It is not.", "A", "?"):
        case = Case(model=Writer([answer]), scorer=AnswerScorer({answer: 0.1}))
        reply = _reply(driver, case, asynchronous=asynchronous)
        judged = [exchange.answer for exchange in case.scorer.seen]
        _require(judged == [answer], "small answers: it was not judged, or something else was", answer, judged)
        _require(reply.text == answer, "small answers: it was not given", answer, reply.text)
        _found(reply, "small answers", status="answered", confidence=0.9)


def check_fallback(driver: Driver, *, asynchronous: bool) -> None:
    """A fallback's better answer takes the place of a doubtful one; a fallback that raises is skipped and recorded."""
    policy, what = {"escalate": [{"fallback_model": FALLBACK}]}, "fallback"
    case = Case(model=Writer([DOUBTFUL]), scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}), policy=policy)
    reply = _reply(driver, case, asynchronous=asynchronous)
    _require(reply.text == GOOD, f"{what}: its answer was not given", reply.text)
    _found(reply, what, n_attempts=2, withheld=False, status="answered")
    _require((case.model.calls, case.fallback.calls) == (1, 1), f"{what}: not each model was asked once")

    what = "a fallback that raises"
    case = replace(case, model=Writer([DOUBTFUL]), fallback=Writer([ConnectionError("no route")]), sink=ListSink())
    reply = _reply(driver, case, asynchronous=asynchronous)
    _require(reply.text == ABSTAIN, f"{what}: the ladder did not go on", reply.text)
    _found(reply, what, n_attempts=1, withheld=True, rule="otherwise")
    stages = [failure.stage for failure in _only_record(case, what).failures]
    _require(stages == ["fallback_model"], f"{what}: the record does not tell so", stages)


def check_retry(driver: Driver, *, asynchronous: bool) -> None:
    """A retry retrieves and asks the framework's own model once more."""
    policy = {"escalate": [{"retry_retrieval": {"top_k": 4}}]}
    case = Case(model=Writer([DOUBTFUL, GOOD]), scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}), policy=policy)
    reply = _reply(driver, case, asynchronous=asynchronous)
    _require(reply.text == GOOD, "retry: the new answer was not given", reply.text)
    _found(reply, "retry", n_attempts=2, withheld=False)
    _require(case.model.calls == 2, "retry: the model was not asked twice", case.model.calls)
    first, last = (len(exchange.passages) for exchange in case.scorer.seen)
    _require(last > first, "retry: no more passages were read (before, then)", first, last)


def check_cancel(driver: Driver, *, asynchronous: bool) -> None:
    """Cancelling the task that asks ends the scoring, and no step of the policy follows."""
    _require(asynchronous, "cancel: only an asynchronous call can be cancelled")
    steps = [{"fallback_model": FALLBACK}] if "fallback" in driver.abilities else []
    policy = {"escalate": [*steps, "human_review"], "on_error": "human_review"}
    scorer = AnswerScorer(waits=True)
    case = Case(model=Writer([DOUBTFUL]), scorer=scorer, policy=policy)

    async def cancelled() -> None:
        task = asyncio.create_task(driver.aask(case))
        try:
            _require(await asyncio.to_thread(scorer.begun.wait, PATIENCE_S), "cancel: nothing was scored")
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=SLACK_S)
            _require(done, "cancel: the task goes on")
            _require(task.cancelled(), "cancel: the task did not end as a cancelled one")
            _require(await asyncio.to_thread(scorer.cancelled.wait, SLACK_S), "cancel: the scoring goes on")
        finally:
            scorer.released.set()

    asyncio.run(cancelled())  # returns when the threads have ended
    followed = (case.fallback.calls, len(case.queue.items), len(case.sink.records))
    _require(followed == (0, 0, 0), "cancel: something followed (fallbacks, items for review, records)", *followed)


def check_time_limit(driver: Driver, *, asynchronous: bool) -> None:
    """A scorer that is slower than the time limit ends in `on_error`, about when the time is up."""
    scorer = AnswerScorer(waits=True)
    case = Case(model=Writer([DOUBTFUL]), scorer=scorer, budget_s=LIMIT_S)
    timer = threading.Timer(PATIENCE_S, scorer.released.set)
    timer.start()
    try:
        reply = _reply(driver, case, asynchronous=asynchronous)
        took_s = time.monotonic() - scorer.begun_at
    finally:
        timer.cancel()
        scorer.released.set()
    _require(reply.text == ABSTAIN, "time limit: the answer was not held back", reply.text)
    _found(reply, "time limit", rule="on_error", withheld=True)
    _require(took_s < LIMIT_S + SLACK_S, "time limit: the caller had to wait (seconds, limit)", took_s, LIMIT_S)


def check_confidence(driver: Driver, *, asynchronous: bool) -> None:
    """An answer to a question has the same confidence in every adapter, in the findings and in its one record."""
    for answer in (GOOD, DOUBTFUL, "Radium was discovered by Marie and Pierre Curie, in 1898."):
        case = Case(model=Writer([answer]), scorer=AnswerScorer(), policy={"accept": 0.0})
        reply = _reply(driver, case, asynchronous=asynchronous)
        expected = 1 - doubt(QUESTION, answer)
        _require(reply.text == answer, "confidence: the answer was changed", reply.text, answer)
        _found(reply, "confidence", confidence=expected, status="answered", withheld=False)
        recorded = [a.decision.confidence.value for a in _only_record(case, "confidence").attempts]
        _require(recorded == [expected], "confidence: another one was recorded", recorded, expected)


def check_tool_request(driver: Driver, *, asynchronous: bool) -> None:
    """A request for a tool is no answer: it passes as it is, and only what follows is judged."""
    scorer = AnswerScorer({GOOD: 0.1, "": 0.9})
    case = Case(model=Writer([TOOL_REQUEST, GOOD]), scorer=scorer)
    reply = _reply(driver, case, asynchronous=asynchronous)
    _require(reply.text in {"", GOOD}, "tools: the request was replaced", reply.text)
    _require(TOOL in reply.everything, "tools: the request did not get through")
    judged = [exchange.answer for exchange in scorer.seen]
    _require(judged in ([], [GOOD]), "tools: the request was judged", judged)
    _require(judged or reply.findings is None, "tools: there are findings about the request", reply.findings)


def check_text_beside_tools(driver: Driver, *, asynchronous: bool) -> None:
    """Text beside a request for tools is judged, left out or passes, as the policy says, and is recorded."""
    cases = (("judge", DOUBTFUL, False), ("judge", GOOD, True), ("blank", GOOD, False), ("pass", DOUBTFUL, True))
    for handling, text, stays in cases:
        what = f"text beside tools: {handling}"
        scorer = AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1, "Done.": 0.1})
        case = Case(
            model=Writer([f"{text}{TOOL_REQUEST}", "Done."]), scorer=scorer, policy={"beside_tool_calls": handling}
        )
        reply = _reply(driver, case, asynchronous=asynchronous)
        _require(TOOL in reply.everything, f"{what}: the request did not get through")
        for word in text.replace(".", "").split():
            _require(
                (word in reply.everything) is stays, f"{what}: a word is (not) there (word, expected)", word, stays
            )
        judged = text in [exchange.answer for exchange in scorer.seen]
        _require(judged is (handling == "judge"), f"{what}: it was (not) judged", judged)
        recorded = [record for record in case.sink.records if record.beside_tool_calls is not None]
        _require([r.beside_tool_calls for r in recorded] == [handling], f"{what}: not recorded once", recorded)
        _require((recorded[0].status != "abstained") is stays, f"{what}: another status was recorded", recorded[0])


def check_broken_request(driver: Driver, *, asynchronous: bool) -> None:
    """A request for tools that cannot be read ends the question, so its message is judged as an answer."""
    for text in (DOUBTFUL, ""):
        scorer = AnswerScorer()
        case = Case(model=Writer([f"{text}{BROKEN_REQUEST}"]), scorer=scorer, policy={"accept": 1.0})
        reply = _shown(driver, case, "broken request", asynchronous=asynchronous)
        _require(BROKEN_ARGUMENTS not in reply.everything, "broken request: the request itself was given")
        _require(text not in reply.everything or not text, "broken request: its text was given")
        judged = [exchange.answer for exchange in scorer.seen]
        _require(judged == [text or BROKEN_ARGUMENTS], "broken request: something else was judged", judged)


_CHECKS: tuple[tuple[Callable[..., None], AbstractSet[str]], ...] = (
    (check_nothing_leaks, frozenset()),
    (check_measuring, frozenset()),
    (check_passages_stay, frozenset()),
    (check_no_copies, frozenset({"copies"})),
    (check_small_answers, frozenset()),
    (check_on_error, frozenset()),
    (check_time_limit, frozenset()),
    (check_confidence, frozenset()),
    (check_fallback, frozenset({"fallback"})),
    (check_retry, frozenset({"retry"})),
    (check_tool_request, frozenset({"tools"})),
    (check_text_beside_tools, frozenset({"tool_text"})),
    (check_broken_request, frozenset({"broken_tools"})),
    (check_cancel, frozenset({"async", "cancel"})),
)
"""Each check with the abilities that it needs."""


@dataclass(frozen=True)
class Check:
    """One check of one driver; calling it raises `AssertionError` where the adapter breaks the contract."""

    driver: Driver
    check: Callable[..., None]
    asynchronous: bool

    def __call__(self) -> None:
        """Run the check."""
        self.check(self.driver, asynchronous=self.asynchronous)

    @override
    def __str__(self) -> str:
        name = self.check.__name__.removeprefix("check_")
        return f"{type(self.driver).__name__}-{name}-{'async' if self.asynchronous else 'sync'}"


def checks_for(driver: Driver) -> list[Check]:
    """Return the checks that a driver's abilities allow, for each way in which it can be called.

    Raises:
        OptionError: the driver names an ability that there is not; misspelt, it would leave checks out in silence.
    """
    for ability in driver.abilities:
        check_option("abilities", ability, get_args(Ability))
    ways = [way == "async" for way in ("sync", "async") if way in driver.abilities]
    return [
        Check(driver, check, asynchronous)
        for check, needed in _CHECKS
        for asynchronous in ways
        if needed <= driver.abilities and (check is not check_cancel or asynchronous)
    ]
