"""Build the site: `python -m docs.site.build`. Broken links and anything loaded from elsewhere fail it.

The pages of `docs/`, the generated ones and the project's own (CONTRIBUTING, CHANGELOG) are put together in
`build/docs`. From there Zensical makes the site in `build/site`. It needs no network, neither to build nor to read:
open `build/site/index.html`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from docs.site.reference import ROOT, pages

SETTINGS = ROOT / "docs" / "site" / "site.yml"
OURS = {"CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md", "README.md": "index.md"}
"""Files outside `docs/` that are pages of the site, or that one stands for."""
FOREIGN_SHIM = "https://unpkg.com/iframe-worker/shim"
SHIM = "assets/javascripts/iframe-worker.js"
"""Lets the search work in pages that are opened as files; the theme would load it from another site."""

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_DRAWN = re.compile(r"(?ms)^<!-- picture: (\S+) -->\n```mermaid\n.*?^```$")
"""A drawing that GitHub makes from its text; the site shows the picture that is named, as it cannot draw offline."""
_FOREIGN = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"https?://[^\"]*\"[^>]*>")


def collect(source: Path) -> list[str]:
    """Write all pages and pictures into a folder, and return the pages' paths in it."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("site", "__pycache__"))
    for name, target in OURS.items():
        if name != "README.md":
            _write(source / target, (ROOT / name).read_text(encoding="utf-8"))
    for path, text in pages().items():
        _write(source / path, text)
    found = sorted(page.relative_to(source).as_posix() for page in source.rglob("*.md"))
    homes = {target: PurePosixPath(name) for name, target in OURS.items()}
    for path in found:
        page = source / path
        written_as = (
            PurePosixPath("docs") / path if path == "index.md" else homes.get(path, PurePosixPath("docs") / path)
        )
        text = _DRAWN.sub(r"![The flow of the guard](\1)", page.read_text(encoding="utf-8"))
        page.write_text(relinked(text, path, written_as), encoding="utf-8")
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def relinked(text: str, path: str, written_as: PurePosixPath) -> str:
    """Return a page whose links lead to where their targets are in the site.

    Args:
        text: the page.
        path: where it is in the site.
        written_as: where it is in the tree; its links start there.
    """

    def moved(link: re.Match[str]) -> str:
        target = _normal(written_as.parent / link["target"])
        anchor = link["anchor"] or ""
        if target.parts[:1] == ("docs",):
            place = target.relative_to("docs")
        elif target.as_posix() in OURS:
            place = PurePosixPath(OURS[target.as_posix()])
        elif target.parts[:1] == ("examples",):
            place, anchor = PurePosixPath("examples.md"), f"#{target.stem.replace('_', '-')}"
        else:
            return link[0]
        return f"{link['before']}{_relative(place, PurePosixPath(path).parent)}{anchor}"

    return _LINK.sub(moved, text)


def _normal(path: PurePosixPath) -> PurePosixPath:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return PurePosixPath(*parts)


def _relative(target: PurePosixPath, start: PurePosixPath) -> str:
    common = 0
    while common < min(len(target.parts) - 1, len(start.parts)) and target.parts[common] == start.parts[common]:
        common += 1
    return "/".join([".."] * (len(start.parts) - common) + list(target.parts[common:]))


def navigation(settings: dict[str, Any], found: list[str]) -> list[dict[str, Any]]:
    """Return the menu: the listed pages that exist, and at the end of each section the others of its folders."""
    left = set(found)
    menu: list[dict[str, Any]] = []
    for section in settings["nav"]:
        ((title, listed),) = section.items()
        here = [page for page in listed if page in left]
        left -= set(here)
        menu.append({title: here})
    for section in menu:
        ((_, here),) = section.items()
        folders = {PurePosixPath(page).parent.as_posix() for page in here} - {"."}
        more = sorted(page for page in left if PurePosixPath(page).parent.as_posix() in folders)
        here += more
        left -= set(more)
    if left:
        menu.append({"More": sorted(left)})
    return [section for section in menu if all(section.values())]


def configure(folder: Path, found: list[str], site: Path) -> Path:
    """Write the settings that Zensical reads, and return their file."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    settings |= {"nav": navigation(settings, found), "docs_dir": "docs", "site_dir": str(site), "strict": True}
    for plugin in settings["plugins"]:
        if isinstance(plugin, dict):
            python = plugin["mkdocstrings"]["handlers"]["python"]
            python["paths"] = [str(ROOT), str(ROOT / "integrations")]
            python["options"]["extensions"] = [str(SETTINGS.parent / "docstring_examples.py")]
    file = folder / "mkdocs.yml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def finish(site: Path) -> None:
    """Make the site whole by itself: nothing in it is loaded from another one.

    Raises:
        SystemExit: something still is.
    """
    _write(site / SHIM, (SETTINGS.parent / "iframe-worker.js").read_text(encoding="utf-8"))
    foreign: set[str] = set()
    for page in site.rglob("*.html"):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        text = page.read_text(encoding="utf-8").replace(FOREIGN_SHIM, f"{up}{SHIM}")
        page.write_text(text, encoding="utf-8")
        foreign |= {
            f"{page.relative_to(site)}: {found}" for found in _FOREIGN.findall(text) if "canonical" not in found
        }
    if foreign:
        raise SystemExit("loaded from elsewhere:\n" + "\n".join(sorted(foreign)))


def main() -> int:
    """Build the site, and return Zensical's exit status."""
    folder, site = ROOT / "build", ROOT / "build" / "site"
    folder.mkdir(exist_ok=True)
    found = collect(folder / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f"]
    command.append(str(configure(folder, found, site)))
    status = subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - our own words and paths
    if status == 0:
        finish(site)
        sys.stdout.write(f"{len(found)} pages in {site}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
