"""The documentation site: its reference says what the code says, and its links lead somewhere before it is built."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest
import yaml

from docs.site.build import FOREIGN_SHIM, SETTINGS, SHIM, collect, finish, navigation, relinked
from docs.site.reference import commands, pages, public_names
from semgrad_guard.policy import policy_schema
from semgrad_guard.signals import SIGNALS
from semgrad_guard.telemetry.langsmith import METADATA

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LISTING = re.compile(r"(?ms)^```.*?^```$")


@pytest.fixture(name="made", scope="module")
def _made() -> Mapping[str, str]:
    return pages()


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "docs"
    collect(folder)
    return folder


def test_every_signal_is_in_the_reference(made: Mapping[str, str]) -> None:
    """A new row of the table is on the page at the next build."""
    assert [name for name in SIGNALS if f"| `{name}` |" not in made["reference/signals.md"]] == []


def test_every_key_of_a_policy_is_in_the_reference(made: Mapping[str, str]) -> None:
    """At the top of the file and in each section."""
    schema = policy_schema()
    keys = {*schema["properties"], *(key for one in schema["$defs"].values() for key in one.get("properties", {}))}
    assert len(keys) > 50
    assert sorted(key for key in keys if f"| `{key}` |" not in made["reference/policy.md"]) == []


def test_every_command_shows_its_help(made: Mapping[str, str]) -> None:
    """As it is printed in a terminal of 80 columns."""
    page = made["reference/cli.md"]
    assert len(commands()) > 20
    assert [names for names in commands() if f"Usage: semgrad-guard {' '.join(names)} " not in page] == []
    assert max(map(len, page.splitlines())) <= 80 or "│" not in max(page.splitlines(), key=len)


def test_every_public_name_of_the_packages_is_in_the_reference(made: Mapping[str, str]) -> None:
    """By the module that defines it, since the page's builder does not follow imports."""
    page = made["reference/python.md"]
    names = public_names("langchain_semgrad")
    assert "langchain_semgrad.agents.middleware.SemGradMiddleware" in names
    assert [name for name in names if f"::: {name}\n" not in page] == []


def test_keys_in_traces_and_paths_of_the_api_are_in_the_reference(made: Mapping[str, str]) -> None:
    """They are what other programs read."""
    assert [key for key in METADATA if f"| `semgrad_{key}` |" not in made["reference/traces.md"]] == []
    assert "### POST /api/v1/items\n" in made["reference/http.md"]


def test_every_link_leads_somewhere(folder: Path) -> None:
    """Between pages that people wrote and pages that are made."""
    broken: list[str] = []
    found = sorted(folder.rglob("*.md"))
    for page in found:
        for target in _LINK.findall(_LISTING.sub("", page.read_text(encoding="utf-8"))):
            if re.match(r"\w+:", target):
                continue
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            if not path.is_file() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                broken.append(f"{page.relative_to(folder)}: {target}")
    assert len(found) > 25
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_drawings_are_pictures_in_the_site(folder: Path) -> None:
    """A script that draws them would have to be loaded."""
    text = "".join(page.read_text(encoding="utf-8") for page in folder.rglob("*.md"))
    assert "```mermaid" not in text
    assert "](flow.svg)" in (folder / "architecture.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_menu_once(folder: Path) -> None:
    """One that nobody listed is put beside the others of its folder, and one that is not written yet is left out."""
    found = sorted(page.relative_to(folder).as_posix() for page in folder.rglob("*.md"))
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    menu = [
        page for section in navigation(settings, [*found, "how-to/new.md"]) for page in next(iter(section.values()))
    ]
    assert sorted(menu) == sorted([*found, "how-to/new.md"])
    assert menu.index("how-to/new.md") > menu.index("how-to/streaming.md")


@pytest.mark.parametrize(
    ("link", "path", "written_as", "becomes"),
    [
        ("../README.md", "architecture.md", "docs/architecture.md", "index.md"),
        ("../../examples/own_framework.py", "how-to/x.md", "docs/how-to/x.md", "../examples.md#own-framework"),
        (
            "docs/architecture.md#what-binds",
            "project/contributing.md",
            "CONTRIBUTING.md",
            "../architecture.md#what-binds",
        ),
        ("glossary.md", "index.md", "docs/index.md", "glossary.md"),
        ("../CONTRIBUTING.md", "architecture.md", "docs/architecture.md", "project/contributing.md"),
    ],
)
def test_links_out_of_the_folder_lead_to_pages_of_the_site(link: str, path: str, written_as: str, becomes: str) -> None:
    """What one reads at the source's host must work in the site, too."""
    assert relinked(f"[a]({link})", path, PurePosixPath(written_as)) == f"[a]({becomes})"


def test_a_site_that_loads_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """It has to be readable on a closed network; the one script of the theme is replaced by our copy."""
    page = tmp_path / "start" / "page.html"
    page.parent.mkdir()
    page.write_text(f'<script src="{FOREIGN_SHIM}"></script> <a href="https://example.org">a link may</a>')
    finish(tmp_path)
    assert f'src="../{SHIM}"' in page.read_text()
    assert (tmp_path / SHIM).is_file()
    page.write_text('<link rel="stylesheet" href="https://fonts.example.org/x.css">')
    with pytest.raises(SystemExit, match="fonts"):
        finish(tmp_path)
