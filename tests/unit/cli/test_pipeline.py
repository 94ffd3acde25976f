"""`calibrate`, `score`, `evaluate` and `policy simulate` read each other's files, with a tiny model in a folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from semgrad_guard.calibration import load_profile
from semgrad_guard.cli.app import app
from semgrad_guard.errors import ContradictoryLabelsError, DataFileError, TooFewLabelsError
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATE = ("calibrate", "logs.jsonl", "--proxy", "--model", "tiny", "--rows", "scored.jsonl", "--out", "p.json")
POLICY = "version: 1\nscorer: {model: tiny, profile: p.json}\naccept: 0.5\notherwise: abstain\non_error: abstain\n"
LOGS = [
    {"question": f"q {i}", "passages": [f"p {i}"], "answer": f"{i}" if i % 2 else "no", "correct": bool(i % 2)}
    for i in range(32)
]
"""Answers of an API model: what was asked, what it read, what it wrote, and whether that was right; no prompt."""


def run(*words: object, code: int = 0) -> Any:
    """Return the result of a command; errors of ours come out as they are."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(name="folder", autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a tiny model and the logged answers."""
    local = local_model()
    local.model.save_pretrained(tmp_path / "tiny")
    local.tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path / "logs.jsonl", LOGS)
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path: Path) -> list[dict]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(path: Path) -> list[tuple[float, float]]:
    """Return a signal of each row, and the seconds that scoring it took: a row scored again would have others."""
    return [(row["score"]["signals"]["semgrad"], row["score"]["seconds"]) for row in lines(path)]


def test_one_command_calibrates_logged_answers(folder: Path) -> None:
    """No prompt is needed; the next run takes what this one scored."""
    done = run(*CALIBRATE)
    assert "32 labelled answers" in done.stdout
    profile = load_profile(folder / "p.json")
    assert (profile.n_labels, profile.fingerprint.proxy) == (32, True)
    kept = (folder / "scored.jsonl").read_bytes()
    run(*CALIBRATE)
    assert (folder / "scored.jsonl").read_bytes() == kept
    write(folder / "logs.jsonl", [*LOGS, {**LOGS[0], "question": "new", "correct": True}])
    run(*CALIBRATE)
    assert (folder / "scored.jsonl").read_bytes().startswith(kept)
    assert len(lines(folder / "scored.jsonl")) == 33


def test_token_ids_of_the_api_model_are_not_read(folder: Path) -> None:
    """They belong to its own tokenizer."""
    write(folder / "logs.jsonl", [{**row, "answer_ids": [99_999], "prompt_ids": [99_999]} for row in LOGS])
    run(*CALIBRATE)
    assert load_profile(folder / "p.json").n_labels == 32


def test_all_commands_take_the_scored_rows(folder: Path) -> None:
    """None of them scores a row again."""
    run(*CALIBRATE)
    scored = scores(folder / "scored.jsonl")
    run("score", "scored.jsonl", "--out", "with.jsonl", "--model", "tiny", "--profile", "p.json")
    assert scores(folder / "with.jsonl") == scored
    assert all(0 < row["confidence"] < 1 for row in lines(folder / "with.jsonl"))
    options = ("--model", "tiny", "--samples", 2, "--baselines", 3, "--embedding", "none", "--out", "run")
    run("evaluate", "with.jsonl", *options)
    answers = folder / "run" / "answers.jsonl"
    assert scores(answers) == scored
    assert ["samples" in row for row in lines(answers)][:4] == [True, True, True, False]
    assert "p_true" in lines(answers)[0]["score"]["signals"]
    run("calibrate", answers, "--out", "q.json")
    assert load_profile(folder / "q.json").n_labels == 32
    for file in ("scored.jsonl", "with.jsonl", answers):
        assert json.loads(run("policy", "simulate", "policy.yaml", file, "--json").stdout)["all"]["n"] == 32


def test_calibrate_goes_on_with_a_file_of_score(folder: Path) -> None:
    """Both write the same lines for the same rows."""
    run("score", "logs.jsonl", "--out", "scored.jsonl", "--model", "tiny")
    kept = (folder / "scored.jsonl").read_bytes()
    run(*CALIBRATE)
    assert (folder / "scored.jsonl").read_bytes() == kept


