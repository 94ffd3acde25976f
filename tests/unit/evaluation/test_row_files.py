"""Files that commands write row by row: one run at a time, and one setting in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.row_files import ROW_KEY, ResumableFile, ScoredFile, Setting, digest, is_scored
from semgrad_guard.flow import Fingerprint, Score
from semgrad_guard.wire import score_fields

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from semgrad_guard.evaluation.row_files import ResumableFile
file = ResumableFile(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_never_write_to_one_file(tmp_path: Path) -> None:
    """The second would answer every question again, and mix its lines with those of the first."""
    path = tmp_path / "answers.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataFileError, match="another run is writing to it"):
            ResumableFile(path)
        other.kill()
        other.wait(timeout=10)
        ResumableFile(path).append({ROW_KEY: "1"})


def test_a_run_that_has_ended_lets_go(tmp_path: Path) -> None:
    """The next one goes on."""
    path = tmp_path / "answers.jsonl"
    ResumableFile(path).append({ROW_KEY: "1"})
    assert ResumableFile(path).done == {"1"}


FINGERPRINT = Fingerprint(
    model="0123456789abcdef",
    dtype="float32",
    template="t",
    settings="position -3, blocks 2 to 3, by answer, texts by claim",
)
SETTING = Setting(fingerprint=FINGERPRINT, model="tiny")


def scored(fingerprint: Fingerprint = FINGERPRINT, **fields: object) -> dict:
    """Return a row that has a score."""
    score = Score(method="semgrad", value=1.0, signals={"semgrad": 1.0}, fingerprint=fingerprint, model="tiny")
    return {"question": "q", "answer": "a", "correct": True, **fields, "score": score_fields(score)}


def write(path: Path, *rows: dict) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "fedcba9876543210"}, "model tiny (0123456789ab) in the file, big (fedcba987654) in this run"),
        ({"dtype": "bfloat16"}, "dtype float32 in the file, bfloat16 in this run"),
        ({"template": "u"}, "template t in the file, u in this run"),
        (
            {"settings": "position -2, blocks 2 to 3, by answer, texts by claim"},
            "position -3 in the file, -2 in this run",
        ),
        (
            {"settings": "position -3, blocks 1 to 3, by answer, texts by claim"},
            "layer band 2 to 3 in the file, 1 to 3 in this run",
        ),
        (
            {"settings": "position -3, blocks 2 to 3, by sentence, texts by claim"},
            "granularity answer in the file, sentence in this",
        ),
        (
            {"settings": "position -3, blocks 2 to 3, by answer, texts by claim, embedder a, b [0.1 0.2]"},
            "embedder none in the file, a, b [0.1 0.2] in this run",
        ),
        ({"settings": "position -3, blocks 2 to 3, by answer"}, "signals of texts by claim in the file, none in this"),
    ],
    ids=["model", "dtype", "template", "position", "band", "granularity", "embedder", "texts"],
)
def test_the_setting_in_which_a_file_differs_is_named(tmp_path: Path, change: dict, says: str) -> None:
    """And no other; the file and what is read are checked alike, before anything is scored."""
    other = Setting(fingerprint=replace(FINGERPRINT, **change), model="big" if "model" in change else "tiny")
    path = write(tmp_path / "scored.jsonl", {**scored(), ROW_KEY: "1"})
    with pytest.raises(DataFileError) as kept:
        ScoredFile(path, other, advice="delete it")
    data = write(tmp_path / "data.jsonl", {"question": "q", "answer": "b"}, scored())
    with pytest.raises(DataFileError) as read:
        list(ScoredFile(tmp_path / "new.jsonl", other).pending(data))
    for caught, line, advice in ((kept, 1, "; delete it"), (read, 2, "--rescore")):
        assert caught.value.line == line
        assert says in caught.value.why
        assert ";" not in caught.value.why
        assert advice in str(caught.value)


@pytest.mark.parametrize(("probe", "is_same"), [("0.51 0.20", True), ("0.50 0.30", False)])
def test_an_embedder_is_known_by_what_it_does(tmp_path: Path, probe: str, is_same: bool) -> None:
    """The same vectors under another name are the same; other vectors under the same name are not."""
    theirs, ours = (
        replace(FINGERPRINT, settings=f"{FINGERPRINT.settings}, embedder {name}")
        for name in ("mine [0.50 0.20]", f"{'yours' if is_same else 'mine'} [{probe}]")
    )
    path = write(tmp_path / "scored.jsonl", {**scored(theirs), ROW_KEY: "1"})
    if is_same:
        assert ScoredFile(path, Setting(fingerprint=ours)).done == {"1"}
        return
    with pytest.raises(DataFileError, match="embedder mine"):
        ScoredFile(path, Setting(fingerprint=ours))


def test_a_proxy_s_file_refuses_the_scoring_model_s_own_answers(tmp_path: Path) -> None:
    """Their scores are of another kind."""
    path = write(tmp_path / "scored.jsonl", {**scored(), ROW_KEY: "1"})
    ScoredFile(path, SETTING)
    with pytest.raises(DataFileError, match="answers by the scoring model in the file, another model in this run"):
        ScoredFile(path, replace(SETTING, proxy=True))


def test_a_row_s_own_position_must_be_that_of_the_run(tmp_path: Path) -> None:
    """A score at -3 says nothing about one at -1."""
    data = write(tmp_path / "data.jsonl", {"prompt": "p", "answer": "x", "position": -1})
    with pytest.raises(DataFileError, match="names position -1, but this run scores at -3"):
        list(ScoredFile(tmp_path / "a.jsonl", SETTING).pending(data))
    assert len(list(ScoredFile(tmp_path / "b.jsonl", SETTING, own_positions=True).pending(data))) == 1


def test_rows_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    """In the order and with the line numbers of the data; what is not done yet comes as it is."""
    rows = [{"question": f"q {i}", "answer": "a"} for i in range(3)]
    data = write(tmp_path / "data.jsonl", *rows)
    file = ScoredFile(tmp_path / "scored.jsonl", SETTING)
    last, first = list(file.pending(data))[2], next(file.pending(data))
    file.append({**scored(**last.fields), ROW_KEY: digest(last)})
    file.append({**scored(**first.fields), ROW_KEY: digest(first)})
    del file
    again = ScoredFile(tmp_path / "scored.jsonl", SETTING)
    found = list(again.rows(data))
    assert [(row.line, row.exchange.question, is_scored(row)) for row in found] == [
        (1, "q 0", True),
        (2, "q 1", False),
        (3, "q 2", True),
    ]
    assert [row.line for row in again.pending(data)] == [2]


def test_a_file_is_not_read_and_written_at_once(tmp_path: Path) -> None:
    """Each new line would be a row to score."""
    path = write(tmp_path / "scored.jsonl", {**scored(), ROW_KEY: "1"})
    with pytest.raises(DataFileError, match="name another file to write"):
        list(ScoredFile(path, SETTING).pending(path))


def test_a_score_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    """It names the line, and how to get a new one."""
    row = scored()
    del row["score"]["value"]
    data = write(tmp_path / "data.jsonl", row)
    with pytest.raises(DataFileError, match="--rescore") as caught:
        list(ScoredFile(tmp_path / "new.jsonl", SETTING).pending(data))
    assert caught.value.line == 1


def test_equal_rows_are_one(tmp_path: Path) -> None:
    """They have one line, however many are scored at once, and all of them are read from it."""
    data = write(tmp_path / "data.jsonl", *[{"question": "q", "answer": "a"}] * 3)
    file = ScoredFile(tmp_path / "scored.jsonl", SETTING)
    (row,) = file.pending(data)
    file.append({**scored(**row.fields), ROW_KEY: digest(row)})
    assert [(row.line, is_scored(row)) for row in file.rows(data)] == [(1, True), (2, True), (3, True)]
