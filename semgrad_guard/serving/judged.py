"""Completions under the guard: what was written becomes what the caller gets, with its confidence beside it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from semgrad_guard.adapter_kit import Candidate, findings, judge_beside_tools, observe, run_guard, text_for
from semgrad_guard.errors import ScoringError, UnansweredError
from semgrad_guard.flow import RUN_KEY, Exchange
from semgrad_guard.routing import Resources
from semgrad_guard.serving.openai_forms import OWN, Dialect, Fields, Options, bare, frame, is_text_format
from semgrad_guard.wire import RunRef, answered_attempt, score_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from semgrad_guard.adapter_kit import ScoredAnswer
    from semgrad_guard.flow import Outcome
    from semgrad_guard.ports import AnswerModel
    from semgrad_guard.serving.backend import Backend
    from semgrad_guard.serving.problems import RequestError

_SHOWN = (
    "confidence", "status", "withheld", "rule", "why", "confidence_why", "warning", "review_id", "error", "author",
    "scorer", "proxy", "method", "score", "n_attempts",
)  # fmt: skip
"""Findings that a response tells."""
WITHHELD = "content_filter"
"""`finish_reason` of an answer that the policy holds back."""


@dataclass(frozen=True, slots=True)
class Written:
    """One choice as the model wrote it."""

    text: str
    finish: str | None = None
    tools: Any = None
    """Its calls of tools, if it asks for any."""
    scored: ScoredAnswer | None = None
    """What a local model knows of it, with the score that was taken while it was written."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller gets in place of one choice."""

    text: str
    finish: str | None
    tells: Fields
    """What is said of it under `semgrad`."""
    is_changed: bool
    author: str | None = None
    """Name of another model, where another one's answer is given."""

    @property
    def short(self) -> Fields:
        """Confidence and decision alone."""
        return {key: self.tells[key] for key in ("confidence", "decision")}

    @property
    def headers(self) -> dict[str, str]:
        """The same as headers of the response."""
        confidence, decision = self.tells["confidence"], self.tells["decision"]
        found = {} if confidence is None else {"x-semgrad-confidence": f"{confidence:.4f}"}
        return found | ({} if decision is None else {"x-semgrad-decision": decision})