def test_simulate_scores_rows_without_a_score(folder: Path) -> None:
    """By the policy's scorer, and nothing else is printed with --json; its rows serve calibrate as well."""
    run(*CALIBRATE)
    (folder / "logs.jsonl").write_text("\n" + (folder / "logs.jsonl").read_text())
    done = run("policy", "simulate", "policy.yaml", "logs.jsonl", "--rows", "again.jsonl", "--json")
    assert json.loads(done.stdout)["all"]["n"] == 32
    assert "32 rows have no score" in done.stderr
    assert [value for value, _ in scores(folder / "again.jsonl")] == [v for v, _ in scores(folder / "scored.jsonl")]
    kept = scores(folder / "again.jsonl")
    run(*(word.replace("scored", "again") for word in CALIBRATE))
    assert scores(folder / "again.jsonl") == kept


def test_a_mistake_in_rows_that_simulate_scored_is_named_where_it_stands(folder: Path) -> None:
    """By the user's own file and line, though what is replayed is a copy with the scores."""
    run(*CALIBRATE)
    unlabelled = {name: value for name, value in LOGS[0].items() if name != "correct"}
    rows = [json.dumps(row) for row in (LOGS[1], unlabelled)]
    (folder / "logs.jsonl").write_text("\n\n".join(["", *rows]) + "\n")
    with pytest.raises(DataFileError, match="neither `correct` nor `answers`") as caught:
        run("policy", "simulate", "policy.yaml", "logs.jsonl")
    assert (caught.value.path, caught.value.line) == ("logs.jsonl", 5)


def test_simulate_names_the_setting_of_a_profile_that_fits_no_row() -> None:
    """Instead of a table in which nothing has a confidence; this profile reads only a signal that has a position."""
    run(*CALIBRATE, "--method", "semgrad")
    run("score", "logs.jsonl", "--out", "other.jsonl", "--model", "tiny", "--position", -2)
    with pytest.raises(DataFileError, match=r"position -2 in the file, .* in profile p") as caught:
        run("policy", "simulate", "policy.yaml", "other.jsonl")
    assert (caught.value.path, caught.value.line) == ("other.jsonl", 1)


def test_rows_of_another_setting_are_refused_by_its_name(folder: Path) -> None:
    """What the file has, what this run wants, and what to do."""
    run(*CALIBRATE)
    (folder / "other.yaml").write_text(
        "version: 1\nscorer: {model: tiny, position: -2}\naccept: 0.5\non_error: abstain\n"
    )
    with pytest.raises(DataFileError, match=r"position .* in the file, -2 in this run") as caught:
        run(*CALIBRATE, "--policy", "other.yaml")
    assert "name another one with --rows, or delete scored.jsonl" in str(caught.value)
    with pytest.raises(DataFileError, match=r"in the file, -2 in this run.*--rescore"):
        run("score", "scored.jsonl", "--model", "tiny", "--position", -2)
    run("score", "scored.jsonl", "--out", "anew.jsonl", "--model", "tiny", "--position", -2, "--rescore")
    assert all("position -2" in row["score"]["fingerprint"]["settings"] for row in lines(folder / "anew.jsonl"))


def test_rows_of_two_settings_in_one_file_are_refused(folder: Path) -> None:
    """Before anything is fitted, with both lines."""
    run("score", "logs.jsonl", "--out", "one.jsonl", "--model", "tiny")
    run("score", "logs.jsonl", "--out", "two.jsonl", "--model", "tiny", "--position", -2)
    write(folder / "both.jsonl", [*lines(folder / "one.jsonl")[:20], *lines(folder / "two.jsonl")])
    with pytest.raises(DataFileError, match=r"than line 1: position -2 here, .* in line 1") as caught:
        run("calibrate", "both.jsonl", "--out", "p.json")
    assert caught.value.line == 21


def test_own_answers_and_those_of_another_model_are_not_mixed(folder: Path) -> None:
    """A row without an answer would be answered by the scoring model."""
    write(folder / "logs.jsonl", [*LOGS, {"question": "q", "answers": ["a"]}])
    with pytest.raises(DataFileError, match="--proxy") as caught:
        run("calibrate", "logs.jsonl", "--model", "tiny", "--out", "p.json")
    assert caught.value.line == 33
    with pytest.raises(DataFileError, match="has no `answer`"):
        run(*CALIBRATE)


