"""A mistake in a policy file is named with file, line and key, and the nearest right word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy import policy_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mistake = Callable[..., PolicyFileError]

STEPS = "retry_retrieval, fallback_model, human_review"

# text, line, key, what the message says
MISTAKES = [
    pytest.param("accept: 0.7\nescalte: []", 2, "escalte", "did you mean `escalate`?", id="misspelt key"),
    pytest.param("accept: 0.7\nzzz: 1", 2, "zzz", "Allowed here: version, scorer, accept", id="unknown key"),
    pytest.param(
        "accept: 0.7\nescalate:\n  - retry_retreival: {top_k: 8}",
        3,
        "escalate[0].retry_retreival",
        "did you mean `retry_retrieval`?",
        id="misspelt step",
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n  - retry_retrieval:\n    top_k: 8",
        4,
        "escalate[0].top_k",
        "`top_k` belongs to escalate[].retry_retrieval",
        id="key not indented enough",
    ),
    pytest.param(
        "accept: 0.7\nescalate: [abstain]",
        2,
        "escalate[0].abstain",
        f"unknown step. Allowed here: {STEPS}",
        id="no step",
    ),
    pytest.param(
        "accept: {max_eror_rate: 0.1}",
        1,
        "accept.max_eror_rate",
        "did you mean `max_error_rate`?",
        id="misspelt key wins over the missing one",
    ),
    pytest.param(
        "accept: 0.7\nscorer:\n  metod: semgrad", 3, "scorer.metod", "did you mean `method`?", id="nested key"
    ),
    pytest.param(
        "accept: 0.7\nscorer: {method: hybrid-grad}",
        2,
        "scorer.method",
        "did you mean `hybridgrad`?",
        id="misspelt word",
    ),
    pytest.param(
        "accept: 0.7\non_error: accept",
        2,
        "on_error",
        "saw 'accept'. Allowed: abstain, human_review, answer_with_warning",
        id="word of no list",
    ),
    pytest.param("accept: 0.7\notherwise: no", 2, "otherwise", "saw false. Allowed: abstain", id="YAML's no is false"),
    pytest.param("accept: 0.7\nversion: 2", 2, "version", "saw 2. Allowed: 1", id="version of another release"),
    pytest.param("accept: 0.7\nversion: '1'", 2, "version", "write it without quotes", id="quoted version"),
    pytest.param("otherwise: abstain", 1, "accept", "for example `accept: 0.7`", id="accept left out"),
    pytest.param(
        "accept: true", 1, "accept", "must be a number from 0 to 1 or {max_error_rate", id="true is no number"
    ),
    pytest.param("accept: 70", 1, "accept", "must be at most 1, saw 70: write 70 % as 0.7", id="percent as number"),
    pytest.param("accept: 70%", 1, "accept", "write 70 % as 0.7", id="percent as text"),
    pytest.param("accept: .nan", 1, "accept", "must be a finite number, saw nan", id="not a number"),
    pytest.param("accept: -0.1", 1, "accept", "must be at least 0, saw -0.1", id="negative"),
    pytest.param(
        "accept: {max_error_rate: 0}", 1, "accept.max_error_rate", "must be more than 0", id="no error at all"
    ),
    pytest.param("accept: null", 1, "accept", "saw nothing", id="null"),
    pytest.param("accept: ${A}", 1, "accept", "environment values are for texts only", id="number from environment"),
    pytest.param(
        "accept: 0.7\nescalate: human_review", 2, "escalate", "must be a list (`- item` lines)", id="list without dash"
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n- retry_retrieval: 8",
        3,
        "escalate[0].retry_retrieval",
        "must be a mapping",
        id="bare 8",
    ),
    pytest.param(
        "accept: 0.7\nescalate: [fallback_model]",
        2,
        "escalate[0].fallback_model.name",
        "is missing: the model to ask",
        id="fallback without a name",
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n- human_review: {}\n  retry_retrieval: {}",
        3,
        "escalate[0]",
        f"exactly one of {STEPS}",
        id="two steps in one item",
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n- human_review: {when: {below: 0.3, above: 0.3}}",
        3,
        "escalate[0].human_review.when",
        "never hold together",
        id="condition that never holds",
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n- human_review: {when: {any_sentence_below: 0.3}}\nreview: {url: interrupt}",
        3,
        "escalate[0].human_review.when.any_sentence_below",
        "granularity: sentence",
        id="sentences that nobody scores",
    ),
    pytest.param(
        "accept: 0.7\nescalate:\n" + "- retry_retrieval: {attempts: 20}\n" * 3,
        2,
        "escalate",
        "60 tries for one question, but the limit is 50",
        id="endless ladder",
    ),
    pytest.param(
        "accept: 0.7\noverrides:\n- match: {tags: a}\n  escalate:\n" + "  - retry_retrieval: {attempts: 20}\n" * 3,
        4,
        "overrides[0].escalate",
        "60 tries",
        id="endless ladder of an override",
    ),
    pytest.param(
        "accept: 0.7\noverrides: [{match: {tags: [no]}, accept: 1}]",
        2,
        "overrides[0].match.tags[0]",
        "saw false; put it in quotes",
        id="tag that YAML reads as false",
    ),
    pytest.param(
        "accept: 0.7\noverrides: [{match: {}, accept: 1}]",
        2,
        "overrides[0].match",
        "must name `tags` or",
        id="no match",
    ),
    pytest.param(
        "accept: 0.7\noverrides: [{match: {tags: a}}]", 2, "overrides[0]", "changes nothing", id="override of nothing"
    ),
    pytest.param(
        "accept: 0.7\noverrides: [{match: {metadata: {a: {b: 1}}}, accept: 1}]",
        2,
        "overrides[0].match.metadata.a",
        "must be text, a number",
        id="metadata that can't be compared",
    ),
    pytest.param(
        "accept: 0.7\noverrides: [{match: {tags: a}, messages: {}}]",
        2,
        "overrides[0].messages",
        "at least one message",
        id="messages of nothing",
    ),
    pytest.param("accept: 0.7\nbudget: {attempts: 2.5}", 2, "budget.attempts", "whole number", id="half an attempt"),
    pytest.param("accept: 0.7\nmessages: {abstain: ''}", 2, "messages.abstain", "not be empty", id="empty refusal"),
    pytest.param("accept: 0.7\nmessages: {abstain: 5}", 2, "messages.abstain", "put it in quotes", id="number as text"),
    pytest.param("accept: 0.7\nscorer: {band: [3, 2]}", 2, "scorer.band", "first <= last", id="band backwards"),
    pytest.param("accept: 0.7\nreview: {url: postgres}", 2, "review.url", "must be a database URL", id="no URL"),
    pytest.param(
        'accept: 0.7\nmessages: {abstain: "\\ud800"}', 2, "messages.abstain", "not valid Unicode", id="lone surrogate"
    ),
]


@pytest.mark.parametrize(("text", "line", "key", "said"), MISTAKES)
def test_a_mistake_names_line_and_key_and_helps(mistake: Mistake, text: str, line: int, key: str, said: str) -> None:
    """Whoever wrote the file must find the place and the right word without reading the manual."""
    error = mistake(text)
    assert (error.path, error.line, error.key) == ("p.yaml", line, key)
    assert said in error.why


# text, the line and key of each mistake
SEVERAL = [
    pytest.param("accept: 0.7\nfoo: 1\ntop_k: 8", ["2 foo", "3 top_k"], id="two keys"),
    pytest.param("acept: 0.7", ["1 acept"], id="a misspelt key, and not that the right one is missing"),
    pytest.param("acept: 70", ["1 acept", "1 acept"], id="a misspelt key and its value"),
    pytest.param("otherwise: no\nzzz: 0.7", ["1 otherwise", "1 accept", "2 zzz"], id="unknown, wrong and missing"),
    pytest.param("accept: 7\nacept: 0.7", ["1 accept", "2 acept"], id="misspelt beside the right key"),
    pytest.param(
        "accept: 7\nscorer: {metod: semgrd}\nbudget:\n  second: -1",
        ["1 accept", "2 scorer.metod", "2 scorer.metod", "4 budget.second", "4 budget.second"],
        id="inside misspelt sections",
    ),
    pytest.param(
        "accept: 1.7\nescalate:\n- human_revew\n- fallback_model\n- retry_retrieval: {top_k: 0}\n- fallbck_model: big\n"
        "review: {url: interrupt}",
        [
            "1 accept",
            "3 escalate[0].human_revew",
            "4 escalate[1].fallback_model.name",
            "5 escalate[2].retry_retrieval.top_k",
            "6 escalate[3].fallbck_model",
        ],
        id="in every step",
    ),
    pytest.param(
        "accept: x\nescalate:\n- abstain\n- human_review: {when: {any_sentence_below: 0.3, above: 2}}\n"
        "review: {url: interrupt}",
        [
            "1 accept",
            "3 escalate[0].abstain",
            "4 escalate[1].human_review.when.any_sentence_below",
            "4 escalate[1].human_review.when.above",
        ],
        id="what only the whole file shows",
    ),
    pytest.param(
        "accept: 0.7\nreview: {url: sqlite://, token: t, deadline: 3}\noverrides: [{match: {tags: [no]}, accept: 2}]",
        ["2 review.deadline", "2 review.token", "3 overrides[0].match.tags[0]", "3 overrides[0].accept"],
        id="emptied lists are no mistakes",
    ),
    pytest.param(
        "accept: 0.7\nreview: {url: 'sqlite://', deadline_s: soon, at_deadline: reject}\nscorer: {position: 3}",
        ["2 review.deadline_s", "3 scorer.position"],
        id="a wrong value is not missed",
    ),
    pytest.param(
        "accept: 0.7\naccept: 0.8\n1: x\notherwise: !percent 3\nbudgt: {}\nversion: 2",
        ["2 accept", "3 ", "4 otherwise", "5 budgt", "6 version"],
        id="of YAML and of the policy",
    ),
]


@pytest.mark.parametrize(("text", "listed"), SEVERAL)
def test_all_mistakes_are_listed_in_the_order_of_the_file(mistake: Mistake, text: str, listed: list[str]) -> None:
    """Whoever mends one at a time runs the check once for each; and no mistake follows from another."""
    error = mistake(text)
    assert [f"{one.line} {one.key}" for one in (error, *error.others)] == listed
    assert [line.split(": ")[0] for line in str(error).splitlines()] == [f"p.yaml:{at.split()[0]}" for at in listed]


def test_a_misspelt_key_comes_before_other_mistakes_of_its_line(mistake: Mistake) -> None:
    """It explains most of them."""
    error = mistake("{version: 7, otherwise: no, acept: 0.7}")
    assert [one.key for one in (error, *error.others)] == ["acept", "version", "otherwise"]


def test_the_message_starts_with_file_and_line(mistake: Mistake) -> None:
    """Editors and terminals jump to `file:line`."""
    assert str(mistake("accept: 0.7\nescalte: []")).startswith("p.yaml:2: `escalte`: ")


def test_a_long_wrong_value_is_shortened(mistake: Mistake) -> None:
    """The message stays one line that can be read."""
    assert len(mistake(f"accept: {'x' * 10_000}").why) < 200


def test_a_mapping_from_code_gets_the_same_help() -> None:
    """Policies written as dicts deserve the nearest word as well; there is no line to name."""
    with pytest.raises(PolicyFileError) as caught:
        policy_from({"accept": 0.7, "escalte": []})
    assert (caught.value.path, caught.value.line, caught.value.key) == ("policy", None, "escalte")


@pytest.mark.parametrize(
    "content", [{1: 2, "accept": 0.7}, {"accept": 0.7, "<number>": 1}, {"accept": {"<target>": 1}}]
)
def test_keys_that_no_file_would_have_are_refused_too(content: dict[str, object]) -> None:
    """The error must not be lost in an error about the error."""
    with pytest.raises(PolicyFileError):
        policy_from(content)


@pytest.mark.parametrize("value", ["true", "false", "2", "one"])
def test_a_version_that_is_not_one_is_refused(value: str, tmp_path: Path) -> None:
    """`true` too, which Python takes for 1 and an editor's schema check does not."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: {value}\naccept: 0.5\non_error: abstain\n")
    with pytest.raises(PolicyFileError) as caught:
        policy_from(path)
    assert caught.value.key == "version"
