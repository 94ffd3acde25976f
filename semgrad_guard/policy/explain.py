"""Explains a policy in plain words: what it does with which answers, and what in it is probably a mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.policy.conditions import ALWAYS
from semgrad_guard.policy.decide import step_rule
from semgrad_guard.policy.fields import listed, mask_url
from semgrad_guard.policy.model import SHIPPED, RiskTarget
from semgrad_guard.policy.needs import needs_in_words
from semgrad_guard.policy.review import review_in_words
from semgrad_guard.policy.steps import FallbackModelStep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from semgrad_guard.policy.conditions import Match, When
    from semgrad_guard.policy.model import AcceptTarget, Override, Policy, ScorerSettings
    from semgrad_guard.policy.steps import EscalationStep


def notes(policy: Policy) -> list[str]:
    """Return warnings about a policy: defaults that matter, extreme values, and steps that are never reached."""
    found = [*_defaults(policy), *_extremes(policy)]
    found += _unreachable(policy.escalate, "escalate", policy.accept)
    for number, override in enumerate(policy.overrides):
        accept = policy.accept if override.accept is None else override.accept
        found += _unreachable(override.escalate or (), f"overrides[{number}].escalate", accept)
    return found


def _defaults(policy: Policy) -> Iterator[str]:
    if policy.source == SHIPPED:
        return
    given = policy.model_fields_set
    if "on_error" not in given:
        yield "`on_error` is not given, so it is `abstain`: an answer is held back when the guard itself fails"
    if "on_uncalibrated" not in given:
        yield "`on_uncalibrated` is not given, so it is `abstain`: an answer is held back when no profile fits"
    if "scorer" not in given:
        yield f"`scorer` is not given, so it is {policy.scorer.model} with the shipped profile {policy.scorer.profile}"


def _extremes(policy: Policy) -> Iterator[str]:
    if policy.accept == 0:
        yield "`accept: 0` gives every answer that has a confidence"
    if policy.accept == 1:
        yield "`accept: 1` gives an answer only at a confidence of exactly 1, which calibrated models hardly reach"
    if policy.profile is None:
        yield "`scorer.profile` is not given: no answer has a confidence, so `on_uncalibrated` decides every answer"
    answers_again = any(entry.spec.answers_again for _, entry in policy.escalation_steps())
    if policy.budget.attempts == 1 and answers_again:
        yield "`budget.attempts: 1` leaves no room for retries and fallbacks: the first answer is an attempt"
    if (policy.review.url or "").partition("?")[0] in {"sqlite://", "sqlite:///:memory:"}:
        yield "`review.url` is a database in memory: answers that wait for people are lost when the program ends"


def _unreachable(steps: tuple[EscalationStep, ...], place: str, accept: object) -> Iterator[str]:
    final: str | None = None
    for index, entry in enumerate(steps):
        rule, above = step_rule(f"{place}[{index}]", entry), entry.spec.when.above
        if final:
            yield f"{rule} is tried only if {final} failed, which always ends the question"
        if above is not None and isinstance(accept, float | int) and above >= accept:
            yield f"{rule} is never tried: at a confidence of at least {above:g} the answer is accepted"
        if not entry.spec.answers_again and entry.spec.when == ALWAYS:
            final = final or rule
        if isinstance(entry.spec, FallbackModelStep) and entry.spec.unscored:
            yield f"{rule} gives an answer that was not judged"


_OTHERWISE = {
    "abstain": "the answer is held back and the caller reads: {abstain}",
    "answer_with_warning": "the best answer is given with a warning",
    "give": "the best answer is given as it is; only its findings say that it is doubtful",
}
_ON_ERROR = {
    "abstain": "the answer is held back",
    "human_review": "a person decides; if the answer cannot be handed to a person, it is held back",
    "answer_with_warning": "the answer is given, marked as unchecked; it is held back if it was already judged too "
    "doubtful or meant for a person",
    "give": "the answer is given as it is, and its findings say what failed; it is held back if it was already judged "
    "too doubtful or meant for a person",
}
_ON_UNCALIBRATED = {
    "abstain": "the answer is held back",
    "warn": "the answer is given, marked as unchecked",
    "give": "the answer is given as it is, and its findings say why it has no confidence",
    "error": "an error is raised",
}
_BESIDE_TOOL_CALLS = {
    "judge": "is judged like an answer, and left out where an answer would not be given",
    "blank": "is left out",
    "pass": "is given unjudged",
}


def explain(policy: Policy) -> list[str]:
    """Return what a policy does, line by line; each line ends with its rule's name, and passwords are hidden."""
    lines = [
        f"{policy.source} (digest {policy.digest})",
        "",
        *_scoring(policy),
        "",
        f"{_accepted(policy.accept)} [accept]",
        *_escalation(policy.escalate, "escalate"),
        f"If no step is left, {_otherwise(policy.otherwise, policy.messages.abstain)} [otherwise]",
        *_budget(policy),
    ]
    for number, override in enumerate(policy.overrides):
        lines += ["", *_override(override, f"overrides[{number}]", policy.messages.abstain)]
    if len(policy.overrides) > 1:
        lines += ["", "If several overrides match, the first one that sets a key is used for that key."]
    lines += ["", *_failures(policy), "", *_places(policy)]
    if needed := needs_in_words(policy):
        lines += ["", *needed]
    found = notes(policy)
    return [*lines, "", "Notes:", *(f"  - {note}" for note in found)] if found else lines