def test_score_fails_when_every_row_failed(folder: Path) -> None:
    """A script must not go on with a file of errors; one good row is enough."""
    write(folder / "empty.jsonl", [{"question": f"q {i}", "answer": ""} for i in range(3)])
    failed = run("score", "empty.jsonl", "--model", "tiny", code=1)
    assert "none of the 3 rows" in failed.stderr
    assert "EmptyAnswerError" in failed.stderr
    write(folder / "some.jsonl", [{"question": "q", "answer": ""}, {"question": "q", "answer": "a"}])
    assert "2 rows in some.scored.jsonl, 1 with an error" in run("score", "some.jsonl", "--model", "tiny").stdout


def test_too_few_rows_are_refused_before_any_is_scored(folder: Path) -> None:
    """The model is not even loaded: this one does not exist."""
    write(folder / "logs.jsonl", LOGS[:19])
    for words in (("evaluate", "logs.jsonl"), ("calibrate", "logs.jsonl", "--proxy")):
        with pytest.raises(TooFewLabelsError) as caught:
            run(*words, "--model", "no/such")
        assert (caught.value.n, caught.value.needed) == (19, 20)


def test_calibrate_says_why_rows_are_missing_when_too_few_remain(folder: Path) -> None:
    """The number alone would be a riddle: here token ids are none of the model's."""
    write(folder / "logs.jsonl", [{**row, "answer_ids": [99_999]} for row in LOGS])
    result = CliRunner().invoke(app, ["calibrate", "logs.jsonl", "--model", "tiny", "--out", "p.json"])
    assert isinstance(result.exception, TooFewLabelsError)
    assert "32 left out: ForeignTokensError" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("score", "logs.jsonl"),
        ("evaluate", "logs.jsonl"),
        ("calibrate", "logs.jsonl", "--proxy"),
        ("policy", "simulate", "loose.yaml", "logs.jsonl"),
    ],
    ids=lambda words: words[0],
)
def test_a_misspelt_field_is_named_by_every_command(folder: Path, words: tuple[str, ...]) -> None:
    """Before a model is loaded."""
    write(folder / "logs.jsonl", [*LOGS, {"question": "q", "anwser": "a", "correct": True}])
    (folder / "loose.yaml").write_text("version: 1\nscorer: {model: no/such}\naccept: 0.5\non_error: abstain\n")
    with pytest.raises(DataFileError, match="`anwser` is not a field: did you mean `answer`") as caught:
        run(*words)
    assert caught.value.line == 33


def test_contradicting_labels_are_left_out_with_a_warning(folder: Path) -> None:
    """The warning says how many and where; the others are fitted."""
    write(folder / "logs.jsonl", [*LOGS, {**LOGS[3], "correct": False}])
    done = run(*CALIBRATE)
    assert "2 of 33 rows" in done.stderr
    assert "lines 4 and 33" in done.stderr
    assert "2 left out: labelled both right and wrong" in done.stderr
    assert load_profile(folder / "p.json").n_labels == 31


def test_many_contradicting_labels_end_the_run_before_it_begins(folder: Path) -> None:
    """The model of this run does not exist."""
    write(folder / "logs.jsonl", [*LOGS, *({**row, "correct": not row["correct"]} for row in LOGS[:5])])
    for words in (("calibrate", "logs.jsonl", "--proxy"), ("evaluate", "logs.jsonl")):
        with pytest.raises(ContradictoryLabelsError, match="10 of 37 rows") as caught:
            run(*words, "--model", "no/such")
        assert caught.value.lines == tuple((i + 1, i + 33) for i in range(5))


def test_evaluate_leaves_contradicting_rows_out(folder: Path) -> None:
    """And says so in its result."""
    write(folder / "logs.jsonl", [*LOGS, {**LOGS[3], "correct": False}])
    options = ("--model", "tiny", "--samples", 0, "--baselines", 0, "--embedding", "none", "--out", "run")
    run("evaluate", "logs.jsonl", *options)
    result = json.loads((folder / "run" / "result.json").read_text())
    assert (result["comparison"]["n"], result["left_out"]) == (31, {"labelled both right and wrong": 2})
