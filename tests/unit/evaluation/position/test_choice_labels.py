"""What labelled answers say about the position."""

from __future__ import annotations

import json

import numpy as np
import pytest

from semgrad_guard.errors import DataFileError, OneClassError
from semgrad_guard.evaluation.position.choice import check_labels

FINGERPRINT = {"model": "m", "dtype": "float32", "template": "t", "settings": "s", "proxy": False}


def written(path, *, right=lambda i: i % 2 == 0, names=(-1, -2, -3, -4, -5)):
    """Write answers whose SemGrad at -3 alone tells right from wrong."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        signals = {f"semgrad@{at}": rng.random() + (2.0 * (not right(i)) if at == -3 else 0) for at in names}
        row = {"question": f"q{i}", "answer": "a", "correct": right(i), "mean_nll": 1.0}
        rows.append(json.dumps({**row, **signals, "fingerprint": FINGERPRINT}))
    path.write_text("\n".join(rows))
    return path


def test_the_position_that_tells_right_from_wrong_is_named(tmp_path):
    """Labels are the last word on what a position is worth."""
    check = check_labels(written(tmp_path / "scored.jsonl"))
    assert (check.n, check.n_wrong, check.best) == (60, 30, -3)
    assert check.aurocs[-3].value == 1.0
    assert check.contradicts(-1)
    assert not check.contradicts(-3)
    assert not check.contradicts(-9)


def test_labels_that_cannot_decide_are_refused(tmp_path):
    """One class, or no signal of any position."""
    with pytest.raises(OneClassError):
        check_labels(written(tmp_path / "right.jsonl", right=lambda _: True))
    with pytest.raises(DataFileError, match="semgrad@-1"):
        check_labels(written(tmp_path / "none.jsonl", names=()))
