"""The release check knows what it checks; that it installs what it says is seen when it runs."""

from __future__ import annotations

import json

import pytest

from benchmarks import release_check
from benchmarks.release_check import Environment, check_snippet, extras, range_of, snippet, write_sbom


def test_every_extra_is_tried(monkeypatch):
    """A new one cannot be forgotten."""
    assert {"", "local", "langchain", "llama-index", "review", "serve"} <= set(extras())
    monkeypatch.setattr(release_check, "IMPORTS", {"": "semgrad_guard"})
    with pytest.raises(SystemExit, match="langchain"):
        extras()


def test_oldest_and_newest_are_those_of_the_project():
    """The oldest is what the requirement begins with."""
    oldest, newest = range_of("langchain-core")
    assert oldest == newest.split(",")[0].replace(">=", "==")
    assert range_of("transformers")[0].startswith("transformers==5")


def test_the_snippet_is_the_first_program_of_the_readme():
    """With the output that is shown below it."""
    code, shown = snippet()
    assert "SemGradGuard()" in code
    assert shown.startswith("0.")


@pytest.mark.parametrize(("printed", "exact"), [("0.10 something else\n", True), ("None what\n", False)])
def test_another_output_fails(monkeypatch, tmp_path, printed, exact):
    """Without a confidence in any case."""
    monkeypatch.setattr(Environment, "does", lambda *_: printed)
    with pytest.raises(SystemExit):
        check_snippet(Environment(tmp_path), tmp_path, exact=exact)


def test_the_sbom_lists_what_is_installed(tmp_path):
    """In a form that scanners read."""
    write_sbom([{"name": "Typing_Extensions", "version": "4.1"}], tmp_path / "sbom.json")
    document = json.loads((tmp_path / "sbom.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["components"][0]["purl"] == "pkg:pypi/typing-extensions@4.1"
    assert document["metadata"]["component"]["name"] == "semgrad-guard"
