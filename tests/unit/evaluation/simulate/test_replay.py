"""One question under a policy: the guard's own flow over recorded answers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from semgrad_guard.calibration import LabelledScore, fit_profile
from semgrad_guard.errors import UncalibratedError
from semgrad_guard.flow import Exchange, Fingerprint, Passage, Score, Status
from semgrad_guard.guard import Guard, Parts
from semgrad_guard.policy import PolicyDecider, policy_from
from semgrad_guard.routing import Resources
from tests.fakes import Answerer, ListRetriever, MemoryQueue, OneMinusScore, TableScorer

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.calibration import Profile

BIG = "fallback_model:big"
RETRY = "retry_retrieval"


def test_a_sure_first_answer_is_accepted_and_costs_nothing(answer: Any, replay: Any) -> None:
    """Later answers that were recorded are not looked at."""
    found = replay(answer(0.7), answer(0.9, route=RETRY))
    assert (found.route, found.is_answered, found.cost, found.missing) == ("accept", True, 0.0, ())
    assert found.answer is found.first


def test_a_step_takes_the_recorded_answer_of_its_route(answer: Any, replay: Any) -> None:
    """The retry is not good enough, so the fallback model's answer is taken: 2 + 5 cost units."""
    first, retried, asked = answer(0.5), answer(0.6, route=RETRY), answer(0.8, route=BIG)
    found = replay(first, asked, retried)
    assert found.answer is asked
    assert (found.route, found.cost, found.missing) == (BIG, 7.0, ())


def test_an_answers_own_cost_takes_the_place_of_the_steps(answer: Any, replay: Any) -> None:
    """0.5 for the first answer and 0.25 for the retry, in place of 0 and 2."""
    assert replay(answer(0.5, cost=0.5), answer(0.9, route=RETRY, cost=0.25)).cost == 0.75


def test_a_step_without_a_recorded_answer_has_failed_and_the_ladder_goes_on(answer: Any, replay: Any) -> None:
    """As in a guard that was given nothing to act with: the answer is not lost, and it is said which were missing."""
    found = replay(answer(0.5))
    assert (found.route, found.is_answered, found.missing) == ("abstain", False, (RETRY, BIG))
    assert found.cost == 0.0


def test_each_recorded_answer_is_used_once_in_order(answer: Any, replay: Any) -> None:
    """Three tries, two recorded: the surer one is first, and it is the one that is handed on."""
    first, surer, other = answer(0.1), answer(0.6, route=RETRY), answer(0.2, route=RETRY)
    escalate = [{"retry_retrieval": {"attempts": 3}}]
    found = replay(first, surer, other, escalate=escalate, otherwise="answer_with_warning")
    assert found.answer is surer
    assert (found.route, found.is_answered, found.missing) == ("answer_with_warning", True, (RETRY,))
    sure, surer = answer(0.8, route=RETRY), answer(0.9, route=RETRY)
    assert replay(first, sure, surer, escalate=escalate).answer is sure


def test_the_best_attempt_counts_not_the_last(answer: Any, replay: Any) -> None:
    """0.5 is the best of 0.5 and 0.1: not below 0.3, so it is refused; what is held back is the first answer."""
    first = answer(0.5, correct=True)
    found = replay(first, answer(0.1, correct=False, route=RETRY))
    assert found.route == "abstain"
    assert found.answer is first


def test_people_get_what_the_policy_sends_them_and_no_queue_is_opened(answer: Any, replay: Any, tmp_path: Path) -> None:
    """A trial must not fill the real queue, and it waits for nobody."""
    database = tmp_path / "review.db"
    escalate = [{"human_review": {"wait_s": 3600}}]
    found = replay(answer(0.2), escalate=escalate, review={"url": f"sqlite:///{database}"})
    assert (found.route, found.is_answered) == ("human_review", False)
    assert not database.exists()


