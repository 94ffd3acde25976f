"""The pages name what is there: each path, module and name exists, each file is explained, each link leads somewhere.

A block of a page that is marked `<!-- pending -->` may name what is still to come; once all of it is there, the mark
has to go.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE, GLOSSARY, CONTRIBUTING = "docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"
PAGES = [ARCHITECTURE, GLOSSARY, CONTRIBUTING]
LINKED = [*PAGES, "README.md"]
PACKAGES = {
    "semgrad_guard": ROOT / "semgrad_guard",
    "langchain_semgrad": ROOT / "integrations" / "langchain_semgrad",
    "llama_index_semgrad": ROOT / "integrations" / "llama_index_semgrad",
}
FOLDERS = ("semgrad_guard", "integrations", "tests", "docs", "examples", "benchmarks", ".ci")
PENDING = "<!-- pending -->"

_BLOCK = re.compile(r"(?m)^(?=\s*(?:[-*] |\d+\. |\| |#|```))|\n\s*\n")
_CODE = re.compile(r"`([^`\n]+)`")
_NAME = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
_PATH = re.compile(rf"(?:{'|'.join(re.escape(f) for f in FOLDERS)})/[\w./*-]*")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_ROOM = re.compile(r"#+ .*`([\w./]+/)`")
_FILE = re.compile(r"\s*- `([\w./-]+)`")


@dataclass(frozen=True)
class Named:
    """Something that a page names."""

    name: str
    exists: bool
    block: str
    """The part of the page that names it."""
    explained: bool = False
    """Whether it is a line of a room."""

    @property
    def pending(self) -> bool:
        """Whether the page says that it is still to come."""
        return PENDING in self.block


def blocks(page: str) -> list[str]:
    """Return headings, list items, table rows and paragraphs of a page, without its code listings."""
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text())
    return [block for block in _BLOCK.split(text) if block and block.strip()]


def named(page: str) -> list[Named]:
    """Return the paths and dotted names of a page, and the files of its rooms."""
    found: list[Named] = []
    room = ""
    for block in blocks(page):
        if block.startswith("#"):
            heading = _ROOM.match(block)
            room = heading[1] if heading else ""
        for word in _CODE.findall(block):
            name = word.removesuffix("()")
            if _NAME.fullmatch(name):
                found.append(Named(word, is_name(name), block))
            elif _PATH.fullmatch(word):
                found.append(Named(word, any(ROOT.glob(word.rstrip("/"))), block))
        listed = _FILE.match(block)
        if room and listed:
            path = f"{room}{listed[1]}"
            found.append(Named(path, (ROOT / path).exists(), block, explained=True))
    return found


def is_name(dotted: str) -> bool:
    """Return whether a dotted name is a module of the packages, or defined in one, at most two levels down."""
    top, *rest = dotted.split(".")
    place = PACKAGES[top]
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    module = place / "__init__.py"
    if rest and (place / f"{rest[0]}.py").is_file():
        module = place / f"{rest.pop(0)}.py"
    return module.is_file() and (not rest or ".".join(rest) in definitions(module))


@cache
def definitions(module: Path) -> frozenset[str]:
    """Return what a module defines or imports, and the members of its classes as `Class.member`."""
    return frozenset(_defined(ast.parse(module.read_text()).body))


def _defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(prefix + node.name)
        if isinstance(node, ast.ClassDef) and not prefix:
            found |= _defined(node.body, f"{node.name}.")
        elif isinstance(node, ast.If):
            found |= _defined([*node.body, *node.orelse], prefix)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {prefix + (alias.asname or alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {prefix + leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_a_page_names_exists(page: str) -> None:
    """A page that names what was moved sends its reader astray."""
    found = named(page)
    assert len(found) > 5
    assert [one.name for one in found if not one.exists and not one.pending] == []


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_marked_as_pending_that_is_there(page: str) -> None:
    """A mark that outlives its reason turns the check above off for good."""
    by_block: dict[str, list[Named]] = {}
    for one in named(page):
        if one.pending:
            by_block.setdefault(one.block, []).append(one)
    assert [block for block, names in by_block.items() if all(one.exists for one in names)] == []


def test_every_file_is_explained() -> None:
    """A file that the map leaves out is found by luck."""
    listed = {one.name for one in named(ARCHITECTURE) if one.explained}
    files = [
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES.values()
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.name not in {"__init__.py", "py.typed"}
    ]
    assert len(files) > 100
    assert [f for f in files if f not in listed and not any(f"{p}/" in listed for p in _folders_of(f))] == []


def _folders_of(file: str) -> list[str]:
    """Return the folders inside a room that hold a file: a line for such a folder explains all its files."""
    return [parent.as_posix() for parent in Path(file).parents]


@pytest.mark.parametrize("page", LINKED)
def test_every_link_leads_somewhere(page: str) -> None:
    """Links are written by hand and break in silence."""
    targets = [t for block in blocks(page) for t in _LINK.findall(block) if not re.match(r"\w+:", t)]
    broken = []
    for target in targets:
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_glossary_is_in_alphabetical_order_and_says_where_each_word_lives() -> None:
    """Otherwise a word is searched for twice, and defined twice."""
    entries = [block for block in blocks(GLOSSARY) if block.startswith("- **")]
    words = [match[1] for entry in entries if (match := re.match(r"- \*\*(.+?)\*\*", entry))]
    assert len(words) == len(entries) > 40
    assert words == sorted(words, key=str.casefold)
    assert [word for word, entry in zip(words, entries, strict=True) if not _NAME.search(entry)] == []
