"""`policy check` says in words what a policy does, and what in it is probably not meant."""

from __future__ import annotations

from textwrap import dedent

import pytest

from semgrad_guard.policy import explain, load_policy, parse_policy
from semgrad_guard.policy.explain import notes
from semgrad_guard.policy.fields import listed, mask_url, versus

EVERYTHING = """
    accept: {max_error_rate: 0.1, delta: 0.05}
    scorer: {model: m, granularity: sentence, profile: p}
    escalate:
      - retry_retrieval: {top_k: 8, rewrite_query: true, retriever: wide, drop_unused: true, attempts: 2}
      - fallback_model: {name: big, unscored: true, when: {tags: [b, a], metadata: {n: [1, 2]}, attempt: [1, 2]}}
      - human_review: {wait_s: 5, when: {above: 0.1, below: 0.3, any_sentence_below: 0.2}}
    otherwise: answer_with_warning
    overrides:
      - match: {tags: medical}
        accept: 0.9
        escalate: []
        otherwise: abstain
        on_error: human_review
        on_uncalibrated: error
        beside_tool_calls: pass
        messages: {abstain: SORRY}
      - {match: {metadata: {tenant: acme}}, escalate: [human_review]}
    budget: {seconds: 30, attempts: 4, cost: 9}
    on_error: answer_with_warning
    on_uncalibrated: abstain
    review: {url: "sqlite:///review.db"}
    beside_tool_calls: blank
    telemetry: {langsmith: true, otel: true, jsonl: a.jsonl, log_text: true}
"""


SHIPPED_IN_WORDS = """
the shipped policy (digest {digest})

Model smollm2-135m scores the uncertainty of each answer (all signals, weighed by the profile).
Profile proxy turns it into a confidence: the probability that the answer is right.

An answer with a confidence of at least 0.7 is given as it is. [accept]
Otherwise these steps are tried, in this order:
  1. retrieve 8 passages and answer again [escalate[0].retry_retrieval]
If no step is left, the answer is held back and the caller reads: I am not sure enough to answer that. [otherwise]
Retries and fallbacks stop after 60 s or 4 attempts; review and the last step still happen. [budget]

If the guard itself fails, the answer is held back. [on_error]
Without a confidence (no profile fits), the answer is held back. [on_uncalibrated]
Text that comes with requests for tools is judged like an answer, and left out where an answer would not be given. \
[beside_tool_calls]

Decisions are not logged anywhere.

Needs, to answer again:
  - wrap(chain, retriever=...) [escalate[0].retry_retrieval]
"""


def test_what_the_code_must_give_is_said() -> None:
    """Whoever writes the file is not always the one who calls `wrap`."""
    policy = parse_policy("""
        accept: 0.7
        escalate:
          - retry_retrieval: {retriever: wide}
          - retry_retrieval: {configurable: {k: 9}}
          - fallback_model: openai:gpt-4o
        overrides: [{match: {tags: a}, escalate: [{fallback_model: big}, retry_retrieval]}]
    """)
    text = "\n".join(explain(policy))
    needed = [
        "  - wrap(chain, retrievers={'wide': ...}) [escalate[0].retry_retrieval]",
        "  - wrap(chain) [escalate[1].retry_retrieval]",
        "  - wrap(chain) [escalate[2].fallback_model]",
        "  - wrap(chain, fallbacks={'big': ...}) [overrides[0].escalate[0].fallback_model]",
        "  - wrap(chain, retriever=...) [overrides[0].escalate[1].retry_retrieval]",
    ]
    assert "\n".join(["Needs, to answer again:", *needed]) in text
    assert "Needs" not in "\n".join(explain(parse_policy("accept: 0.7")))


@pytest.mark.parametrize(
    "line",
    [
        "Model m scores the uncertainty of each answer and of each sentence (all signals, weighed by the profile).",
        "Profile p turns it into a confidence",
        "with 95 % certainty, at most 10 % of the accepted answers are wrong. [accept]",
        "1. retrieve 8 passages from retriever wide with a reworded question leaving out unused ones",
        "and answer again, up to 2 times [escalate[0].retry_retrieval]",
        "2. ask model big, whose answer is given without being judged if it is attempt 1 or 2, it is tagged a or b and",
        "n is 1 or 2 [escalate[1].fallback_model]",
        "3. hand the answer to a person (the caller waits up to 5 s) if its confidence is below 0.3, its confidence is",
        "at least 0.1 and a sentence is below 0.2 [escalate[2].human_review]",
        "the best answer is given with a warning [otherwise]",
        "Retries and fallbacks stop after 30 s, 4 attempts or 9 cost units",
        "For an answer, if it is tagged medical:",
        "An answer with a confidence of at least 0.9 is given as it is. [overrides[0].accept]",
        "Nothing is tried to improve any other answer.",
        "the caller reads: SORRY [overrides[0].otherwise]",
        "a person decides; if the answer cannot be handed to a person, it is held back. [overrides[0].on_error]",
        "an error is raised. [overrides[0].on_uncalibrated]",
        "Other words for abstain. [overrides[0].messages]",
        "hand the answer to a person (the caller does not wait) [overrides[1].escalate[0].human_review]",
        "the first one that sets a key is used for that key",
        "it is held back if it was already judged too doubtful or meant for a person. [on_error]",
        "the answer is held back. [on_uncalibrated]",
        "Text that comes with requests for tools is given unjudged. [overrides[0].beside_tool_calls]",
        "Text that comes with requests for tools is left out. [beside_tool_calls]",
        "Answers wait for people in sqlite:///review.db.",
        "Decisions are logged to LangSmith, OpenTelemetry and the file a.jsonl, with prompts and answers.",
    ],
)
def test_every_setting_is_told_with_the_name_of_its_rule(line: str) -> None:
    """The rules in the text are those in the logs."""
    assert line in "\n".join(explain(parse_policy(dedent(EVERYTHING))))


