"""Thresholds of a policy from a profile's labels, and what `policy check` says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from semgrad_guard.calibration import LabelPairs, Profile, load_profile, risk_threshold
from semgrad_guard.calibration.risk import CAVEATS, N_LEVELS
from semgrad_guard.cli.policy import app
from semgrad_guard.errors import RiskNotControllableError, TooFewLabelsError, UncalibratedError
from semgrad_guard.guard.assembly import decider_of
from semgrad_guard.guard.thresholds import BY_METADATA, promised, threshold_of
from semgrad_guard.policy import policy_from
from semgrad_guard.policy.promises import promises

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.policy import Policy

N = 400


def labels(right_above: dict[tuple[str, ...], float], n: int = N) -> LabelPairs:
    """N answers of each kind, confidences evenly over [0, 1], right from some confidence on."""
    steps = np.linspace(0, 1, n)
    kinds = list(right_above)
    return LabelPairs(
        confidence=tuple(np.tile(steps, len(kinds))),
        correct=tuple(bool(one >= right_above[kind]) for kind in kinds for one in steps),
        group=tuple(range(n * len(kinds))),
        tags=tuple(kind for kind in kinds for _ in steps),
    )


@pytest.fixture(name="profile")
def _profile() -> Profile:
    """Medical answers are right from 0.8 on, legal ones from 0.5, others from 0.2."""
    pairs = labels({("medical",): 0.8, ("legal",): 0.5, (): 0.2})
    return load_profile("smollm2-135m-demo").model_copy(update={"pairs": pairs})


def policy(*overrides: dict[str, object], delta: float = 0.1) -> Policy:
    """Policy that asks for an error rate, with overrides."""
    return policy_from({"accept": {"max_error_rate": 0.1, "delta": delta}, "overrides": list(overrides)})


def rate(tags: object, delta: float = 0.1) -> dict[str, object]:
    """Override that asks for an error rate."""
    return {"match": {"tags": tags}, "accept": {"max_error_rate": 0.1, "delta": delta}}


def test_each_rule_rests_on_the_answers_that_it_decides(profile: Profile) -> None:
    """One threshold for all would let out the doubtful kind and hold back the sure one."""
    found = decider_of(policy(rate("medical"), rate("legal")), profile).compute_thresholds()
    wanted = {"accept": 0.2, "overrides[0].accept": 0.8, "overrides[1].accept": 0.5}
    assert found == pytest.approx(wanted, abs=1.5 / N_LEVELS)


def test_tags_of_an_override_mean_any_of_them(profile: Profile) -> None:
    """No label carries both, so `all of` would find none."""
    found = decider_of(policy(rate(["medical", "legal"])), profile).compute_thresholds()
    either = profile.pairs.of_kind(frozenset({"medical", "legal"}), frozenset())
    assert len(either.confidence) == 2 * N
    assert found["overrides[0].accept"] == risk_threshold(profile, 0.1, 0.05, pairs=either).value


def test_rules_share_delta(profile: Profile) -> None:
    """All promises hold together; with the whole delta each, more labels would pass."""
    asked = promises(policy(rate("medical"), rate("legal")))
    assert [threshold_of(one, profile).delta for one in asked.values()] == pytest.approx([0.1 / 3] * 3)
    few = profile.model_copy(update={"pairs": labels({("medical",): 0.0, (): 0.0}, n=50)})
    assert decider_of(policy(rate("medical")), few).compute_thresholds() == {"accept": 0.0, "overrides[0].accept": 0.0}
    with pytest.raises(RiskNotControllableError):  # 50 right answers prove 10 % to 0.5 %, not to 0.4 %
        decider_of(policy(rate("medical", 0.008), delta=0.008), few)


def test_the_promises_hold_together_in_simulation(profile: Profile) -> None:
    """Draws of labels with a known truth: the share of draws in which any promise fails stays below delta."""
    alpha, delta, draws = 0.2, 0.2, 100
    right = {"a": (0.5, 1.0), "b": (0.3, 1.0), "": (0.6, 1.0)}  # probability of being right, from confidence 0 to 1
    asked = policy_from(
        {
            "accept": {"max_error_rate": alpha, "delta": delta},
            "overrides": [{"match": {"tags": t}, "accept": {"max_error_rate": alpha, "delta": delta}} for t in "ab"],
        }
    )
    failed = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        tags = rng.choice(list(right), 600)
        confidence = rng.random(600)
        low = np.array([right[t][0] for t in tags])
        correct = rng.random(600) < low + (1 - low) * confidence
        pairs = LabelPairs(
            confidence=tuple(confidence),
            correct=tuple(map(bool, correct)),
            group=tuple(range(600)),
            tags=tuple((t,) if t else () for t in tags),
        )
        drawn = profile.model_copy(update={"pairs": pairs})
        try:
            found = decider_of(asked, drawn).compute_thresholds()
        except RiskNotControllableError:
            continue
        kinds = {"accept": "", "overrides[0].accept": "a", "overrides[1].accept": "b"}
        # uniform confidence above t: right with probability low + (1 - low) * (1 + t) / 2
        wrong = [1 - (right[k][0] + (1 - right[k][0]) * (1 + found[rule]) / 2) for rule, k in kinds.items()]
        failed += max(wrong) > alpha
    assert failed / draws <= delta + 3 * (delta * (1 - delta) / draws) ** 0.5
    assert failed > 0  # thresholds so high that none ever fails would promise too little


def test_a_kind_without_labels_says_which_rule_asked(profile: Profile) -> None:
    """The message alone could be about any of them."""
    with pytest.raises(TooFewLabelsError) as caught:
        decider_of(policy(rate("news")), profile)
    assert caught.value.__notes__ == ["required by overrides[0].accept for answers tagged news"]


def test_without_a_profile_nothing_can_be_promised() -> None:
    """The same error as before any label is looked at."""
    with pytest.raises(UncalibratedError):
        decider_of(policy(), None)


# --- in words ---------------------------------------------------------------------------------------------------------


def check(tmp_path: Path, profile: Profile, text: str) -> tuple[str, BaseException | None]:
    """What `policy check` prints, and the error it ends with."""
    profile.save(tmp_path / "p.json")
    path = tmp_path / "policy.yaml"
    path.write_text(f"scorer: {{profile: ./p.json}}\n{text}", encoding="utf-8")
    result = CliRunner().invoke(app, ["check", str(path)])
    return result.output, result.exception


def test_check_says_what_is_promised_and_what_breaks_it(tmp_path: Path, profile: Profile) -> None:
    """A threshold without its conditions would be read as a law."""
    text = """
