"""Probes learn from vectors where labels are enough, say nothing of rows they were taught by, and are never guessed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from semgrad_guard.calibration import LabelledScore, Profile, ProfileCalibrator, fit_profile
from semgrad_guard.calibration.labels import collect
from semgrad_guard.calibration.metrics import auroc
from semgrad_guard.calibration.probes import MIN_LABELS, Components, with_components, with_probes
from semgrad_guard.calibration.profile import parse_profile
from semgrad_guard.errors import MixedScoresError
from semgrad_guard.flow import Exchange, Score, SpanScore
from tests.unit.calibration.conftest import FINGERPRINT

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 40
_HIDDEN = np.random.default_rng(7).normal(size=WIDTH)
"""The direction that tells right answers from wrong ones."""


def _rows(n: int, *, signal: float = 1.0, seed: int = 0, width: int = WIDTH) -> Iterator[LabelledScore]:
    """Yield rows whose state leans to one side where they are right; their other signal says nothing."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        right = bool(rng.random() < 0.4)
        along = rng.normal((1 if right else -1) * signal)
        state = 3 * along * _HIDDEN[:width] / np.linalg.norm(_HIDDEN[:width]) + 0.3 * rng.normal(size=width) + 5
        yield LabelledScore(
            signals={"mean_nll": float(rng.gamma(2.0))},
            correct=right,
            fingerprint=FINGERPRINT,
            group=f"q{i}",
            vectors={"state_probe": state.tolist()},
        )


@pytest.fixture(name="profile", scope="module")
def _profile() -> Profile:
    return fit_profile(_rows(400), name="probed", draws=20)


def _score(row: LabelledScore, **changes: object) -> Score:
    plain = Score(
        method="mean_nll",
        value=row.signals["mean_nll"],
        signals=row.signals,
        fingerprint=FINGERPRINT,
        model="tiny",
        vectors={name: tuple(vector) for name, vector in row.vectors.items()},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_probe_is_used_where_it_helps_and_carries_over_to_new_answers(profile: Profile) -> None:
    """The profile ranks answers it has never seen by what the state says."""
    assert [probe.name for probe in profile.probes] == ["state_probe"]
    assert "state_probe" in profile.model.names
    calibrator = ProfileCalibrator(profile)
    fresh = list(_rows(300, seed=1))
    found = np.array([calibrator.confidence(Exchange(), _score(row)).value for row in fresh], dtype=float)
    assert auroc(found, np.array([float(row.correct) for row in fresh])) > 0.85


def test_a_state_that_says_nothing_is_not_believed() -> None:
    """Thirty-two weights on noise fit the labels they are taught by; the evidence must not show it."""
    profile = fit_profile(_rows(300, signal=0.0), name="noise", draws=20)
    assert profile.evidence is not None
    assert profile.evidence.auroc.value is not None
    assert profile.evidence.auroc.value < 0.62
    labels, _ = with_probes(with_components(collect(_rows(300, signal=0.0)))[0], 0)
    column = labels.signals[:, labels.names.index("state_probe")]
    assert auroc(column, labels.correct) < 0.6, "each row's value must come from a probe that has not seen its label"


@pytest.mark.parametrize("n", [MIN_LABELS - 1, MIN_LABELS])
def test_below_the_least_number_of_labels_there_is_no_probe(n: int) -> None:
    """A few labels cannot teach so many weights."""
    assert bool(fit_profile(_rows(n), name="few", draws=20).probes) == (n == MIN_LABELS)


def test_a_score_without_the_vector_gets_no_confidence(profile: Profile) -> None:
    """A probe is never guessed; and parts of an answer, which have no vector, are judged by the rest."""
    row = next(_rows(1, seed=2))
    calibrator = ProfileCalibrator(profile)
    others = ((1.0,) * (WIDTH + 1), (math.nan,) * WIDTH, (math.inf,) * WIDTH)
    for vectors in ({}, *({"state_probe": other} for other in others)):
        refused = calibrator.confidence(Exchange(), _score(row, vectors=vectors))
        assert refused.value is None
        assert "state_probe" in refused.why
    spans = (SpanScore(0, 4, row.signals),)
    assert calibrator.with_span_confidences(_score(row, spans=spans)).spans[0].confidence is not None


def test_the_profile_keeps_its_probe_in_plain_numbers(profile: Profile) -> None:
    """Written and read again, it gives the same confidences."""
    again = parse_profile(profile.model_dump_json(), "memory")
    for row in _rows(5, seed=3):
        one, other = (ProfileCalibrator(p).confidence(Exchange(), _score(row)).value for p in (profile, again))
        assert one == other


def test_unfolded_weights_give_what_the_components_gave() -> None:
    """The short form reads whole vectors, components and all, in one product."""
    labels, components = with_components(collect(_rows(300)))
    _, (fitted,) = with_probes(labels, 0)
    probe = fitted.unfolded(components["state_probe"])
    reduced = fitted.values(labels.vectors["state_probe"])
    for row, expected in zip(_rows(300), reduced, strict=True):
        assert probe.value(row.vectors) == pytest.approx(expected, abs=1e-4)


def test_components_are_those_of_the_largest_variance() -> None:
    """Mean 0, standard deviation 1, uncorrelated; a number that never changes has no part in them."""
    vectors = np.random.default_rng(0).normal(size=(200, 12)) @ np.diag([5.0, 4.0, *([0.1] * 9), 0.0]) + 3.0
    vectors[:, 1] += vectors[:, 0]
    found = Components.of(vectors, 5)
    reduced = found.of_vectors(vectors)
    assert reduced.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert np.cov(reduced.T, bias=True) == pytest.approx(np.eye(5), abs=1e-9)
    assert np.isfinite(found.basis).all()
    assert not found.basis[-1].any()
    first = found.basis[:, 0] * vectors.std(axis=0)
    assert abs(first[0]) + abs(first[1]) > 5 * np.abs(first[2:11]).max()


def test_vectors_of_two_models_are_not_mixed() -> None:
    """The line and both widths are named."""
    rows = [*_rows(3), *_rows(1, width=WIDTH - 1)]
    with pytest.raises(MixedScoresError, match="39 numbers instead of 40"):
        collect(rows)


def test_rows_without_a_vector_are_left_out_of_a_fit_that_needs_it() -> None:
    """Nineteen of twenty rows have it, so it is required."""
    rows = [replace(row, vectors={}) if i % 25 == 0 else row for i, row in enumerate(_rows(400))]
    profile = fit_profile(rows, name="mostly", draws=20)
    assert profile.n_dropped == 16
    assert profile.probes