def test_the_shipped_policy_in_words() -> None:
    """What most users read first, whole."""
    policy = load_policy()
    assert "\n".join(explain(policy)) == SHIPPED_IN_WORDS.format(digest=policy.digest).strip()


QUEUE = "review: {url: interrupt}\n"
COMPLETE = "on_error: abstain\non_uncalibrated: abstain\nscorer: {profile: p}\n"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("accept: 0.7", "`on_error` is not given, so it is `abstain`"),
        ("accept: 0.7", "`on_uncalibrated` is not given, so it is `abstain`"),
        ("accept: 0.7", "`scorer` is not given, so it is smollm2-135m with the shipped profile proxy"),
        ("accept: 0", "gives every answer that has a confidence"),
        ("accept: 1", "only at a confidence of exactly 1"),
        ("accept: 0.7\nscorer: {model: m}", "`on_uncalibrated` decides every answer"),
        ("accept: 0.7\nescalate: [retry_retrieval]\nbudget: {attempts: 1}", "leaves no room for retries"),
        ("accept: 0.7\nreview: {url: 'sqlite://'}", "lost when the program ends"),
        (
            QUEUE + "accept: 0.7\nescalate: [human_review, retry_retrieval]",
            "escalate[1].retry_retrieval is tried only if escalate[0].human_review failed",
        ),
        (
            QUEUE + "accept: 0.7\nescalate: [{human_review: {when: {above: 0.7}}}]",
            "escalate[0].human_review is never tried: at a confidence of at least 0.7 the answer is accepted",
        ),
        (
            QUEUE + "accept: 0.1\noverrides: [{match: {tags: a}, accept: 0.9, escalate: [human_review, human_review]}]",
            "overrides[0].escalate[1].human_review is tried only if overrides[0].escalate[0].human_review failed",
        ),
        (
            "accept: 0.7\nescalate: [{fallback_model: {name: b, unscored: true}}]",
            "gives an answer that was not judged",
        ),
    ],
)
def test_what_is_probably_not_meant_is_noted(text: str, note: str) -> None:
    """Allowed, but a reader should know."""
    policy = parse_policy(text)
    assert any(note in one for one in notes(policy))
    assert any(note in line for line in explain(policy))


@pytest.mark.parametrize(
    "text",
    [
        "accept: 0.7\nescalate: [{human_review: {when: {above: 0.69}}}]",
        "accept: {max_error_rate: 0.1}\nescalate: [{human_review: {when: {above: 0.9}}}]",
        "accept: 0.7\nescalate: [{human_review: {when: {below: 0.2}}}, retry_retrieval]",
        "accept: 0.7\nbudget: {attempts: 1}\nescalate: [human_review]",
    ],
)
def test_sound_policies_get_no_notes(text: str) -> None:
    """A checker that cries wolf is not read."""
    assert notes(parse_policy(COMPLETE + QUEUE + text)) == []


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql+psycopg://u:p@h:5432/d", "postgresql+psycopg://u:***@h:5432/d"),
        ("postgresql://u:p@ss/w@h/d", "postgresql://u:***@h/d"),  # an unescaped @ and / in the password
        ("postgresql://h/d?user=u&password=p", "postgresql://h/d?user=***&password=***"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("sqlite:///review.db", "sqlite:///review.db"),
        ("no url: a@b", "no url: a@b"),
    ],
)
def test_passwords_in_urls_are_masked(url: str, masked: str) -> None:
    """In whatever part of the URL they stand."""
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    ("value", "limit", "said"),
    [(0.4, 0.7, "0.40 < 0.70"), (0.699, 0.7, "0.699 < 0.700"), (0.7, 0.7, "0.70 < 0.70")],
)
def test_numbers_get_as_many_digits_as_it_takes(value: float, limit: float, said: str) -> None:
    """Two different numbers must not look equal."""
    assert versus(value, "<", limit) == said


@pytest.mark.parametrize(
    ("words", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_words_are_listed_as_in_a_sentence(words: list[str], said: str) -> None:
    """Explanations are read by people."""
    assert listed(words) == said