def test_overrides_see_the_tags_of_the_first_answer(answer: Any, replay: Any) -> None:
    """A new attempt at a question keeps its tags, whatever the recorded row says."""
    score = answer(0.5).exchange.score
    first = answer(0.75, exchange=Exchange(tags=frozenset({"medical"}), metadata={"audience": "public"}, score=score))
    overrides = [
        {"match": {"tags": ["medical"]}, "accept": 0.9},
        {"match": {"metadata": {"audience": "public"}}, "otherwise": "answer_with_warning"},
    ]
    found = replay(first, answer(0.8, route=RETRY), overrides=overrides)
    assert found.route == "answer_with_warning"


def test_a_policy_that_raises_without_a_confidence_ends_in_an_error(answer: Any, replay: Any) -> None:
    """The caller gets an exception: no answer, and no reason to stop the simulation."""
    found = replay(answer(None), on_uncalibrated="error")
    assert (found.route, found.is_answered, found.first_failed) == ("error", False, False)


def test_an_answer_that_could_not_be_scored_takes_on_error(answer: Any, replay: Any) -> None:
    """As it did when it was recorded."""
    failed = answer(None, exchange=Exchange(answer="x"), error="NonFiniteScoreError: semgrad")
    found = replay(failed, on_error="human_review")
    assert (found.route, found.first_failed) == ("human_review", True)


def test_an_unscored_fallback_is_passed_without_a_score(answer: Any, replay: Any) -> None:
    """The policy says so."""
    passed = answer(None, exchange=Exchange(answer="from the big one"), route=BIG)
    found = replay(answer(0.1), passed, escalate=[{"fallback_model": {"name": "big", "unscored": True}}])
    assert found.answer is passed
    assert (found.route, found.is_answered) == (BIG, True)


# --- time -------------------------------------------------------------------------------------------------------------


def test_time_is_that_of_all_answers(answer: Any, replay: Any) -> None:
    """1 + 0.25 for the first answer and its score, 2 + 0.25 for the retry."""
    found = replay(answer(0.5, answer_s=1.0, scoring_s=0.25), answer(0.9, route=RETRY, answer_s=2.0, scoring_s=0.25))
    assert found.seconds == 3.5


def test_time_is_unknown_when_one_answers_time_is(answer: Any, replay: Any) -> None:
    """A sum of some would look faster than it was."""
    assert replay(answer(0.5, answer_s=1.0), answer(0.9, route=RETRY)).seconds is None


def test_a_recorded_answer_that_took_longer_than_its_step_may_has_failed(answer: Any, replay: Any) -> None:
    """The caller waited 2 s for nothing, then 3 s for the fallback model: 1 + 2 + 3. Nobody waits for real."""
    escalate = [{"retry_retrieval": {"timeout_s": 2}}, {"fallback_model": {"name": "big"}}]
    late, asked = answer(0.9, route=RETRY, answer_s=900.0), answer(0.8, route=BIG, answer_s=3.0)
    found = replay(answer(0.5, answer_s=1.0), late, asked, escalate=escalate)
    assert (found.route, found.seconds, found.missing) == (BIG, 6.0, ())


