"""The numbers of a simulation, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from semgrad_guard.evaluation.simulate import save_simulation_plot, simulate
from semgrad_guard.evaluation.simulate.report import cautions, parts_of, summary
from semgrad_guard.evaluation.simulate.tally import Curve, share
from semgrad_guard.policy import policy_from


@pytest.fixture(name="questions")
def _questions(answer: Any, question: Any) -> list[Any]:
    """Return six questions for the ladder of the conftest.

    | first          | retry          | fallback    | ends as            | cost | seconds |
    |----------------|----------------|-------------|--------------------|------|---------|
    | 0.9 right, 1 s |                |             | accept             | 0    | 1       |
    | 0.8 wrong, 1 s |                |             | accept             | 0    | 1       |
    | 0.5 wrong, 1 s | 0.8 right, 2 s |             | retry_retrieval    | 2    | 3       |
    | 0.4 right      | 0.5 right      | 0.6 wrong   | abstain (0.6)      | 7    | unknown |
    | 0.2 right, 1 s |                |             | human_review       | 0    | 1       |
    | 0.1 wrong, 1 s |                | 0.7 wrong   | fallback_model:big | 5    | unknown |
    """
    retry, big = {"route": "retry_retrieval"}, {"route": "fallback_model:big"}
    return [
        question(answer(0.9, answer_s=1.0)),
        question(answer(0.8, correct=False, answer_s=1.0)),
        question(answer(0.5, correct=False, answer_s=1.0), answer(0.8, answer_s=2.0, **retry)),
        question(answer(0.4), answer(0.5, **retry), answer(0.6, correct=False, **big)),
        question(answer(0.2, answer_s=1.0)),
        question(answer(0.1, correct=False, answer_s=1.0), answer(0.7, correct=False, **big)),
    ]


def test_all_questions_together(simulator: Any, questions: list[Any]) -> None:
    """Given are 4 answers, 2 of them wrong; of the 2 held back 1 is right; cost 14 / 6; seconds 6 / 4."""
    total = simulate(simulator(), questions).total
    assert (total.n, total.n_answered, total.n_wrong, total.n_right_withheld) == (6, 4, 2, 1)
    assert (total.coverage.value, total.error_rate.value) == (4 / 6, 0.5)
    assert (total.mean_cost, total.mean_seconds, total.n_timed) == (14 / 6, 1.5, 4)


def test_each_route(simulator: Any, questions: list[Any]) -> None:
    """Answers before refusals, in the order of the policy's words."""
    found = {f.route: f for f in simulate(simulator(), questions).routes}
    assert list(found) == ["accept", "retry_retrieval", "fallback_model:big", "human_review", "abstain"]
    assert [(f.n, f.n_answered, f.n_wrong, f.n_right_withheld, f.mean_cost) for f in found.values()] == [
        (2, 2, 1, 0, 0.0),
        (1, 1, 0, 0, 2.0),
        (1, 1, 1, 0, 5.0),
        (1, 0, 0, 1, 0.0),
        (1, 0, 0, 0, 7.0),
    ]
    assert found["fallback_model:big"].mean_seconds is None


def test_first_answers_alone_are_the_baseline(simulator: Any, questions: list[Any]) -> None:
    """3 of 6 wrong; accepting from 0.7 gives two of six, one of them wrong."""
    found = simulate(simulator(), questions)
    assert found.first_error_rate.value == 0.5
    assert found.curve.at(found.thresholds["accept"]) == (2 / 6, 0.5)


def test_missing_answers_are_counted_by_question(simulator: Any, questions: list[Any]) -> None:
    """The last two had no retry, the fifth no fallback model either; trying in vain again does not count again."""
    assert simulate(simulator(), questions).missing == {"fallback_model:big": 1, "retry_retrieval": 2}
    twice = simulator(escalate=["retry_retrieval", {"retry_retrieval": {"rewrite_query": True}}])
    assert simulate(twice, questions[-1:]).missing == {"retry_retrieval": 1}


def test_a_share_has_wilsons_interval() -> None:
    """0 of 10: from 0 to z² / (n + z²) with z = 1.96."""
    found = share(0, 10)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1.96**2 / (10 + 1.96**2))
    assert share(0, 0).value is None