def _who(scorer: ScorerSettings) -> str:
    return f"Model {scorer.model}" if scorer.url is None else f"The server at {mask_url(scorer.url)}"


def _scoring(policy: Policy) -> list[str]:
    scorer = policy.scorer
    per = " and of each sentence" if scorer.granularity == "sentence" else ""
    by_profile = f"Profile {policy.profile} turns it into" if policy.profile else "No profile turns it into"
    signal = "all signals, weighed by the profile" if scorer.method == "fused" else f"signal {scorer.method}"
    return [
        f"{_who(scorer)} scores the uncertainty of each answer{per} ({signal}).",
        f"{by_profile} a confidence: the probability that the answer is right.",
    ]


def _accepted(accept: AcceptTarget) -> str:
    if isinstance(accept, RiskTarget):
        rate, certainty = f"{accept.max_error_rate * 100:g} %", f"{(1 - accept.delta) * 100:g} %"
        return (
            f"An answer is given as it is when its confidence reaches the threshold (computed from the profile) at "
            f"which, with {certainty} certainty, at most {rate} of the accepted answers are wrong."
        )
    return f"An answer with a confidence of at least {accept:g} is given as it is."


def _escalation(steps: tuple[EscalationStep, ...], place: str) -> list[str]:
    if not steps:
        return ["Nothing is tried to improve any other answer."]
    tried = [f"  {i + 1}. {_step(entry)} [{step_rule(f'{place}[{i}]', entry)}]" for i, entry in enumerate(steps)]
    return ["Otherwise these steps are tried, in this order:", *tried]


def _step(entry: EscalationStep) -> str:
    when = _when(entry.spec.when)
    return f"{entry.spec.words()}{f' if {when}' if when else ''}"


def _when(when: When) -> str:
    conditions = [f"its confidence is below {when.below:g}"] if when.below is not None else []
    conditions += [f"its confidence is at least {when.above:g}"] if when.above is not None else []
    if when.suspicious_passages is not None:
        conditions.append(f"{'a' if when.suspicious_passages else 'no'} passage gives orders to the model")
    conditions += [f"a sentence is below {when.any_sentence_below:g}"] if when.any_sentence_below is not None else []
    conditions += [f"it is attempt {listed([str(n) for n in when.attempt], 'or')}"] if when.attempt else []
    return listed([*conditions, *_matching(when)])


def _matching(match: Match) -> list[str]:
    conditions = [f"it is tagged {listed(sorted(match.tags), 'or')}"] if match.tags else []
    metadata: Mapping[str, tuple[object, ...]] = match.metadata or {}
    return [*conditions, *(f"{key} is {listed([str(v) for v in values], 'or')}" for key, values in metadata.items())]


def _otherwise(otherwise: str, abstain: str) -> str:
    return _OTHERWISE[otherwise].format_map({"abstain": abstain})


def _override(override: Override, place: str, abstain: str) -> list[str]:
    lines = [f"For an answer, if {listed(_matching(override.match))}:"]
    if override.messages and override.messages.abstain:
        abstain = override.messages.abstain
    if override.accept is not None:
        lines.append(f"{_accepted(override.accept)} [{place}.accept]")
    if override.escalate is not None:
        lines += _escalation(override.escalate, f"{place}.escalate")
    if override.otherwise:
        lines.append(f"If no step is left, {_otherwise(override.otherwise, abstain)} [{place}.otherwise]")
    lines += _failures(override, f"{place}.")
    if override.messages:
        lines.append(f"Other words for {listed(sorted(override.messages.model_fields_set))}. [{place}.messages]")
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _budget(policy: Policy) -> list[str]:
    budget = policy.budget
    limits = [f"{budget.seconds:g} s"] if budget.seconds is not None else []
    limits += [f"{budget.attempts} attempts"] if budget.attempts is not None else []
    limits += [f"{budget.cost:g} cost units"] if budget.cost is not None else []
    if not limits:
        return []
    return [f"Retries and fallbacks stop after {listed(limits, 'or')}; review and the last step still happen. [budget]"]


def _failures(section: Policy | Override, place: str = "") -> list[str]:
    """Return what happens to answers that were not judged, and to texts that are none; what is not set is left out."""
    lines: list[str] = []
    if section.on_error:
        lines.append(f"If the guard itself fails, {_ON_ERROR[section.on_error]}. [{place}on_error]")
    if section.on_uncalibrated:
        without = "Without a confidence" if place else "Without a confidence (no profile fits)"
        lines.append(f"{without}, {_ON_UNCALIBRATED[section.on_uncalibrated]}. [{place}on_uncalibrated]")
    if section.beside_tool_calls:
        does = _BESIDE_TOOL_CALLS[section.beside_tool_calls]
        lines.append(f"Text that comes with requests for tools {does}. [{place}beside_tool_calls]")
    return lines


def _places(policy: Policy) -> list[str]:
    telemetry = policy.telemetry
    sinks = ["LangSmith"] if telemetry.langsmith else []
    sinks += ["OpenTelemetry"] if telemetry.otel else []
    sinks += [f"the file {telemetry.jsonl}"] if telemetry.jsonl else []
    texts = "with prompts and answers" if telemetry.log_text else "without prompts and answers"
    logged = f"Decisions are logged to {listed(sinks)}, {texts}." if sinks else "Decisions are not logged anywhere."
    return [*review_in_words(policy.review), logged]