def test_the_real_clock_limits_nothing(answer: Any, replay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not change what is found: no thread is raced against a step's time limit or the budget."""
    monkeypatch.setattr(threading, "Thread", None)
    escalate = [{"retry_retrieval": {"timeout_s": 1e-9}}]
    found = replay(answer(0.5), answer(0.9, route=RETRY, answer_s=0.0), escalate=escalate, budget={"seconds": 1})
    assert (found.route, found.seconds) == (RETRY, None)


def test_the_time_budget_ends_attempts_as_in_a_guard(answer: Any, replay: Any) -> None:
    """5 s from the first answer on: the retry takes 4 of them, the fallback model would take 2 more than are left."""
    answers = answer(0.5, answer_s=60.0), answer(0.6, route=RETRY, answer_s=4.0), answer(0.9, route=BIG, answer_s=3.0)
    found = replay(*answers, budget={"seconds": 5})
    assert (found.route, found.seconds) == ("abstain", 65.0)
    assert replay(*answers, budget={"seconds": 8}).route == BIG


# --- confidence -------------------------------------------------------------------------------------------------------


@pytest.fixture(name="profile", scope="module")
def _profile() -> Profile:
    """Return a profile by which nll 0 is surely right and nll 4 surely wrong."""
    fingerprint = Fingerprint(model="m", dtype="float32", template="t", settings="s")
    rows = [
        LabelledScore(signals={"mean_nll": i % 5 * 1.0}, correct=i % 5 < 2, fingerprint=fingerprint, group=str(i))
        for i in range(100)
    ]
    return fit_profile(rows, name="by hand", method="mean_nll", calibrator="platt", draws=20)


def scored(profile: Profile, nll: float) -> Exchange:
    """Return an exchange whose score fits the profile."""
    signals = {"mean_nll": nll}
    score = Score(method="mean_nll", value=nll, signals=signals, fingerprint=profile.fingerprint, model="m")
    return Exchange(answer="x", score=score)


def test_the_profile_judges_what_fits_it(answer: Any, replay: Any, profile: Profile, tmp_path: Path) -> None:
    """The recorded confidence may come from an older profile: it does not count."""
    profile.save(tmp_path / "p.json")
    found = replay(answer(0.01, exchange=scored(profile, 0.0)), scorer={"profile": str(tmp_path / "p.json")})
    assert found.first_confidence == profile.confidence_of_margin(profile.margin({"mean_nll": 0.0}))
    assert (found.route, found.borrowed) == ("accept", None)


def test_a_recorded_confidence_counts_where_the_profile_gives_none(
    answer: Any, replay: Any, profile: Profile, tmp_path: Path
) -> None:
    """And it is said why, because the guard itself would have none."""
    profile.save(tmp_path / "p.json")
    found = replay(answer(0.9), scorer={"profile": str(tmp_path / "p.json")})
    assert (found.first_confidence, found.route) == (0.9, "accept")
    assert "was fitted for another score" in found.borrowed


def test_an_error_rate_without_a_profile_is_refused_at_once(simulator: Any) -> None:
    """There is nothing to compute the threshold from."""
    with pytest.raises(UncalibratedError):
        simulator(accept={"max_error_rate": 0.1})


# --- the same as a guard ----------------------------------------------------------------------------------------------


def test_a_replay_ends_as_the_guard_did(answer: Any, question: Any, simulator: Any) -> None:
    """The same answers through a real guard with a chain and a fallback model: status and answer agree each time."""
    rng = np.random.default_rng(0)
    escalate = ["retry_retrieval", {"fallback_model": "big"}, {"human_review": {"when": {"below": 0.6}}}]
    simulated = simulator(escalate=escalate, budget={"attempts": 3})
    policy = policy_from(simulated.policy)
    ended = set()
    for i in range(60):
        first, retried, asked = rng.random(3).tolist()
        parts = Parts(
            scorer=TableScorer({"first": 1 - first, "retried": 1 - retried, "asked": 1 - asked}),
            calibrator=OneMinusScore(),
            decider=PolicyDecider(policy),
            queue=MemoryQueue(),
            abstain_message="no",
        )
        resources = Resources(
            chain=Answerer(lambda *_: "retried"),
            retriever=ListRetriever([f"passage {i}", "another"]),
            fallbacks={"big": Answerer(lambda *_: "asked")},
        )
        exchange = Exchange(question="q", prompt="p", answer="first", passages=(Passage("old"),))
        outcome = Guard(parts).run(exchange, resources)
        answers = {
            "first": answer(1 - (1 - first)),
            "retried": answer(1 - (1 - retried), route=RETRY),
            "asked": answer(1 - (1 - asked), route=BIG),
        }
        found = simulated.replay(question(*answers.values()))
        ended.add(outcome.status)
        assert found.is_answered == (outcome.status is Status.ANSWERED)
        assert (found.route == "human_review") == (outcome.status is Status.PENDING)
        assert found.answer is answers[outcome.exchange.answer]
    assert ended == {Status.ANSWERED, Status.PENDING, Status.ABSTAINED}
