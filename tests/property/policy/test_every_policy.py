"""Every policy that is accepted decides everything, ends, and never lets a doubtful answer out by accident."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from semgrad_guard.errors import PolicyFileError, UncalibratedError
from semgrad_guard.flow import (
    Accept,
    AnswerWithWarning,
    Attempt,
    Confidence,
    Decision,
    Exchange,
    Failure,
    Fingerprint,
    NewAttempt,
    Progress,
    Score,
    SpanScore,
)
from semgrad_guard.policy import PolicyDecider, default_text, explain, parse_policy, policy_from, policy_schema
from semgrad_guard.policy.model import MAX_LADDER

if TYPE_CHECKING:
    from semgrad_guard.policy import Policy

VALIDATOR = Draft202012Validator(policy_schema())
FINGERPRINT = Fingerprint(model="m", dtype="float32", template="t", settings="s")
TAGS = ["medical", "legal", "silent"]
HARD = settings(max_examples=150, deadline=None)

# --- policies as a file would hold them -------------------------------------------------------------------------------

probabilities = st.one_of(st.sampled_from([0, 0.0, 0.35, 0.5, 0.7, 1, 1.0]), st.floats(0, 1))
shares = st.floats(0.001, 0.999)
tags = st.one_of(st.sampled_from(TAGS), st.lists(st.sampled_from(TAGS), min_size=1, max_size=3))
scalars = st.one_of(st.sampled_from(["acme", 1, 1.5, True, None]))
metadata = st.dictionaries(
    st.sampled_from(["tenant", "n"]), scalars | st.lists(scalars, min_size=1, max_size=2), max_size=2
)
accepts = probabilities | st.fixed_dictionaries({"max_error_rate": shares}, optional={"delta": shares})


@st.composite
def whens(draw: st.DrawFn) -> dict[str, object]:
    """Conditions of a step."""
    when: dict[str, object] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "tags": tags,
                "metadata": metadata,
                "attempt": st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=2),
                "any_sentence_below": probabilities,
                "below": st.floats(0.5, 1),
                "above": st.floats(0, 0.49),
            },
        )
    )
    return when


new_attempt = {"when": whens(), "attempts": st.integers(1, 5), "cost": st.floats(0, 3), "timeout_s": st.floats(0.1, 9)}
retries = st.fixed_dictionaries(
    {},
    optional=new_attempt | {"top_k": st.integers(1, 20), "rewrite_query": st.booleans(), "drop_unused": st.booleans()},
)
fallbacks = st.fixed_dictionaries({"name": st.just("big")}, optional=new_attempt | {"unscored": st.booleans()})
reviews = st.fixed_dictionaries({}, optional={"when": whens(), "wait_s": st.floats(0, 9), "message": st.just("wait")})
steps = st.one_of(
    st.sampled_from(["human_review", "retry_retrieval"]),
    st.fixed_dictionaries({"retry_retrieval": st.none() | retries}),
    st.fixed_dictionaries({"fallback_model": st.just("big") | fallbacks}),
    st.fixed_dictionaries({"human_review": st.none() | reviews}),
)
ladders = st.lists(steps, max_size=5)
endings: dict[str, st.SearchStrategy[Any]] = {
    "escalate": ladders,
    "otherwise": st.sampled_from(["abstain", "answer_with_warning", "give"]),
    "on_error": st.sampled_from(["abstain", "human_review", "answer_with_warning", "give"]),
    "on_uncalibrated": st.sampled_from(["abstain", "warn", "give", "error"]),
    "beside_tool_calls": st.sampled_from(["judge", "blank", "pass"]),
}
matches = st.fixed_dictionaries({"tags": tags}, optional={"metadata": metadata}) | st.fixed_dictionaries(
    {"metadata": metadata}
)
overrides = st.fixed_dictionaries(
    {"match": matches, "accept": probabilities}, optional=endings
) | st.fixed_dictionaries({"match": st.fixed_dictionaries({"tags": tags}), "accept": accepts}, optional=endings)
budgets = st.fixed_dictionaries(
    {}, optional={"seconds": st.floats(0.1, 60), "attempts": st.integers(1, 6), "cost": st.floats(0, 6)}
)
contents = st.fixed_dictionaries(
    {
        "accept": accepts,
        "scorer": st.just({"granularity": "sentence", "profile": "p"}),
        "review": st.just({"url": "interrupt"}),
    },
    optional=endings | {"version": st.just(1), "overrides": st.lists(overrides, max_size=3), "budget": budgets},
)
policies = contents.map(policy_from)

# --- questions at any point -------------------------------------------------------------------------------------------

confidences = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.35, 0.5, 0.7, 1.0]))
any_confidences = confidences | st.sampled_from([math.nan, math.inf, -math.inf, -0.01, 1.01])
exchanges = st.builds(
    Exchange,
    answer=st.just("answer"),
    tags=st.frozensets(st.sampled_from(TAGS)),
    metadata=st.dictionaries(st.sampled_from(["tenant", "n"]), scalars, max_size=2),
    attempt=st.integers(1, 4),
)


def score(spans: list[float | None]) -> Score:
    """Return a score whose sentences have the given confidences."""
    parts = tuple(SpanScore(start=0, end=1, signals={}, confidence=value) for value in spans)
    return Score(method="m", value=1.0, signals={}, fingerprint=FINGERPRINT, model="m", spans=parts)


scores = st.builds(score, st.lists(any_confidences, max_size=3))


@st.composite
def progresses(draw: st.DrawFn, policy: Policy) -> Progress:
    """What may have happened before, possible or not."""
    rules = [f"{place}.{rung.name}" for place, rung in policy.escalation_steps()] or ["none"]
    attempts = [
        Attempt(exchange, Decision(step=Accept(), rule="r", why="", exchange_id=exchange.id, confidence=confidence))
        for exchange in draw(st.lists(exchanges, max_size=3))
        for confidence in [Confidence(value=draw(any_confidences))]
    ]
    return Progress(
        attempts=tuple(attempts),
        tried=draw(st.dictionaries(st.sampled_from(rules), st.integers(0, 6), max_size=3)),
        exhausted=draw(st.frozensets(st.sampled_from(rules), max_size=3)),
        elapsed_s=draw(st.floats(0, 100)),
        cost=draw(st.floats(0, 10)),
    )


def decider_of(policy: Policy) -> PolicyDecider:
    """Return a decider that keeps every error rate at a confidence of 0.6."""
    return PolicyDecider(policy, lambda _promise: 0.6)


# --- properties -------------------------------------------------------------------------------------------------------


@HARD
@given(contents, st.data())
def test_every_accepted_file_decides_every_confidence(content: dict[str, Any], data: st.DataObject) -> None:
    """No policy, confidence or history makes the decision itself fail."""
    policy = parse_policy(yaml.safe_dump(content))
    exchange, before = data.draw(exchanges), data.draw(progresses(policy))
    value = data.draw(any_confidences)
    decider = decider_of(policy)
    try:
        decision = decider.decide(exchange, data.draw(scores), Confidence(value=value), before)
    except UncalibratedError:
        assert value is None
        assert "error" in {policy.on_uncalibrated, *(o.on_uncalibrated for o in policy.overrides)}
        return
    assert decision.exchange_id == exchange.id
    assert decision.rule
    assert decision.why
    if isinstance(decision.step, Accept):
        assert value is not None
        assert 0 <= value <= 1
    decider.best(exchange, decision, before)


@HARD
@given(contents)
def test_reading_yaml_and_reading_data_agree(content: dict[str, Any]) -> None:
    """A policy written in Python means what the same file means."""
    from_text, from_data = parse_policy(yaml.safe_dump(content, sort_keys=False)), policy_from(content)
    assert from_text == from_data
    assert from_text.digest == from_data.digest
    assert explain(from_text) == explain(from_data)


@HARD
@given(contents)
def test_the_schema_accepts_what_the_parser_accepts(content: dict[str, Any]) -> None:
    """Editors must not mark a working policy as wrong."""
    policy_from(content)
    assert list(VALIDATOR.iter_errors(content)) == []


@HARD
@given(policies, st.data())
def test_more_confidence_never_worsens_the_action(policy: Policy, data: st.DataObject) -> None:
    """Nothing else changed, so an answer accepted at one confidence is accepted at every higher one."""
    exchange, before, spans = data.draw(exchanges), data.draw(progresses(policy)), data.draw(scores)
    low, high = sorted([data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))])
    decider = decider_of(policy)
    at_low, at_high = (decider.decide(exchange, spans, Confidence(value=v), before) for v in (low, high))
    assert isinstance(at_high.step, Accept) or not isinstance(at_low.step, Accept)


@HARD
@given(policies, st.data())
def test_every_question_ends_within_its_tries_and_its_budget(policy: Policy, data: st.DataObject) -> None:
    """Whatever retries bring, and whichever steps fail, the ladder has an end."""
    decider, exchange = decider_of(policy), data.draw(exchanges.filter(lambda e: e.attempt == 1))
    progress, tries = Progress(), 0
    value: float | None = data.draw(st.floats(0, 1))
    while True:
        decision = decider.decide(exchange, score([]), Confidence(value=value), progress)
        if not isinstance(decision.step, NewAttempt):
            break
        tries += 1
        assert tries <= MAX_LADDER
        tried = {**progress.tried, decision.rule: progress.tried.get(decision.rule, 0) + 1}
        elapsed_s = progress.elapsed_s + data.draw(st.floats(0, 5))
        if data.draw(st.booleans()):  # the step failed, or brought the same passages
            exhausted = progress.exhausted | {decision.rule}
            progress = Progress(attempts=progress.attempts, tried=tried, exhausted=exhausted, elapsed_s=elapsed_s)
            continue
        attempts = (*progress.attempts, Attempt(exchange, decision))
        progress = Progress(attempts=attempts, tried=tried, exhausted=progress.exhausted, elapsed_s=elapsed_s)
        exchange, value = exchange.next_attempt(prompt="", answer="again", passages=()), data.draw(confidences)
    if policy.budget.attempts is not None:
        assert len(progress.attempts) + 1 <= policy.budget.attempts


@HARD
@given(policies, st.data())
def test_a_failure_lets_out_nothing_that_was_judged_or_meant_for_a_person(policy: Policy, data: st.DataObject) -> None:
    """Failing closed, whatever `on_error` says."""
    exchange, before = data.draw(exchanges), data.draw(progresses(policy))
    stage = data.draw(st.sampled_from(["scoring", "calibration", "policy", "human_review"]))
    step = decider_of(policy).decide_failure(exchange, Failure(stage, "X", "x"), before).step
    assert not isinstance(step, Accept | NewAttempt)
    values = [attempt.decision.confidence.value for attempt in before.attempts]
    if stage == "human_review" or any(value is not None and 0 <= value <= 1 for value in values):
        assert not isinstance(step, AnswerWithWarning)


# --- files that are no policies ---------------------------------------------------------------------------------------

junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@HARD
@given(contents, junk, st.data())
def test_a_spoiled_policy_is_a_clear_error_or_still_a_policy(
    content: dict[str, Any], spoil: Any, data: st.DataObject
) -> None:
    """Nothing but `PolicyFileError` comes of a wrong value anywhere; what passes, the schema passes too."""
    content = copy.deepcopy(content)  # hypothesis hands out the same inner mappings again
    place: Any = content
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()) and isinstance(place, dict):
        key = data.draw(st.text(max_size=8))
    place[key] = spoil
    with suppress(PolicyFileError):
        policy_from(content)
        assert list(VALIDATOR.iter_errors(content)) == []


@HARD
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_any_text_is_a_policy_or_a_clear_error(text: str) -> None:
    """Reading must not crash on what is no YAML, or YAML of something else."""
    with suppress(PolicyFileError):
        parse_policy(text)


@HARD
@given(st.data())
def test_a_damaged_file_is_a_clear_error_or_still_a_policy(data: st.DataObject) -> None:
    """Half-saved, mistyped, merged badly: characters lost or put in anywhere."""
    text = default_text()
    start = data.draw(st.integers(0, len(text)))
    end = min(len(text), start + data.draw(st.integers(0, 40)))
    added = data.draw(st.text(alphabet=st.sampled_from(":-{}[]#&*!|>'\"%@`\t\n $<a1"), max_size=5))
    damaged = text[:start] + added + text[end:]
    assume(damaged != text)
    with suppress(PolicyFileError):
        explain(parse_policy(damaged, env={}))
