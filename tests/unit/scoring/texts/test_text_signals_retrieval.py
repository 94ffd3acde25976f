"""What retrieval says by its scores and passages."""

from __future__ import annotations

import pytest

from semgrad_guard.flow import Passage
from semgrad_guard.scoring.texts.text_signals import retrieval_signals


def test_scores_give_top_gap_and_spread():
    """Of 1, 3, 2: top 3, gap 1, standard deviation sqrt(2/3)."""
    found = retrieval_signals([Passage("a b", score=1.0), Passage("b c", score=3.0), Passage("c d", score=2.0)])
    assert (found["retrieval_top"], found["retrieval_gap"]) == (3.0, 1.0)
    assert found["retrieval_spread"] == pytest.approx((2 / 3) ** 0.5)
    assert found["n_passages"] == 3.0


def test_agreement_is_the_mean_overlap_of_pairs():
    """Red car, red bus: one of three words in common."""
    assert retrieval_signals([Passage("red car"), Passage("red bus")])["retrieval_agreement"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("passages", "names"),
    [
        ([], set()),
        ([Passage("x")], {"n_passages"}),
        ([Passage("x", score=float("nan"))], {"n_passages"}),
        ([Passage("x", score=0.5)], {"n_passages", "retrieval_top"}),
        ([Passage(""), Passage("")], {"n_passages"}),
    ],
)
def test_what_cannot_be_known_is_absent(passages, names):
    """Retrievers often give no scores."""
    assert set(retrieval_signals(passages)) == names
