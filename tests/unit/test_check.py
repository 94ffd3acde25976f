"""`make check`: which tests stand for which file, and that a failing part fails the whole."""

from __future__ import annotations

import asyncio
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="check", scope="module")
def _check() -> Any:
    """The script as a module; its name has no `.py`, so the loader is named."""
    loader = SourceFileLoader("semgrad_check", str(ROOT / ".ci" / "check"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up by name
    try:
        loader.exec_module(module)
        yield module
    finally:
        del sys.modules[loader.name]


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    """A small tree of rooms and tests."""
    for path in (
        "semgrad_guard/flow.py",
        "semgrad_guard/policy/steps.py",
        "semgrad_guard/review/site/app.py",
        "semgrad_guard/review/store/read.py",
        "semgrad_guard/wire/values.py",
        "integrations/langchain_semgrad/agents/search.py",
        "tests/fakes.py",
        "tests/packaging/test_docs.py",
        "tests/unit/test_wire_values.py",
        "tests/unit/test_flow.py",
        "tests/unit/policy/conftest.py",
        "tests/unit/policy/test_steps.py",
        "tests/unit/review/test_read.py",
        "tests/unit/review/site/test_app.py",
        "tests/unit/routing/test_steps.py",
        "tests/unit/scoring/test_head.py",
        "tests/property/policy/test_every_policy.py",
        "tests/property/test_review_queue.py",
        "tests/adapters/langchain/test_wrap.py",
        "tests/adapters/test_cancelling.py",
        "tests/unit/adapter_kit/test_observe.py",
        "tests/end_to_end/test_demo.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("semgrad_guard/policy/steps.py", ("tests/property/policy", "tests/unit/policy")),
        ("semgrad_guard/policy/deleted.py", ("tests/property/policy", "tests/unit/policy")),
        ("semgrad_guard/policy/default.yaml", ("tests/property/policy", "tests/unit/policy")),
        ("semgrad_guard/review/site/app.py", ("tests/property/test_review_queue.py", "tests/unit/review/site")),
        ("semgrad_guard/review/store/read.py", ("tests/property/test_review_queue.py", "tests/unit/review")),
        ("semgrad_guard/wire/values.py", ("tests/unit/test_wire_values.py",)),
        ("semgrad_guard/flow.py", ("tests/unit/test_flow.py",)),
        (
            "integrations/langchain_semgrad/agents/search.py",
            ("tests/adapters/langchain", "tests/adapters/test_cancelling.py"),
        ),
        (
            "semgrad_guard/adapter_kit/observe.py",
            ("tests/adapters/test_cancelling.py", "tests/unit/adapter_kit"),
        ),
        ("tests/unit/policy/test_steps.py", ("tests/unit/policy/test_steps.py",)),
        ("tests/unit/policy/conftest.py", ("tests/unit/policy",)),
        ("tests/unit/policy/test_deleted.py", ()),
        ("tests/end_to_end/test_demo.py", ()),
        ("tests/fakes.py", ()),
        ("docs/architecture.md", ("tests/packaging/test_docs.py",)),
        ("LICENSE", ()),
    ],
)
def test_each_file_stands_for_the_tests_of_its_room(
    check: Any, tree: Path, changed: str, tests: tuple[str, ...]
) -> None:
    """A developer who must name the tests by hand forgets the property tests."""
    assert check.mapped_tests(changed, tree) == tests


def test_every_room_of_this_tree_has_tests(check: Any) -> None:
    """A new room whose tests lie elsewhere would be skipped by every check."""
    sources = [
        file.relative_to(ROOT).as_posix()
        for top in ("semgrad_guard", "integrations")
        for file in ROOT.glob(f"{top}/*/*.py")
    ]
    assert sources
    assert [source for source in sources if not check.mapped_tests(source)] == []


def test_a_room_and_its_own_tests_are_run_once(check: Any, tree: Path) -> None:
    """Pytest runs a file again that is named beside its folder."""
    plan = check.plan(["semgrad_guard/policy/steps.py", "tests/unit/policy/test_steps.py"], tree)
    assert plan.tests == ("tests/packaging/test_docs.py", "tests/property/policy", "tests/unit/policy")
    assert plan.notes == ()


def test_many_rooms_fall_back_to_the_quick_tests_and_say_so(check: Any, tree: Path) -> None:
    """The promise is two minutes, so what does not fit is named."""
    rooms = ["policy", "review", "routing", "scoring"]
    plan = check.plan([f"semgrad_guard/{room}/any.py" for room in rooms], tree)
    assert "tests/unit/scoring" not in plan.tests
    assert "tests/unit/policy" in plan.tests
    assert "policy, review, routing, scoring" in plan.notes[0]


@pytest.mark.parametrize("path", ["semgrad_guard/flow.py", "tests/fakes.py", "pyproject.toml"])
def test_what_all_rooms_depend_on_runs_the_quick_tests(check: Any, tree: Path, path: str) -> None:
    """A mistake in a shared value shows in rooms that did not change."""
    plan = check.plan([path], tree)
    assert {"tests/unit/policy", "tests/unit/routing"} <= set(plan.tests)
    assert path in plan.notes[0]


def test_a_file_without_tests_is_named(check: Any, tree: Path) -> None:
    """Silence would read as checked."""
    notes = check.plan(["examples/new.py", "tests/end_to_end/test_demo.py"], tree).notes
    assert [note for note in notes if "examples/new.py" in note]
    assert [note for note in notes if "tests/end_to_end/test_demo.py" in note]


@pytest.mark.parametrize(
    ("path", "mypy", "pyright"),
    [
        ("semgrad_guard/policy/steps.py", True, ("semgrad_guard/policy/steps.py",)),
        ("semgrad_guard/policy/deleted.py", True, ()),
        ("semgrad_guard/policy/default.yaml", False, ()),
        ("tests/unit/policy/test_steps.py", False, ()),
        ("pyproject.toml", True, ()),
    ],
)
def test_types_are_checked_where_they_can_have_changed(
    check: Any, tree: Path, path: str, mypy: bool, pyright: tuple[str, ...]
) -> None:
    """Pyright reads what is named only; mypy finds the importers of a deleted file by itself."""
    plan = check.plan([path], tree)
    assert (plan.mypy, plan.pyright) == (mypy, pyright)


@pytest.mark.parametrize("broken", ["format", "lint", "imports", "mypy", "pyright", "tests"])
def test_any_part_that_fails_fails_the_check(check: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A check that reports a failure and ends with 0 is no check."""

    async def run(name: str, *command: str, live: bool = False) -> Any:
        return check.Result(name, int(name == broken), 0.0, "")

    async def changed_files(base: str | None) -> list[str]:
        return ["semgrad_guard/policy/steps.py"]

    monkeypatch.setattr(check, "changed_files", changed_files)
    monkeypatch.setattr(check, "run", run)
    assert check.main([]) == 1


def test_all_parts_well_is_success(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would pass for any program that always fails."""

    async def run(name: str, *command: str, live: bool = False) -> Any:
        return check.Result(name, 0, 0.0, "")

    async def changed_files(base: str | None) -> list[str]:
        return ["semgrad_guard/policy/steps.py"]

    monkeypatch.setattr(check, "changed_files", changed_files)
    monkeypatch.setattr(check, "run", run)
    assert check.main([]) == 0


def test_a_part_keeps_status_and_output_of_its_program(check: Any) -> None:
    """What failed must be readable, whichever stream it was written to."""
    code = "import sys; sys.stderr.write('what is wrong'); sys.exit(3)"
    result = asyncio.run(check.run("part", sys.executable, "-c", code))
    assert (result.status, result.output) == (3, "what is wrong")