@dataclass(slots=True)
class Question:
    """One request for completions, and how its answers are judged."""

    backend: Backend
    dialect: Dialect
    body: Fields
    options: Options
    fallbacks: Mapping[str, AnswerModel] = field(default_factory=dict[str, "AnswerModel"])
    traceparent: str | None = None

    @property
    def wants_json(self) -> bool:
        """Whether a program reads the answer, so that no warning may be put before it."""
        return not is_text_format(self.body.get("response_format"))

    def candidate(self, number: int, written: Written, response: Mapping[str, Any]) -> Candidate:
        """Return one choice as an answer to judge, or why it cannot be judged."""
        prompt, unread = self.dialect.prompt(self.body, number)
        response_id, model = response.get("id"), response.get("model")
        run = RunRef(response_id=str(response_id) if response_id else None, traceparent=self.traceparent)
        exchange = self.options.apply(
            Exchange(
                prompt=prompt,
                answer=written.text,
                author=str(model) if model else None,
                on_policy=self.backend.settings.own_weights,
                metadata={RUN_KEY: run.fields()},
            )
        )
        if written.scored is not None:
            return Candidate(_as_written(exchange, written.scored))
        if unread:
            return Candidate(exchange, ScoringError(f"the prompt has parts that the scorer cannot read: {unread}"))
        try:
            self.backend.check_length(exchange)
        except ScoringError as error:
            return Candidate(exchange, error)
        return Candidate(exchange)

    def judge(
        self, number: int, written: Written, response: Mapping[str, Any], cancel: threading.Event | None = None
    ) -> Given:
        """Return what the caller gets of one choice; what the policy says is carried out."""
        candidate = self.candidate(number, written, response)
        if written.tools and not written.text:
            return self._unjudged(written, "the model asks for tools and answers nothing yet")
        if written.tools:
            return self._given(judge_beside_tools(self.backend.guard, candidate, cancel), written)
        resources = Resources(fallbacks=self.fallbacks)
        return self._given(run_guard(self.backend.guard, candidate, resources, cancel), written)

    def elsewhere(self, error: RequestError, cancel: threading.Event | None = None) -> Given:
        """Return what the caller gets where the model's server gave no answer: a fallback's, judged.

        Raises:
            RequestError: (the given one) no fallback answered either, or what it answers could not be judged.
        """
        candidate = self.candidate(0, Written(""), {})
        if candidate.error is not None:
            raise error
        resources = Resources(fallbacks=self.fallbacks)
        try:
            outcome = self.backend.guard.run_unanswered(candidate.exchange, error, resources, cancel=cancel)
        except UnansweredError as unanswered:
            raise error.with_others(unanswered.others) from unanswered
        return self._given(outcome, Written("", "stop"))

    def no_reply(self) -> Fields:
        """Return the response that stands for one that never came, with a single choice."""
        name = str(self.body.get("model") or "")
        return {**frame(self.dialect, name, pieces=False), "choices": [self.dialect.choice(0, "", None)]}

    def unreadable(self, written: Written, response: Mapping[str, Any], error: ScoringError) -> Given:
        """Return what the caller gets of an answer whose prompt is not known: the policy's `on_error` decides."""
        exchange = self.options.apply(Exchange(answer=written.text, author=str(response.get("model") or "") or None))
        return self._given(run_guard(self.backend.guard, Candidate(exchange, error)), written)

    def watch(
        self, number: int, written: Written, response: Mapping[str, Any], cancel: threading.Event | None = None
    ) -> Given:
        """Return what is said of a choice that the caller has already; nothing of the policy is carried out."""
        if not written.text:
            return self._unjudged(written, "there is no text to judge")
        candidate = self.candidate(number, written, response)
        outcome = observe(self.backend.guard, candidate, cancel, beside_tools=bool(written.tools))
        return self._given(outcome, written, is_sent=True)

    def is_good(self, candidate: Candidate, cancel: threading.Event | None = None) -> bool:
        """Return whether an answer may be given as far as it is written; nothing is recorded."""
        if candidate.error is not None:
            return False
        decision = self.backend.guard.judge(candidate.exchange, cancel=cancel)
        return decision.step.ends_question and decision.action.value == "accept"

    def _given(self, outcome: Outcome, written: Written, *, is_sent: bool = False) -> Given:
        text = written.text if is_sent else text_for(outcome, is_field=self.wants_json)
        found = findings(outcome)
        decision = outcome.decision.action.value if self.backend.settings.has_policy else None
        self.backend.metrics.judged(outcome.confidence, decision)
        tells: Fields = {"decision": decision, **{key: found[key] for key in _SHOWN}}
        judged = answered_attempt(outcome.record) or outcome.attempts[-1]
        if self.options.signals:
            score = judged.decision.score if text == judged.exchange.answer else None  # of the text that is given
            tells |= {"signals": found["signals"], "scored": score_fields(score) if score is not None else None}
        other = outcome.exchange.author if outcome.exchange.attempt > 1 else None
        is_changed = text != written.text or other is not None
        finish = WITHHELD if outcome.withheld and not written.tools and not is_sent else written.finish
        return Given(text, "stop" if other and not outcome.withheld else finish, tells, is_changed, other)

    def _unjudged(self, written: Written, why: str) -> Given:
        tells: Fields = {"decision": None, **dict.fromkeys(_SHOWN), "withheld": False, "status": "unjudged", "why": why}
        if self.options.signals:
            tells |= {"signals": {}, "scored": None}
        return Given(written.text, written.finish, tells, is_changed=False)

    def response(self, raw: Mapping[str, Any], written: Sequence[Written], given: Sequence[Given]) -> Fields:
        """Return the response: as the model's server gave it, except where an answer's text is another one now."""
        changed = any(one.is_changed for one in given)
        whole = bare(raw) if changed else dict(raw)
        choices: list[Fields] = []
        for number, (one, was, original) in enumerate(zip(given, written, raw["choices"], strict=True)):
            index = original.get("index", number)
            choice = self.dialect.choice(index, one.text, one.finish, was.tools) if one.is_changed else dict(original)
            choices.append({**choice, OWN: one.tells} if len(given) > 1 else choice)
        author = next((one.author for one in given if one.author), None)
        whole |= {"choices": choices, OWN: given[0].tells, **({"model": author} if author else {})}
        if isinstance(whole.get("usage"), dict):
            whole["usage"] = {**whole["usage"], OWN: given[0].short}
        return whole


def _as_written(exchange: Exchange, scored: ScoredAnswer) -> Exchange:
    generated = scored.generated
    return replace(
        exchange,
        prompt_ids=generated.prompt_ids,
        answer_ids=generated.answer_ids,
        on_policy=True,
        score=scored.score,
    )
