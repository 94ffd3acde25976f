"""`POST /v1/score`: scores, confidences and decisions for answers that exist already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from semgrad_guard.context import with_context
from semgrad_guard.errors import ScoringError, SemGradGuardError
from semgrad_guard.flow import Progress
from semgrad_guard.guard.question_run import judge
from semgrad_guard.serving.backend import Backend
from semgrad_guard.serving.problems import problem_of
from semgrad_guard.wire import (
    ClaimForm,
    DecisionForm,
    FingerprintForm,
    ScoreForm,
    ScoreReply,
    ScoreRequest,
    ScoreResult,
    confidence_fields,
    score_fields,
)

if TYPE_CHECKING:
    import threading

    from semgrad_guard.flow import Decision, Exchange, Score

router = APIRouter(tags=["scores"])


def backend_of(request: Request) -> Backend:
    """Return the parts behind the routes."""
    backend: Backend = request.app.state.backend
    return backend


@router.post("/v1/score")
async def score(request: Request, body: ScoreRequest) -> ScoreReply:
    """Score answers: at most 256 at once, in the order of the request."""
    backend = backend_of(request)

    def work(cancel: threading.Event) -> ScoreReply:
        return _reply(backend, body, cancel)

    return await backend.work(request, work, body.timeout_s)


def _reply(backend: Backend, body: ScoreRequest, cancel: threading.Event) -> ScoreReply:
    exchanges = [_exchange(form.to_exchange()) for form in body.exchanges]
    scored = _scored(backend, exchanges, body, cancel)
    scorer = backend.by_claim if body.claims else backend.scorer
    return ScoreReply(
        model=scorer.name,
        fingerprint=FingerprintForm.model_validate(scorer.fingerprint(), from_attributes=True),
        results=tuple(
            _result(backend, exchange, one, by_claim=body.claims)
            for exchange, one in zip(exchanges, scored, strict=True)
        ),
    )


def _exchange(exchange: Exchange) -> Exchange:
    """Return an exchange with what its prompt shows; a score that a caller sends along is not believed."""
    return with_context(replace(exchange, score=None))


def _scored(
    backend: Backend, exchanges: list[Exchange], body: ScoreRequest, cancel: threading.Event
) -> list[Score | ScoringError]:
    found: dict[int, Score | ScoringError] = {}
    for number, exchange in enumerate(exchanges):
        try:
            backend.check_length(exchange)
        except ScoringError as error:
            found[number] = error
    pending = [number for number in range(len(exchanges)) if number not in found]
    scorer = backend.by_claim if body.claims else backend.scorer
    limit_s = backend.limit_s(body.timeout_s)
    scores = scorer.score_batch([exchanges[number] for number in pending], timeout_s=limit_s, cancel=cancel)
    found.update(zip(pending, scores, strict=True))
    return [found[number] for number in range(len(exchanges))]


def _result(backend: Backend, exchange: Exchange, scored: Score | ScoringError, *, by_claim: bool) -> ScoreResult:
    try:
        decision = judge(backend.guard.parts, exchange, Progress(), scored)
    except SemGradGuardError as error:  # a policy that refuses answers without a confidence
        return ScoreResult(id=exchange.id, error=problem_of(error))
    has_policy = backend.settings.has_policy
    action = decision.action.value if has_policy else None
    backend.metrics.judged(decision.confidence.value, action)
    told = DecisionForm(action=decision.action.value, rule=decision.rule, why=decision.why) if has_policy else None
    if isinstance(scored, ScoringError):
        return ScoreResult(id=exchange.id, decision=told, error=problem_of(scored))
    fields: dict[str, Any] = confidence_fields(decision.confidence)
    return ScoreResult(
        id=exchange.id,
        score=ScoreForm.model_validate(score_fields(decision.score or scored)),
        decision=told,
        claims=_claims(decision, exchange) if by_claim else None,
        **fields,
    )


def _claims(decision: Decision, exchange: Exchange) -> tuple[ClaimForm, ...]:
    spans = decision.score.spans if decision.score is not None else ()
    return tuple(
        ClaimForm(
            start=span.start,
            end=span.end,
            text=exchange.answer[span.start : span.end],
            confidence=span.confidence,
        )
        for span in spans
    )
