"""The wheel holds what the tree holds: two packaging mistakes are silent, so they are looked for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "semgrad_guard": ROOT / "semgrad_guard",
    "langchain_semgrad": ROOT / "integrations" / "langchain_semgrad",
    "llama_index_semgrad": ROOT / "integrations" / "llama_index_semgrad",
}
SHIPPED = {".py", ".yaml", ".json", ".jsonl", ".html", ".css", ".js", ".sql", ".ini", ".mako", ".svg", ".typed"}


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution, as a release is."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_three_packages(wheel: Path) -> None:
    """An ignored or renamed folder would be left out without a word."""
    expected = {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if (file.suffix in SHIPPED or file.name == "py.typed") and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_installed_wheel_imports_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    """All three packages work from the wheel alone, beside their dependencies."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=120)
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A folder named in a .pth is searched for modules, but its own .pth files (the editable install) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import semgrad_guard, langchain_semgrad, llama_index_semgrad, sys; "
        "print(*(m.__file__ for m in (semgrad_guard, langchain_semgrad, llama_index_semgrad)))"
    )
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(str(site) in path for path in done.stdout.split())