def test_the_curve_has_a_point_for_each_threshold_that_changes_something() -> None:
    """0.9 right; 0.6 twice, one wrong; one without a confidence is never accepted, but counts as a question."""
    curve = Curve.of(np.array([0.6, 0.9, np.nan, 0.6]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert curve.accept.tolist() == [0.9, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.75]
    assert curve.error_rate.tolist() == pytest.approx([0.0, 1 / 3])
    assert curve.at(0.95) == (0.0, None)
    assert curve.at(0.7) == (0.25, 0.0)


def test_a_curve_of_nothing_is_empty() -> None:
    """No label, no point."""
    assert Curve.of(np.array([]), np.array([])).at(0.0) == (0.0, None)


def test_answers_without_a_label_count_for_coverage_only(answer: Any, question: Any, simulator: Any) -> None:
    """Two given, one labelled; one held back without a label."""
    questions = [question(answer(0.9, correct=c)) for c in (False, None)] + [question(answer(0.4, correct=None))]
    total = simulate(simulator(escalate=[]), questions).total
    assert (total.n_answered, total.n_answered_labelled, total.n_wrong) == (2, 1, 1)
    assert (total.n_withheld_labelled, total.n_right_withheld) == (0, 0)
    assert parts_of(total) == {
        "right, given": 0,
        "wrong, given": 1,
        "right, held back": 0,
        "wrong, held back": 0,
        "no label": 2,
    }


def test_the_main_findings_in_words(simulator: Any, questions: list[Any]) -> None:
    """Numbers and what they are of."""
    lines = summary(simulate(simulator(), questions))
    assert lines[0].startswith("6 questions under policy (")
    assert lines[1].startswith("answered: 66.7% (")
    assert "wrong among those answers: 50.0% (" in lines[1]
    assert lines[2] == "held back: 2, of them 1 right; 1 go to people"
    assert lines[3].startswith("without a guard 50.0% (")


def test_what_is_odd_is_said(answer: Any, question: Any, simulator: Any) -> None:
    """Repeated groups, missing labels, failed and uncalibrated answers, borrowed confidences, steps without answers."""
    simulated = simulator(on_error="human_review", on_uncalibrated="warn")
    failed = replace(answer(None), exchange=replace(answer(None).exchange, score=None), error="x")
    questions = [
        question(answer(0.9), group="g"),
        question(answer(0.9, correct=None), group="g"),
        question(failed),
        question(answer(None)),
        question(answer(0.5)),
    ]
    said = "\n".join(cautions(simulate(simulated, questions), simulated.policy))
    for words in (
        "1 questions repeat",
        "1 questions ended with an answer that has no label",
        "1 first answers could not be scored: `on_error: human_review`",
        "1 first answers have no confidence: `on_uncalibrated: warn`",
        "3 questions are judged by recorded confidences, because the policy names no profile",
        "1 questions took retry_retrieval without",
    ):
        assert words in said


def test_an_ordinary_simulation_has_nothing_odd(answer: Any, question: Any, simulator: Any) -> None:
    """But the confidences, which came from the data here."""
    simulated = simulator()
    assert len(cautions(simulate(simulated, [question(answer(0.9))]), simulated.policy)) == 1


def test_a_broken_promise_is_pointed_out(answer: Any, question: Any, simulator: Any) -> None:
    """10 of 10 wrong: the interval lies above the 10 % that the policy asks for."""
    found = simulate(simulator(), [question(answer(0.9, correct=False))] * 10)
    asks = policy_from({"version": 1, "accept": {"max_error_rate": 0.1}})
    assert cautions(found, asks)[0].startswith("the policy asks for at most 10% wrong answers, but 100.0% (")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_is_written(simulator: Any, questions: list[Any], tmp_path: Any, ending: str) -> None:
    """The file's ending says the format."""
    path = tmp_path / f"plot.{ending}"
    save_simulation_plot(path, simulate(simulator(), questions))
    assert path.read_bytes()[:5] in {b"\x89PNG\r", b"<?xml"}


def test_the_plot_of_a_policy_that_gives_nothing_is_written(
    answer: Any, question: Any, simulator: Any, tmp_path: Any
) -> None:
    """No error rate, so no point."""
    save_simulation_plot(tmp_path / "plot.svg", simulate(simulator(escalate=[]), [question(answer(0.1))]))
    assert (tmp_path / "plot.svg").stat().st_size
