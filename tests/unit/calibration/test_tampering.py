"""Signs of tampering are weighed by the answers that show them, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.calibration.evidence import thresholds
from semgrad_guard.calibration.fused import FusedModel, SignalColumn
from semgrad_guard.calibration.labels import collect
from semgrad_guard.calibration.tampering import with_tampering

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from semgrad_guard.calibration import LabelledScore
    from semgrad_guard.calibration.labels import Labels

MODEL = FusedModel(
    columns=(SignalColumn(name="semgrad", transform="identity", mean=0, scale=1, weight=-1, average=0),), intercept=0.0
)


def labels_of(rows: Any, made: dict[str, dict[str, float]], n: int = 40) -> Labels:
    """Return honest rows, of which one in fifty shows a sign, and made ones of some kinds with the signs given."""
    honest: list[LabelledScore] = [
        replace(row, signals={**row.signals, "altered_copy": float(i % 50 == 0), "copied_around": 0.0})
        for i, row in enumerate(rows(200))
    ]
    right = [row for row in honest if row.correct][:n]
    return collect(
        [
            *honest,
            *(
                replace(row, correct=False, adversarial=kind, signals={**row.signals, **signs})
                for kind, signs in made.items()
                for row in right
            ),
        ]
    )


def margins_of(labels: Labels) -> NDArray[np.float64]:
    return MODEL.margins(labels.select(MODEL.names).signals)


def test_the_smallest_weight_is_taken_with_which_few_are_accepted(rows: Any) -> None:
    """Made of right answers they are accepted like these; with the sign's weight hardly one is. Honest ones stay."""
    labels = labels_of(rows, {"negated copy": {"altered_copy": 0.9}})
    before = margins_of(labels)
    model, after = with_tampering(MODEL, labels, before)
    made = ~labels.honest
    assert (before >= thresholds(before, labels))[made].mean() > 0.7
    assert (after >= thresholds(after, labels))[made].mean() <= 0.05
    weights = {column.name: column.weight for column in model.columns}
    assert weights["altered_copy"] < 0
    assert "copied_around" not in weights
    unmarked = labels.honest & (labels.signals[:, labels.names.index("altered_copy")] == 0)
    assert after[unmarked] == pytest.approx(before[unmarked])
    assert model.margins(labels.select(model.names).signals) == pytest.approx(after)


def test_a_kind_that_shows_no_sign_changes_nothing(rows: Any) -> None:
    """Words cannot see it; no sign is blamed for it."""
    labels = labels_of(rows, {"denied answer": {}})
    model, after = with_tampering(MODEL, labels, margins_of(labels))
    assert model == MODEL
    assert after == pytest.approx(margins_of(labels))


def test_a_kind_that_loses_anyway_needs_no_sign(rows: Any) -> None:
    """Its answers show one, and are far below every right answer without it."""
    labels = labels_of(rows, {"orders": {"altered_copy": 1.0, "semgrad": 4.0}})
    model, _ = with_tampering(MODEL, labels, margins_of(labels))
    assert model == MODEL


def test_each_data_set_has_a_threshold_of_its_own(rows: Any) -> None:
    """The right answers of one are all surer than those of the other."""
    sets = [
        replace(row, source=name, signals={**row.signals, "semgrad": row.signals["semgrad"] + shift})
        for name, shift in (("a", 0.0), ("b", 3.0), ("c", 0.0))
        for row in rows(60)
    ]
    labels = collect(sets)
    found = thresholds(margins_of(labels), labels)
    assert len(set(found)) == 2
    of_b = labels.strata == 1
    assert found[of_b].max() < found[~of_b].min() - 1
