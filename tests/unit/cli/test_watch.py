"""`semgrad-guard watch`: decisions from a file of records, at once and as they come."""

from __future__ import annotations

from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.errors import DataFileError
from semgrad_guard.flow import Status
from semgrad_guard.telemetry import JsonlSink
from semgrad_guard.telemetry.jsonl import RecordReader
from tests.records import make_attempt, make_record


def shown(file, *options):
    """Run the command in a terminal of 80 columns."""
    return CliRunner().invoke(app, ["watch", str(file), "--once", *options], env={"COLUMNS": "80"})


def test_it_shows_what_was_decided_newest_first(tmp_path):
    """With figures about all above."""
    sink = JsonlSink(tmp_path / "guard.jsonl")
    sink.emit(make_record(make_attempt("a1", 0.9), status=Status.ANSWERED))
    sink.emit(make_record())
    lines = shown(tmp_path / "guard.jsonl").stdout.splitlines()
    assert lines[0] == "2 questions, 1 answered, 1 abstained, median confidence 0.65"
    first, second = (next(n for n, line in enumerate(lines) if word in line) for word in (" abstained ", " answered "))
    assert 1 < first < second
    assert max(map(len, lines)) <= 80
    assert "question Paris" in lines[second]


def test_a_long_question_hides_nothing_else(tmp_path):
    """The rule is what one looks for."""
    sink = JsonlSink(tmp_path / "guard.jsonl")
    sink.emit(make_record(text="why " * 100))
    said = shown(tmp_path / "guard.jsonl").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert all(word in said for word in ("abstained", "on_error", "why why"))


def test_texts_that_are_not_logged_are_no_riddle(tmp_path):
    """An empty column would look like a fault."""
    JsonlSink(tmp_path / "guard.jsonl", log_text=False).emit(make_record())
    assert "not logged" in shown(tmp_path / "guard.jsonl").stdout


def test_only_the_last_are_shown_and_all_are_counted(tmp_path):
    """A file may have millions of lines."""
    sink = JsonlSink(tmp_path / "guard.jsonl")
    for n in range(5):
        sink.emit(make_record(make_attempt(f"a{n}"), status=Status.ANSWERED))
    said = shown(tmp_path / "guard.jsonl", "--last", "2").stdout
    assert said.startswith("5 questions")
    assert said.count("question Paris") == 2


def test_a_missing_file_is_named(tmp_path):
    """With what makes one."""
    error = shown(tmp_path / "none.jsonl").exception
    assert isinstance(error, DataFileError)
    assert "telemetry" in str(error)


def test_new_lines_are_read_once_whole_and_through_a_rotation(tmp_path):
    """As a guard writes them."""
    file = tmp_path / "guard.jsonl"
    sink = JsonlSink(file)
    sink.emit(make_record(make_attempt("a1")))
    reader = RecordReader(file)
    assert [record.id for record in reader.new()] == ["a1"]
    assert reader.new() == []
    sink.emit(make_record(make_attempt("a2")))
    whole = file.read_bytes()
    with file.open("ab") as half:
        half.write(whole.splitlines(keepends=True)[0][:50])
    assert [record.id for record in reader.new()] == ["a2"]
    file.replace(tmp_path / "guard.jsonl.1")
    assert reader.new() == []
    sink.emit(make_record(make_attempt("a3")))
    assert [record.id for record in reader.new()] == ["a3"]
