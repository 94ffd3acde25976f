"""Methods side by side: figures, intervals, differences and what each family adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.labels import collect
from semgrad_guard.errors import GradedAlikeError, TooFewLabelsError
from semgrad_guard.evaluation.compare.comparing import compare, rank
from semgrad_guard.evaluation.compare.labelled import Grading
from semgrad_guard.evaluation.grading import by_words, shared_words
from semgrad_guard.evaluation.row_files import ResumableFile
from tests.unit.evaluation.compare.answered import answered, write

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.calibration.labels import Labels
    from semgrad_guard.evaluation.compare.comparing import Comparison, MethodResult


def grade(path: Path, rows: list[dict]) -> tuple[Grading, Labels]:
    """Return the grading and the labels of rows."""
    grading = Grading(grader=by_words("exact"), alike=shared_words, same=0.5)
    return grading, collect(grading.labels(ResumableFile(write(path, rows))))


def compared(path: Path, rows: list[dict]) -> tuple[Comparison, dict[str, MethodResult]]:
    """Return the comparison of rows, and its methods by name."""
    grading, labels = grade(path, rows)
    found = compare(labels, rank(labels), grading.mean_seconds(), draws=100)
    return found, {one.name: one for one in found.methods}


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_a_single_score_ranks_as_it_is(path: Path) -> None:
    """Calibration must not change the AUROC that is told of a raw score."""
    rows = answered()
    right = np.array([row["answer"] == "yes" for row in rows], dtype=float)
    expected = metrics.auroc(-np.array([row["semgrad"] for row in rows]), right)
    assert compared(path, rows)[1]["semgrad"].auroc.value == pytest.approx(expected)


def test_fusing_two_halves_of_the_truth_beats_each(path: Path) -> None:
    """That is what fusion is for, and the figures are out-of-sample."""
    _, by_name = compared(path, answered(400))
    best = max(by_name[name].auroc.value for name in ("semgrad", "grounding"))
    assert by_name["fused"].auroc.value > best
    behind = by_name["mean_nll"].behind_fused
    assert behind.value == pytest.approx(by_name["fused"].auroc.value - by_name["mean_nll"].auroc.value)
    assert behind.low > 0


def test_ablation_tells_what_a_family_adds(path: Path) -> None:
    """Gradients know what likelihoods and words do not, here; an extra forward pass knows nothing."""
    found, by_name = compared(path, answered(400))
    added = found.ablations["gradients"]
    without = by_name["fused, no gradients"].auroc.value
    assert added.value == pytest.approx(by_name["fused"].auroc.value - without)
    assert added.low > 0
    assert found.ablations["forward passes"].low < 0.01


def test_methods_with_few_rows_are_compared_on_those(path: Path) -> None:
    """Samples were drawn for the first questions only."""
    found, by_name = compared(path, answered(200, n_sampled=80))
    assert by_name["semantic_entropy"].n == 80
    assert by_name["fused"].n == found.n == 200
    assert by_name["semantic_entropy"].behind_fused.value is not None


def test_costs_are_those_of_the_steps_a_method_needs(path: Path) -> None:
    """Text costs nothing, a fusion what its signals cost."""
    _, by_name = compared(path, answered(200, n_sampled=80))
    costs = {name: by_name[name].seconds for name in ("grounding", "semgrad", "fused", "fused + forward")}
    assert costs == {"grounding": 0.0, "semgrad": 0.25, "fused": 0.25, "fused + forward": 0.75}
    assert by_name["semantic_entropy"].seconds == 5.0


def test_rows_with_a_nan_do_not_spoil_a_method(path: Path) -> None:
    """A score that is no number is a missing score."""
    rows = answered(200)
    for row in rows[:5]:
        row["semgrad"] = float("nan")
    _, by_name = compared(path, rows)
    assert by_name["semgrad"].n == 195
    assert by_name["mean_nll"].n == 200
    assert 0.5 < by_name["fused"].auroc.value < 1


def test_copies_of_one_answer_do_not_teach_the_fusion(path: Path) -> None:
    """Duplicates across folds would let it learn answers by heart: a score of pure noise would look good."""
    rng = np.random.default_rng(1)
    rows = []
    for i, row in enumerate(answered(60)):
        noise = {name: float(rng.gamma(2.0)) for name in ("semgrad", "paragrad", "mean_nll", "max_nll")}
        texts = {"grounding": 0.5, "copied_span": float(rng.random())}
        rows += [{**row, **noise, **texts, "question": f"question {i}", "row_digest": f"{i}-{j}"} for j in range(5)]
    _, by_name = compared(path, rows)
    assert by_name["fused"].auroc.value < 0.65


def test_tags_are_told_apart(path: Path) -> None:
    """A score that only spots unanswerable questions must not pass for a good one."""
    rows = answered(300)
    for row in rows[::3]:
        row["answers"] = []
    found, _ = compared(path, rows)
    by_tag = {tag.tag: tag for tag in found.tags}
    assert by_tag["unanswerable"].right == 0
    assert by_tag["unanswerable"].auroc["fused"].value is None
    assert by_tag["answerable"].n == 200
    assert by_tag["answerable"].auroc["semgrad"].value > 0.6


def test_a_tag_that_all_rows_have_is_not_told(path: Path) -> None:
    """It would repeat the whole."""
    assert compared(path, answered(100))[0].tags == ()


def test_three_rows_are_too_few(path: Path) -> None:
    """A clear error, not a table of noise."""
    _, labels = grade(path, answered(3))
    with pytest.raises(TooFewLabelsError) as caught:
        rank(labels)
    assert caught.value.n == 3


def test_a_grader_that_never_matches_shows_examples(path: Path) -> None:
    """Most often the accepted answers are in another form than the answers."""
    rows = [{**row, "answers": ["YES!?"], "answer": "certainly"} for row in answered(30)]
    grading, _ = grade(path, rows)
    with pytest.raises(GradedAlikeError) as caught:
        grading.check_both_kinds("exact")
    assert (caught.value.n, caught.value.right) == (30, False)
    assert "'certainly' for ['YES!?']" in str(caught.value)


def test_answers_without_a_score_are_counted_by_reason(path: Path) -> None:
    """Nothing is dropped in silence."""
    rows = answered(100)
    for row in rows[:7]:
        row["error"] = "EmptyAnswerError: nothing"
    grading, labels = grade(path, rows)
    assert grading.left_out == {"EmptyAnswerError": 7}
    assert len(labels) == 93


def test_given_labels_come_before_graders(path: Path) -> None:
    """A person's label is worth more than a comparison of words."""
    rows = [{**row, "correct": True} for row in answered(10)]
    grading, _ = grade(path, rows)
    assert grading.n_right == 10


def test_a_score_is_not_praised_for_being_the_luckiest(path: Path) -> None:
    """The best of many scores of noise looks good on the answers it was picked on, and is worth nothing on others."""
    rng = np.random.default_rng(3)
    noisy = ("semgrad", "paragrad", "exgrad", "mean_nll", "max_nll", "first_nll", "grounding", "copied_span")
    rows = [{**row, **{name: float(rng.random()) for name in noisy}} for row in answered(120)]
    _, by_name = compared(path, rows)
    luckiest = max(by_name[name].auroc.value for name in noisy)
    assert by_name["best single score"].auroc.value < 0.55 < luckiest
    assert by_name["best single score"].kind == "chosen"


def test_the_best_single_score_is_found(path: Path) -> None:
    """Where one score is clearly the best, choosing it costs little."""
    _, by_name = compared(path, answered(400))
    assert by_name["best score of the model"].auroc.value > by_name["semgrad"].auroc.value - 0.02
