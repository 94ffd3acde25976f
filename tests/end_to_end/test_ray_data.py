"""`score --ray` and `evaluate --ray` on a real local Ray: the lines of one process, even where a run was cut off."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.cli.evaluate import _workings
from semgrad_guard.evaluation.compare.answering import AnsweringModel, Asked
from semgrad_guard.evaluation.on_ray import Workers
from semgrad_guard.evaluation.rows import read_rows
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ray = pytest.importorskip("ray", reason="needs pip install 'ray[serve,data]'", exc_type=ImportError)
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(900),
]


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory):
    """A tiny chat model in a folder, and a Ray that is shared by the tests."""
    folder = tmp_path_factory.mktemp("tiny")
    local = local_model()
    local.model.save_pretrained(folder)
    local.tokenizer.save_pretrained(folder)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield folder
    ray.shutdown()


def run(*words: object) -> None:
    """Run a command; its error is raised."""
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file without the times."""
    return without_times(json.loads(line) for line in path.read_text().splitlines())


def without_times(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines without the seconds that each took, which differ from run to run."""
    found = [json.loads(json.dumps(line)) for line in lines]
    for line in found:
        line.pop("seconds", None)
        line.get("score", {}).pop("seconds", None)
    return found


def test_a_file_scored_by_two_processes_is_that_of_one(model: Path, tmp_path: Path) -> None:
    """The same rows, in the same order, with the same numbers; the row that cannot be scored has its error."""
    data, one, two = (tmp_path / name for name in ("data.jsonl", "one.jsonl", "two.jsonl"))
    rows = [{"id": i, "prompt": f"What is {i}?", "answer": f"It is {i}." if i != 7 else ""} for i in range(70)]
    rows[40]["position"] = -2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("score", data, "--model", model, "--out", one)
    run("score", data, "--model", model, "--out", two, "--ray", "--workers", "2")
    assert lines_of(two) == lines_of(one)
    kept = two.read_text().splitlines(keepends=True)
    two.write_text("".join(kept[:21]) + kept[21][:30])
    run("score", data, "--model", model, "--out", two, "--ray", "--workers", "2")
    assert [line["id"] for line in lines_of(two)] == list(range(70))
    assert two.read_text().splitlines(keepends=True)[:21] == kept[:21]
    whole, again = lines_of(one), lines_of(two)
    assert [line.get("error") for line in again] == [line.get("error") for line in whole]
    values = [[line["score"]["value"] for line in found if "score" in line] for found in (again, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_questions_answered_by_two_processes_have_the_answers_of_one(model: Path, tmp_path: Path) -> None:
    """What `evaluate` does before it compares: answers with their scores, and scores alone for made answers."""
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i}?", "passages": [f"It is {i}."], "correct": i % 3 == 0} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Asked(max_new_tokens=4, n_baseline_rows=0, n_samples=0)
    answering = AnsweringModel(model=str(model))
    one = _workings(answering, asked, None, data)
    two = _workings(answering, asked, Workers(number=2), data)
    batches = [[row] for row in read_rows(data)]
    for here, there in zip(one, two, strict=True):
        assert (there.name, there.fingerprint) == (here.name, here.fingerprint)
        assert without_times(there.lines(batches)) == without_times(here.lines(batches))
