"""Questions become answers with signals, samples and costs; a run that was cut off goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.compare.answering import Asked, answer_rows
from semgrad_guard.evaluation.row_files import ScoredFile, Setting
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from pathlib import Path

PASSAGE = "The tower was built by Eiffel."
FEW = Asked(max_new_tokens=4, n_samples=3)


@pytest.fixture(name="scorer", scope="module")
def _scorer() -> SemGradScorer:
    return SemGradScorer(local_model())


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """Three questions; the second brings its answer along."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question": "Who built it?", "passages": [PASSAGE], "answers": ["Eiffel"]},
        {"question": "Who built it then?", "passages": [PASSAGE], "answers": ["Eiffel"], "answer": "Eiffel"},
        {"question": "Who else?", "answers": []},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_missing_answers_are_written_and_scored_in_a_single_pass(data: Path, scorer: SemGradScorer) -> None:
    """The score is that of the answer's own ids, from the cache of the writing."""
    first, *_ = answer_rows(read_rows(data), scorer, FEW)
    assert first["answer_ids"]
    assert first["score"]["path"] == "reused"
    assert {"semgrad", "mean_nll", "copied_span", "context_gain", "p_true"} <= first["score"]["signals"].keys()
    assert set(first["seconds"]) == {"answer", "score", "context_gain", "p_true", "samples"}
    assert first["score"]["fingerprint"]["proxy"] is False


def test_a_given_answer_is_kept_and_scored_as_anothers(data: Path, scorer: SemGradScorer) -> None:
    """Who wrote it is not known, so it is a proxy score."""
    given = list(answer_rows(read_rows(data), scorer, FEW))[1]
    assert given["answer"] == "Eiffel"
    assert "answer" not in given["seconds"]
    assert given["score"]["fingerprint"]["proxy"] is True


def test_samples_have_texts_and_likelihoods_and_depend_on_the_seed(data: Path, scorer: SemGradScorer) -> None:
    """The same seed draws the same answers, in whichever run the row comes up."""
    rows = list(read_rows(data))
    one, two = (list(answer_rows(rows, scorer, FEW)) for _ in range(2))
    assert [row["samples"] for row in one] == [row["samples"] for row in two]
    assert len(one[0]["samples"]) == 3
    assert all(sample["mean_nll"] > 0 for sample in one[0]["samples"])
    (alone,) = answer_rows(rows[2:], scorer, FEW)
    assert [s["text"] for s in alone["samples"]] == [s["text"] for s in one[2]["samples"]]
    other = list(answer_rows(rows, scorer, Asked(max_new_tokens=4, n_samples=3, seed=9)))
    assert other[0]["samples"] != one[0]["samples"]


def test_dear_baselines_are_asked_for_the_first_rows_only(data: Path, scorer: SemGradScorer) -> None:
    """They take most of the time."""
    rows = list(answer_rows(read_rows(data), scorer, Asked(max_new_tokens=4, n_samples=2, n_baseline_rows=1)))
    assert ["samples" in row for row in rows] == [True, False, False]
    assert ["p_true" in row["score"]["signals"] for row in rows] == [True, False, False]


def test_an_answer_that_cannot_be_scored_does_not_end_the_run(data: Path, scorer: SemGradScorer) -> None:
    """It is kept with the reason."""
    data.write_text('{"prompt": "", "prompt_ids": [999], "answers": [], "answer": "x"}\n' + data.read_text())
    rows = list(answer_rows(read_rows(data), scorer, FEW))
    assert rows[0]["error"].startswith("ForeignTokensError")
    assert len(rows) == 4


def test_no_question_is_answered_twice(data: Path, scorer: SemGradScorer, tmp_path: Path) -> None:
    """A run that was killed behind the first row goes on with the second."""
    path = tmp_path / "answers.jsonl"
    file = ScoredFile(path, Setting(fingerprint=scorer.fingerprint()))
    file.append(next(answer_rows(file.pending(data), scorer, FEW)))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"cut off')
    del file  # the earlier run has ended
    again = ScoredFile(path, Setting(fingerprint=scorer.fingerprint()))
    assert [row.line for row in again.pending(data)] == [2, 3]
    assert [row.line for row in again.pending(data, 2)] == [2]
    assert path.read_bytes() == whole


def test_answers_of_another_setting_are_not_mixed_in(data: Path, scorer: SemGradScorer, tmp_path: Path) -> None:
    """Two positions in one file would be compared as one method."""
    path = tmp_path / "answers.jsonl"
    file = ScoredFile(path, Setting(fingerprint=scorer.fingerprint()))
    for found in answer_rows(file.pending(data), scorer, Asked(max_new_tokens=4, n_samples=0)):
        file.append(found)
    del file  # the earlier run has ended
    ScoredFile(path, Setting(fingerprint=scorer.fingerprint()))
    other = SemGradScorer(scorer.model, position=-2).fingerprint()
    with pytest.raises(DataFileError, match=f"position {scorer.position} in the file, -2 in this run"):
        ScoredFile(path, Setting(fingerprint=other))
