"""Synthetic labelled scores whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from semgrad_guard.calibration import LabelledScore, Profile, fit_profile
from semgrad_guard.flow import Fingerprint, Score

FINGERPRINT = Fingerprint(
    model="m1", dtype="float32", template="t1", settings="position -3, blocks 15 to 29, by answer, texts by claim"
)

MakeRows = Callable[..., Iterator[LabelledScore]]


def make_rows(
    n: int,
    *,
    seed: int = 0,
    base_rate: float = 0.4,
    per_group: int = 1,
    fingerprint: Fingerprint | None = FINGERPRINT,
    tags: frozenset[str] = frozenset(),
) -> Iterator[LabelledScore]:
    """Yield rows of four signals: two uncertainties, grounding, and a length that says nothing."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        right = bool(rng.random() < base_rate)
        yield LabelledScore(
            signals={
                "semgrad": float(np.exp(rng.normal(-1.0 * right, 1.0))),
                "mean_nll": float(rng.gamma(2.0 - 0.8 * right)),
                "grounding": float(np.clip(rng.normal(0.4 + 0.3 * right, 0.3), 0, 1)),
                "length": float(rng.integers(1, 40)),
            },
            correct=right,
            fingerprint=fingerprint,
            group=f"q{i // per_group}",
            tags=tags,
        )


@pytest.fixture(name="rows")
def _rows() -> MakeRows:
    """Return the maker of labelled rows."""
    return make_rows


@pytest.fixture(name="profile", scope="session")
def _profile() -> Profile:
    """Return a fused profile of 300 answers."""
    return fit_profile(make_rows(300), name="synthetic", calibrator="platt", draws=50)


@pytest.fixture(name="score")
def _score() -> Callable[..., Score]:
    """Return a maker of scores that fit the synthetic profile."""
    plain = Score(
        method="semgrad",
        value=0.6,
        signals={"semgrad": 0.6, "mean_nll": 1.5, "grounding": 0.5, "length": 12.0},
        fingerprint=FINGERPRINT,
        model="tiny",
    )

    def make(**changes: object) -> Score:
        signals = changes.pop("signals", {})
        return replace(plain, signals={**plain.signals, **signals}, **changes)  # type: ignore[arg-type,dict-item]

    return make
