"""The release check knows what it checks; that it installs what it says is seen when it runs."""

from __future__ import annotations

import json

import pytest

from benchmarks.release_check import IMPORTS, PROGRAMS, Environment, Requirements, check_program, program_of, write_sbom


def test_every_extra_is_tried_behind_those_that_it_includes(monkeypatch):
    """A new one cannot be forgotten, and one that builds on another begins as a copy of it."""
    needs = Requirements.of_project()
    found = needs.extras()
    assert {"local", "langchain", "llama-index", "review", "serve"} <= set(found)
    assert found[0] == "core"
    assert all(found.index(other) <= found.index(one) for one in found for other in needs.included(one))
    monkeypatch.delitem(IMPORTS, "langchain")
    with pytest.raises(SystemExit, match="langchain"):
        needs.extras()


def test_an_extra_includes_what_its_extras_include():
    """Through each that it names."""
    needs = Requirements.of_project()
    assert needs.included("agents") == {"core", "local", "langchain", "agents"}
    assert {"torch", "click", "langchain-core"} <= needs.packages({"agents"}).keys()
    assert "torch" not in needs.packages({"core"})


def test_the_oldest_are_the_lower_bounds():
    """Whatever else a requirement says; but torch, of which other builds bring gigabytes."""
    project = {
        "version": "1",
        "dependencies": ["click>=8.1", "psycopg[binary]>=3.2.1", "docs==0.1", "torch>=2.6"],
        "optional-dependencies": {"x": ["core>=0.14.13,!=0.14.22,<0.15", "semgrad-guard[y]"], "y": ["other>=5,<6"]},
    }
    needs = Requirements(project)
    assert needs.oldest({"x"}) == ["click==8.1", "core==0.14.13", "docs==0.1", "other==5", "psycopg==3.2.1"]
    with pytest.raises(SystemExit, match="unbounded"):
        Requirements({**project, "dependencies": ["unbounded<2"]}).oldest({"core"})


def test_every_requirement_has_a_lower_bound():
    """Without one, nobody knows what is too old."""
    needs = Requirements.of_project()
    assert len(needs.oldest(set(needs.extras()))) > 20


@pytest.mark.parametrize("page", PROGRAMS.values())
def test_the_program_is_the_first_of_the_page(page):
    """With the output that is shown below it."""
    code, shown = program_of(page)
    assert "SemGradGuard()" in code
    assert shown.startswith("0.")


@pytest.mark.parametrize(("printed", "exact"), [("0.10 something else\n", True), ("None what\n", False)])
def test_another_output_fails(monkeypatch, tmp_path, printed, exact):
    """Without a confidence in any case."""
    monkeypatch.setattr(Environment, "does", lambda *_: printed)
    with pytest.raises(SystemExit):
        check_program(Environment(tmp_path), "README.md", tmp_path, exact=exact)


def test_the_sbom_lists_what_is_installed(tmp_path):
    """In a form that scanners read."""
    write_sbom([{"name": "Typing_Extensions", "version": "4.1"}], tmp_path / "sbom.json")
    document = json.loads((tmp_path / "sbom.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["components"][0]["purl"] == "pkg:pypi/typing-extensions@4.1"
    assert document["metadata"]["component"]["name"] == "semgrad-guard"
