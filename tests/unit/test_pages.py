"""The test of the pages can fail: each thing that it looks for is seen to be missing once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pages import PageRun, blocks_of, check_command, same_output

if TYPE_CHECKING:
    from pathlib import Path


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, write: bool = False) -> Path:
    """Run a page that has this text."""
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    PageRun(page, {"question": lambda: "Who?"}, write=write).run()
    return page


def test_blocks_share_their_names_and_what_they_print_is_compared(tmp_path, monkeypatch):
    """A page is read from top to bottom."""
    good = "```python\na = 1\n```\ntext\n```python\nprint(a + 1)\n```\n\n<!-- output -->\n```text\n2\n```\n"
    run(tmp_path, monkeypatch, good)
    with pytest.raises(AssertionError, match="what is printed"):
        run(tmp_path, monkeypatch, good.replace("```text\n2", "```text\n3"))


def test_an_output_is_written_where_that_is_asked_for(tmp_path, monkeypatch):
    """Figures change when a profile is fitted again."""
    page = run(tmp_path, monkeypatch, "```python\nprint(7)\n```\n\n<!-- output -->\n```text\n```\n", write=True)
    assert "```text\n7\n```" in page.read_text(encoding="utf-8")


def test_names_that_the_reader_has_are_given(tmp_path, monkeypatch):
    """Otherwise every page would build a chain first."""
    run(tmp_path, monkeypatch, "<!-- given: question -->\n```python\nassert question == 'Who?'\n```\n")
    with pytest.raises(NameError):
        run(tmp_path, monkeypatch, "```python\nquestion\n```\n")


def test_code_that_is_not_run_must_at_least_be_code(tmp_path, monkeypatch):
    """A mark is no licence."""
    run(tmp_path, monkeypatch, "<!-- compiled only: needs a server -->\n```python\nunknown()\n```\n")
    with pytest.raises(SyntaxError):
        run(tmp_path, monkeypatch, "<!-- compiled only: needs a server -->\n```python\nunknown(\n```\n")


def test_a_policy_that_is_shown_is_a_good_one(tmp_path, monkeypatch):
    """It is what people copy."""
    run(tmp_path, monkeypatch, "<!-- file: policy.yaml -->\n```yaml\naccept: 0.7\n```\n")
    assert (tmp_path / "policy.yaml").read_text() == "accept: 0.7\n"
    with pytest.raises(Exception, match="acept"):
        run(tmp_path, monkeypatch, "<!-- file: policy.yaml -->\n```yaml\naccept: 0.7\nacept: 1\n```\n")


def test_commands_and_options_must_exist(tmp_path, monkeypatch):
    """A renamed option is found here."""
    run(tmp_path, monkeypatch, "```\nsemgrad-guard policy check policy.yaml   # explained\n```\n")
    check_command("semgrad-guard score answers.jsonl --profile p.json --out x")
    with pytest.raises(AssertionError, match="--prfile"):
        check_command("semgrad-guard score answers.jsonl --prfile p.json")
    with pytest.raises(AssertionError, match="no command"):
        check_command("semgrad-guard scores answers.jsonl")


def test_a_command_that_fails_is_noticed(tmp_path, monkeypatch):
    """It is run as it stands."""
    run(tmp_path, monkeypatch, "<!-- run -->\n```\nsemgrad-guard signals\n```\n")
    with pytest.raises(AssertionError, match="failed"):
        run(tmp_path, monkeypatch, "<!-- run -->\n```\nsemgrad-guard policy check missing.yaml\n```\n")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("12:00:01 digest 0123456789abcdef", "13:59:59 digest fedcba9876543210", True),
        ("0.95 yes", "0.94 yes\n", True),
        ("0.95", "0.85", False),
        ("3 rows", "4 rows", False),
        ("yes", "no", False),
    ],
)
def test_only_numbers_with_a_point_may_differ_a_little(shown, printed, same):
    """Processors differ in the last digits, not in words."""
    assert same_output(shown, printed) is same


def test_marks_belong_to_the_block_below():
    """And to no other."""
    first, second = blocks_of("<!-- run -->\n```\na\n```\n\n```python\nb\n```\n")
    assert (first.mark, second.mark, second.language) == ("run", "", "python")
