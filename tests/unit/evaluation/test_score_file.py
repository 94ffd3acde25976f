"""Scoring a file, and going on after being cut off."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError, EmptyAnswerError
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.row_files import ScoredFile, Setting
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.evaluation.score_file import BATCH_ROWS, score_rows
from semgrad_guard.evaluation.simulate import RecordedRows
from tests.fakes import FINGERPRINT, OneMinusScore, TableScorer

if TYPE_CHECKING:
    from pathlib import Path

PRINT = asdict(FINGERPRINT)
SETTING = Setting(fingerprint=FINGERPRINT, model="fake", method="fake")


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """Twenty answers, one of which cannot be scored."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": "p", "answer": f"a{i}"}) + "\n" for i in range(20)))
    return path


def _run(data: Path, out: Path, scorer: TableScorer, limit: int | None = None) -> ScoredFile:
    file = ScoredFile(out, SETTING)
    for n, found in enumerate(score_rows(file.pending(data), lambda _: scorer, None, chat=True, own_answers=True)):
        if n == limit:
            break
        file.append(found)
    return file


def test_every_row_comes_out_once_in_order(data: Path, tmp_path: Path) -> None:
    """Nothing is lost, and what the row said is kept."""
    out = tmp_path / "out.jsonl"
    _run(data, out, TableScorer({}, 0.5))
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in said] == list(range(20))
    score = said[0]["score"]
    assert score["signals"]["fake"] == score["value"] == 0.5
    assert score["fingerprint"] == PRINT


def test_a_cut_off_run_goes_on_where_it_ended(data: Path, tmp_path: Path) -> None:
    """Nothing is scored twice, even when the last line was only half written."""
    out = tmp_path / "out.jsonl"
    _run(data, out, TableScorer(), limit=7)
    with out.open("a") as file:
        file.write('{"id": 7, "pro')
    again = TableScorer()
    _run(data, out, again)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == list(range(20))
    assert [e.answer for e in again.seen] == [f"a{i}" for i in range(7, 20)]


def test_a_row_that_cannot_be_scored_does_not_end_the_run(data: Path, tmp_path: Path) -> None:
    """It says what was wrong in its own line."""
    out = tmp_path / "out.jsonl"
    file = _run(data, out, TableScorer({"a3": EmptyAnswerError()}))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (len(rows), file.n_errors) == (20, 1)
    assert rows[3]["error"].startswith("EmptyAnswerError")
    assert "score" not in rows[3]


def test_what_was_scored_is_read_again(tmp_path: Path) -> None:
    """`calibrate` and `policy simulate` take the file as it is."""
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"question": "q", "answer": "a", "correct": true}\n')
    _run(data, out, TableScorer({}, 0.5))
    (label,) = Labeller(path=out).label(read_rows(out))
    (question,) = RecordedRows(out)
    assert (label.signals, label.fingerprint, label.correct) == ({"fake": 0.5}, FINGERPRINT, True)
    assert question.first.exchange.score == TableScorer({}, 0.5).score(question.first.exchange)


def test_scores_of_another_setting_are_not_mixed_in(data: Path, tmp_path: Path) -> None:
    """They could not be compared with the new ones."""
    out = tmp_path / "out.jsonl"
    _run(data, out, TableScorer())
    with pytest.raises(DataFileError, match="dtype float32 in the file, bfloat16 in this run") as caught:
        ScoredFile(out, replace(SETTING, fingerprint=replace(FINGERPRINT, dtype="bfloat16")))
    assert caught.value.line == 1


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    """A slip of the tongue must not spoil a user's file."""
    out = tmp_path / "notes.jsonl"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(DataFileError):
        ScoredFile(out, SETTING)
    assert out.read_text() == '{"mine": 1}\n'


def test_confidence_is_added_where_a_profile_fits(data: Path) -> None:
    """Confidence is what users act on."""
    found = next(
        score_rows(read_rows(data), lambda _: TableScorer({}, 0.25), OneMinusScore(), chat=True, own_answers=True)
    )
    assert found["confidence"] == 0.75


def test_a_row_s_own_position_is_used(tmp_path: Path) -> None:
    """Rows of several templates may stand in one file."""
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "p", "answer": "a", "position": -3}, {"prompt": "p", "answer": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[int | None] = []

    def at(position: int | None) -> TableScorer:
        asked.append(position)
        return TableScorer()

    list(score_rows(read_rows(path), at, None, chat=True, own_answers=False))
    assert asked == [-3, None]


def test_batches_are_bounded(tmp_path: Path) -> None:
    """A kill loses at most one batch of work."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "answer": str(i)}) + "\n" for i in range(2 * BATCH_ROWS)))
    scorer = TableScorer()
    rows = score_rows(read_rows(path), lambda _: scorer, None, chat=True, own_answers=False)
    next(rows)
    assert len(scorer.seen) == BATCH_ROWS
