"""A guard without a policy of the user's: what it says of answers, and which profile it asks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from semgrad_guard import Exchange, Guard
from semgrad_guard.calibration import load_profile
from semgrad_guard.errors import OptionError, RiskNotControllableError, UncalibratedError
from semgrad_guard.flow import Status
from semgrad_guard.policy.model import DEFAULT_PROFILE
from tests.fakes import FINGERPRINT, ProfileScorer, TableScorer

if TYPE_CHECKING:
    from pathlib import Path

PARIS = Exchange(prompt="Capital?", answer="Paris")


def test_it_measures_by_the_shipped_profile_that_fits() -> None:
    """The number and its reasons are those of the profile; the answer goes out as it is."""
    outcome = Guard.from_yaml(scorer=ProfileScorer()).run(PARIS)
    assert (outcome.text, outcome.status) == ("Paris", Status.ANSWERED)
    assert outcome.confidence is not None
    assert 0 < outcome.confidence < 1
    assert outcome.decision.confidence.profile == DEFAULT_PROFILE
    assert outcome.decision.why.startswith(
        f"confidence {outcome.confidence:.2f}: read by a proxy: profile {DEFAULT_PROFILE}"
    )


def test_a_scorer_that_no_shipped_profile_was_fitted_for_is_told_what_makes_one() -> None:
    """One short sentence, not a comparison of fingerprints."""
    outcome = Guard.from_yaml(scorer=TableScorer()).run(PARIS)
    assert (outcome.text, outcome.status, outcome.confidence) == ("Paris", Status.WARNED, None)
    why = outcome.decision.confidence.why
    assert why.startswith("there is no profile for scores of table: `semgrad-guard calibrate answers.jsonl")
    assert FINGERPRINT.model not in why.split("`")[2]


def test_other_settings_of_the_same_model_are_told_what_differs() -> None:
    """Then there is something to change."""
    scorer = ProfileScorer()
    scorer.own = replace(scorer.own, settings=f"{scorer.own.settings} in de")
    assert "'by claim in de'" in Guard.from_yaml(scorer=scorer).judge(PARIS).confidence.why


def test_whatever_fails_is_a_finding_while_it_measures() -> None:
    """A broken scorer must not break the program that tries the guard."""
    outcome = Guard.from_yaml(scorer=TableScorer({"Paris": RuntimeError("no weights")})).run(PARIS)
    assert (outcome.text, outcome.status, outcome.confidence) == ("Paris", Status.WARNED, None)
    assert [failure.message for failure in outcome.record.failures] == ["no weights"]


@pytest.mark.parametrize("scorer", [TableScorer(), TableScorer({"Paris": RuntimeError("no weights")})])
def test_what_was_not_judged_is_held_back_once_a_confidence_is_asked_for(scorer: TableScorer) -> None:
    """Fail closed."""
    outcome = Guard.from_yaml(accept=0.1, scorer=scorer).run(PARIS)
    assert (outcome.text, outcome.withheld) == ("I am not sure enough to answer that.", True)


def test_an_answer_is_given_or_held_back_by_its_confidence() -> None:
    """The threshold is the user's."""
    confidence = Guard.from_yaml(scorer=ProfileScorer()).judge(PARIS).confidence.value
    assert confidence is not None
    below, above = (Guard.from_yaml(accept=at, scorer=ProfileScorer()) for at in (confidence - 0.01, confidence + 0.01))
    assert (below.run(PARIS).withheld, above.run(PARIS).withheld) == (False, True)


def test_a_policy_without_a_scorer_asks_the_same_profiles() -> None:
    """`accept: 0.7` in a file and in the constructor mean the same."""
    decision = Guard.from_yaml({"accept": 0.5}, scorer=ProfileScorer()).judge(PARIS)
    assert decision.confidence == Guard.from_yaml(accept=0.5, scorer=ProfileScorer()).judge(PARIS).confidence
    assert "there is no profile" in Guard.from_yaml({"accept": 0.5}, scorer=TableScorer()).judge(PARIS).why


def test_a_profile_that_the_policy_names_is_asked_even_where_it_does_not_fit() -> None:
    """The user chose it, and is told why it says nothing."""
    policy = {"accept": 0.5, "scorer": {"profile": DEFAULT_PROFILE}}
    assert "was fitted for another score" in Guard.from_yaml(policy, scorer=TableScorer()).judge(PARIS).confidence.why


def test_a_threshold_beside_a_policy_is_refused(tmp_path: Path) -> None:
    """Whichever way the policy is given, and whether or not it is followed."""
    file = tmp_path / "policy.yaml"
    file.write_text("accept: 0.5")
    for policy, reload in ((file, False), (file, True), ({"accept": 0.5}, False)):
        with pytest.raises(OptionError, match="one of them"):
            Guard.from_yaml(policy, accept=0.7, reload=reload)


def test_an_error_rate_is_that_of_the_profile_at_hand() -> None:
    """It is computed when the guard is built, or refused there."""
    profile = load_profile(DEFAULT_PROFILE)
    guard = Guard.from_yaml(accept={"max_error_rate": 0.9}, scorer=ProfileScorer())
    assert guard.judge(PARIS).confidence.profile == profile.name
    with pytest.raises(RiskNotControllableError):
        Guard.from_yaml(accept={"max_error_rate": 0.0001}, scorer=ProfileScorer())


@pytest.mark.parametrize("accept", [None, 0.7])
def test_no_file_appears_in_the_working_folder(
    accept: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for a queue or a log."""
    monkeypatch.chdir(tmp_path)
    guard = Guard.from_yaml(accept=accept, scorer=TableScorer())
    guard.run(PARIS)
    guard.close()
    assert list(tmp_path.iterdir()) == []


def test_measuring_never_raises_for_want_of_a_profile() -> None:
    """Only a policy that says `error` does."""
    Guard.from_yaml(scorer=TableScorer()).judge(PARIS)
    with pytest.raises(UncalibratedError):
        Guard.from_yaml({"accept": 0, "on_uncalibrated": "error"}, scorer=TableScorer()).judge(PARIS)
