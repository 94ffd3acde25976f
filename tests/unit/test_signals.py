"""The one table of signals: what each is, which way it points, and that everything else follows from it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.evaluation.compare.comparing import fused_methods, single_methods
from semgrad_guard.evaluation.compare.sampled_signals import Sample, sampled_signals
from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.policy import policy_from
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.signals import (
    COSTLY,
    FREE,
    MEANING,
    METHODS,
    PROBES,
    SAMPLED,
    SIGNALS,
    Family,
    Signal,
    direction_of,
    explain,
    may_be_required,
)
from tests.models_for_tests import local_model


class LetterCounts:
    """Sentence embeddings for tests: counts of letters."""

    name = "letters"

    def __call__(self, texts):
        return [[float(text.lower().count(chr(97 + i))) + 1.0 for i in range(26)] for text in texts]


EXCHANGE = Exchange(
    prompt="Lyon has 500 thousand people. Paris has 2 million people.\n\nHow many people has Lyon?",
    answer="Lyon has 500 thousand.",
    question="How many people has Lyon?",
    passages=(Passage("Lyon has 500 thousand people.", score=0.9), Passage("Paris has 2 million people.", score=0.4)),
)


def test_a_row_in_the_table_and_its_computation_is_all_that_a_signal_needs() -> None:
    """What a scorer computes is what the table lists: nothing is computed unlisted, nothing listed is missing."""
    scorer = SemGradScorer(local_model(), embedder=LetterCounts(), signals=(*FREE, *COSTLY, *PROBES))
    score = scorer.score(EXCHANGE)
    assert set(score.vectors) == set(PROBES), "a profile makes numbers of them"
    assert set(score.signals) | set(score.vectors) == set(SIGNALS)
    assert set(FREE) | set(MEANING) | set(COSTLY) | set(PROBES) == set(SIGNALS)


def test_every_sampled_signal_is_computed() -> None:
    """They come from the comparison's own file."""
    alike = np.array([[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]])
    found = sampled_signals("Lyon", [Sample("Paris", 1.0), Sample("Lyon", 0.5)], alike, 0.8)
    assert set(found) == set(SAMPLED)


@pytest.mark.parametrize("signal", [*SIGNALS.values(), *SAMPLED.values()], ids=lambda s: s.name)
def test_every_signal_is_described_whole(signal: Signal) -> None:
    """A signal with a direction has words for both sides, and one without tells its value."""
    assert signal.meaning
    assert signal.unit
    assert signal.source
    assert signal.family in get_args(Family)
    if signal.family != "sampling":  # they rank methods in a comparison and never explain a confidence
        assert bool(signal.lowers) == bool(signal.raises) == (signal.direction != 0)
    assert not signal.is_score or signal.direction == -1


@pytest.mark.parametrize("name", [*METHODS, "fused"])
def test_the_policy_takes_every_score_as_its_method(name: str) -> None:
    """Its list is the table's."""
    assert policy_from({"version": 1, "accept": 0.5, "scorer": {"method": name}}).scorer.method == name


def test_the_policy_takes_every_costly_signal_and_no_other() -> None:
    """The free ones are computed anyway."""
    assert policy_from({"version": 1, "accept": 0.5, "scorer": {"signals": list(COSTLY)}}).scorer.signals == COSTLY
    with pytest.raises(PolicyFileError):
        policy_from({"version": 1, "accept": 0.5, "scorer": {"signals": ["grounding"]}})


def test_the_comparison_ranks_every_signal_that_has_a_direction_of_its_own() -> None:
    """A new signal is compared without another list."""
    names = (*SIGNALS, *SAMPLED)
    directed = {s.name for s in (*SIGNALS.values(), *SAMPLED.values()) if s.direction and s.ranks}
    assert {method.name for method in single_methods(names)} == directed
    assert {name for method in fused_methods(names) for name in method.signals} == set(SIGNALS)


def test_no_profile_demands_what_a_retriever_may_not_give() -> None:
    """One passage alone, or a retriever without scores, must not leave an answer uncalibrated; no prefix decides it."""
    assert not any(may_be_required(name) for name in SIGNALS if name.startswith("retrieval_"))
    assert may_be_required("retrieval_of_my_own")
    assert may_be_required("grounding")


def test_a_variant_has_its_base_signals_direction() -> None:
    """SemGrad at any position is an uncertainty."""
    assert direction_of("semgrad@-17") == -1


def test_the_callers_table_comes_first() -> None:
    """By full name or by base name."""
    assert direction_of("semgrad@-1", {"semgrad": 1}) == 1
    assert direction_of("own", {"own": -1}) == -1
    assert direction_of("own") == 0


def test_words_say_which_way() -> None:
    """Known signals have words for both sides; others tell their value."""
    assert explain("grounding", -1, 0.1, 0.5) == "answer words are not in the passages"
    assert explain("grounding", 1, 0.9, 0.5) == "answer words are in the passages"
    assert explain("n_answer_tokens", -1, 90, 12.5) == "n answer tokens is high (90, on average 12.5)"
