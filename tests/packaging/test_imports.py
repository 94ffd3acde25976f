"""What importing loads, and what a missing extra says."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