accept: {max_error_rate: 0.1, delta: 0.1}
overrides:
- {match: {tags: medical}, accept: {max_error_rate: 0.1, delta: 0.1}}
"""
    said, error = check(tmp_path, profile, text)
    assert error is None
    value = decider_of(policy(rate("medical")), profile).compute_thresholds()["overrides[0].accept"]
    assert "Promised error rates, which hold together with 90 % certainty:" in said
    assert f"of answers tagged medical: accept from confidence {value:.3f}: with 95% certainty at most 10%" in said
    assert "of answers not tagged medical: accept from confidence" in said
    assert "[overrides[0].accept]" in said
    assert CAVEATS in said
    assert BY_METADATA not in said


def test_check_names_every_promise_that_cannot_be_kept_and_fails(tmp_path: Path, profile: Profile) -> None:
    """A guard of this file could not be made, so the file cannot be used."""
    text = """
accept: {max_error_rate: 0.1}
overrides:
- {match: {tags: news}, accept: {max_error_rate: 0.1}}
- {match: {metadata: {tenant: acme}}, accept: 0.9}
"""
    said, error = check(tmp_path, profile, text)
    assert isinstance(error, TooFewLabelsError)
    assert "of answers tagged news: cannot be kept: 0 labelled answers" in said
    assert "of answers not tagged news: accept from confidence" in said
    assert BY_METADATA in said


def test_check_of_numbers_alone_loads_no_profile(tmp_path: Path, profile: Profile) -> None:
    """Nothing is computed for them."""
    said, error = check(tmp_path, profile, "accept: 0.7\n")
    assert (error, "Promised" in said) == (None, False)
    assert promised(policy_from({"accept": 0.7}), None) == ([], None)
