"""What importing loads, and what a missing extra says."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.release_check import IMPORTS, Requirements

HEAVY = {
    "torch", "transformers", "sqlalchemy", "sklearn", "scipy", "matplotlib", "fastapi", "langchain_core", "llama_index",
    "langsmith", "opentelemetry", "alembic", "mendeleev", "sentence_transformers",
}  # fmt: skip


def _loaded_by(code: str) -> set[str]:
    script = f"{code}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["semgrad_guard", "semgrad_guard.guard", "semgrad_guard.adapter_kit.single_pass", "semgrad_guard.cli.app"]
)
def test_importing_the_core_loads_no_heavy_module(module: str) -> None:
    """A service that only sometimes guards must not pay two seconds at every start."""
    assert not _loaded_by(f"import {module}") & HEAVY


@pytest.mark.parametrize(
    ("adapter", "other"), [("langchain_semgrad", "llama_index"), ("llama_index_semgrad", "langchain_core")]
)
def test_one_adapter_never_imports_the_other_framework(adapter: str, other: str) -> None:
    """Users of one framework need not have the other."""
    assert other not in _loaded_by(f"import {adapter}")


@pytest.mark.parametrize(
    ("adapter", "framework", "extra"),
    [("langchain_semgrad", "langchain_core", "langchain"), ("llama_index_semgrad", "llama_index", "llama-index")],
)
def test_a_missing_framework_names_its_pip_line(adapter: str, framework: str, extra: str) -> None:
    """A bare ModuleNotFoundError leaves the reader guessing."""
    script = f"import sys; sys.modules['{framework}'] = None; import {adapter}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"semgrad-guard[{extra}]" in done.stderr


def _needed_by(extra: str) -> set[str]:
    """Return the distributions that an extra brings, and what these need, by the metadata of what is installed."""
    waiting = [Requirement(line) for line in Requirements.of_project().packages({extra}).values()]
    found: set[tuple[str, str]] = set()
    while waiting:
        need = waiting.pop()
        for own in {"", *need.extras} - {own for name, own in found if name == canonicalize_name(need.name)}:
            found.add((canonicalize_name(need.name), own))
            waiting += _needs_of(need.name, own)
    return {name for name, _ in found}


def _needs_of(name: str, extra: str) -> list[Requirement]:
    try:
        needs = [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]


@pytest.mark.parametrize("extra", [name for name in Requirements.of_project().extras() if "semgrad" in IMPORTS[name]])
def test_an_extra_brings_all_that_its_part_imports(extra: str) -> None:
    """Where every extra is installed, a package that none of them asks for is not missed."""
    ours = {"semgrad_guard", "langchain_semgrad", "llama_index_semgrad"}
    needed = _needed_by(extra)
    there = {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    hidden = sorted(module for module, names in there.items() if module not in ours and not names & needed)
    assert "pytest" in hidden
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({hidden!r}))\n"
        f"import {IMPORTS[extra]}\n"
        "from semgrad_guard.cli.app import main\n"
        "sys.argv = ['semgrad-guard', 'review', 'token', 'add', '--help']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
