"""`evaluate`, from a file of questions to tables, JSON and a page, with a real tiny model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from semgrad_guard.cli import evaluate
from semgrad_guard.errors import DataFileError, GradedAlikeError
from tests.models_for_tests import local_model
from tests.pages import WIDTH, too_wide

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(evaluate.evaluate)


def run(*arguments: object, code: int = 0) -> str:
    """Return what the command printed; errors of ours come out as they are."""
    result = CliRunner(env={"COLUMNS": WIDTH}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    local = local_model()
    local.model.save_pretrained(folder)
    local.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """Questions whose labels are known, so that there are right and wrong answers."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i}?", "passages": [f"It is {i}."], "correct": i % 3 == 0} for i in range(36)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_prints_tables_and_writes_everything(data: Path, model: Path, tmp_path: Path) -> None:
    """The README's command; a second run answers nothing again."""
    out = tmp_path / "out"
    arguments = (data, "--model", model, "--out", out, "--max-new-tokens", 4, "--samples", 2, "--baselines", 24)
    said = run(*arguments)
    assert "semantic_entropy" in said
    assert "what gradients add" in said
    assert too_wide(said) == []
    result = json.loads((out / "result.json").read_text())
    assert result["comparison"]["n"] + sum(result["left_out"].values()) == 36
    assert {"fused", "semgrad", "mean_nll", "p_true"} <= {one["name"] for one in result["comparison"]["methods"]}
    assert "Attempts to talk it up" in said
    assert all(one["n"] > 0 and 0 < one["mean"] < 1 for one in result["adversarial"].values())
    page = (out / "report.html").read_text()
    assert all(f"<td>{kind}: " in page for kind in result["adversarial"])
    assert page.count("<svg") == 4
    assert re.search(r"""(src|href)=["'](?!#)|url\((?!#)""", page) is None
    before = (out / "answers.jsonl").read_bytes()
    run(*arguments, "--seed", 0, "--no-adversarial")
    assert (out / "answers.jsonl").read_bytes() == before


def test_all_graded_alike_is_an_error_that_shows_answers(data: Path, model: Path, tmp_path: Path) -> None:
    """A random model is never right; the accepted answers may also be in another form."""
    data.write_text("".join(json.dumps({"question": f"q {i}", "answers": ["Eiffel"]}) + "\n" for i in range(24)))
    with pytest.raises(GradedAlikeError) as caught:
        run(data, "--model", model, "--out", tmp_path / "out", "--max-new-tokens", 3, "--samples", 0)
    assert "Eiffel" in str(caught.value)


def test_a_bad_line_is_named_before_the_model_is_loaded(data: Path, tmp_path: Path) -> None:
    """The model of this test does not even exist."""
    data.write_text('{"question": "q"}\n')
    with pytest.raises(DataFileError) as caught:
        run(data, "--model", "no/such", "--out", tmp_path / "out")
    assert caught.value.line == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--grader", "embedding", "--embedding", "none"), "--embedding MODEL"),
        (("--grader", "judge"), "--judge MODEL"),
        (("--grader", "vibes"), "vibes"),
    ],
)
def test_what_a_grader_needs_is_said(data: Path, tmp_path: Path, arguments: tuple, says: str) -> None:
    """Before anything takes time."""
    assert says in run(data, "--out", tmp_path / "out", *arguments, code=2)


def test_a_column_that_is_misspelt_is_refused(tmp_path: Path) -> None:
    """`--field answer=x` would be ignored in silence."""
    assert "answers=COLUMN" in run("hf:x", "--out", tmp_path / "out", "--field", "answer=x", code=2)
