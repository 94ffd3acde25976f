"""Run what pages show: their Python in order, their commands, their files, and compare what comes out with the page.

A comment right above a block says what it is:

- `<!-- given: chain, question -->`: the code uses names that the reader's program already has (see the test's `GIVEN`)
- `<!-- compiled only: why -->`: the code is checked for syntax, not run
- `<!-- file: policy.yaml -->`: the block is written to that file; a policy is checked as well
- `<!-- run -->`: the `semgrad-guard` commands of the block are run; those of other blocks must exist, with all options
- `<!-- output -->`: what the block before printed; numbers with a point may differ a little between machines
- `<!-- test: name -->`: another test runs it

With `SEMGRAD_WRITE_PAGES=1` an output that differs is written into the page instead of failing.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.policy import explain, parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WIDTH = "80"
"""Columns of the terminal that a page's commands are run in."""
CLOSE = 0.03
"""How far a number with a point may be from the page's."""

_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
_NUMBER = re.compile(r"\d+\.\d+")
_WHOLE = re.compile(r"semgrad-guard |/|\.(jsonl?|yaml|db)\b")
"""What a line holds that is printed whole, for a mouse to take it: a command or a path."""
_CHANGES = re.compile(r"\b(?:\d\d:\d\d:\d\d|[0-9a-f]{16})\b")
"""Times of the day, and digests."""


def too_wide(printed: str) -> list[str]:
    """Return the lines that a terminal would wrap or in which something is cut."""
    return [
        line
        for line in printed.splitlines()
        if "…" in line or (len(line.rstrip()) > int(WIDTH) and not _WHOLE.search(line))
    ]


@dataclass(frozen=True)
class Block:
    """A listing of a page."""

    language: str
    text: str
    mark: str
    """What the comment above it says."""
    span: tuple[int, int]
    """Where its text stands in the page."""

    def after(self, kind: str) -> str | None:
        """Return what follows `kind:` in the mark, the empty text for `kind` alone, or `None` for another mark."""
        head, _, rest = self.mark.partition(":")
        return rest.strip() if head.strip() == kind else None


def blocks_of(text: str) -> list[Block]:
    """Return the listings of a page, in order."""
    return [
        Block(found["language"], found["text"], (found["mark"] or "").strip(), found.span("text"))
        for found in _BLOCK.finditer(text)
    ]


def same_output(shown: str, printed: str) -> bool:
    """Return whether two outputs are the same, but for small differences of numbers with a point."""
    one, other = (_CHANGES.sub("#", _lines(text)) for text in (shown, printed))
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=False)
    return _NUMBER.sub("#", one) == _NUMBER.sub("#", other) and all(abs(float(a) - float(b)) <= CLOSE for a, b in pairs)


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


class PageRun:
    """Runs a page in the current folder, which should be empty."""

    def __init__(self, page: Path, given: Mapping[str, Callable[[], Any]], *, write: bool = False) -> None:
        """Keep the page.

        Args:
            page: a Markdown file.
            given: name -> what makes its value, for the names that a page's code may use without making them.
            write: whether outputs that differ are written into the page.
        """
        self._page, self._given, self._write = page, given, write
        self._text = page.read_text(encoding="utf-8")
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed = ""
        self._changes: list[tuple[tuple[int, int], str]] = []

    def run(self) -> int:
        """Run everything, and return how many blocks were looked at.

        Raises:
            AssertionError: something is not as the page says.
        """
        blocks = blocks_of(self._text)
        for block in blocks:
            self._one(block)
        if self._changes:
            for (start, end), text in reversed(self._changes):
                self._text = f"{self._text[:start]}{text}{self._text[end:]}"
            self._page.write_text(self._text, encoding="utf-8")
        return len(blocks)

    def _one(self, block: Block) -> None:
        if block.after("output") is not None:
            self._compare(block)
        elif block.after("test") is not None:
            return
        elif (name := block.after("file")) is not None:
            _write(name, block)
        elif block.language == "python":
            self._python(block)
        elif block.language in {"", "console", "bash", "sh"}:
            self._commands(block)

    def _python(self, block: Block) -> None:
        code = compile(block.text, self._page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.after("compiled only") is not None:
            return
        for name in filter(None, (block.after("given") or "").replace(" ", "").split(",")):
            self._names.setdefault(name, self._given[name]())
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            done = eval(code, self._names)  # noqa: S307 - our own page
            if inspect.iscoroutine(done):
                asyncio.run(done)
        self._printed = printed.getvalue()

    def _commands(self, block: Block) -> None:
        runs = block.after("run") is not None
        printed = ""
        for line in commands_of(block.text):
            if runs:
                done = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": WIDTH, "TERM": "dumb"})
                assert done.exit_code == 0, f"{self._page.name}: `{line}` failed: {done.output} {done.exception!r}"
                printed += done.stdout
            else:
                check_command(line)
        if runs:
            self._printed = printed

    def _compare(self, block: Block) -> None:
        if same_output(block.text, self._printed):
            return
        if self._write:
            self._changes.append((block.span, f"{_lines(self._printed)}\n"))
            return
        msg = f"{self._page.name} shows\n{block.text}\nand what is printed is\n{self._printed}"
        raise AssertionError(msg)


def _write(name: str, block: Block) -> None:
    Path(name).write_text(block.text, encoding="utf-8")
    if block.language == "yaml" and re.search(r"^accept:", block.text, re.M):
        assert explain(parse_policy(block.text))


def commands_of(text: str) -> list[str]:
    """Return the `semgrad-guard` commands of a listing, without comments and with joined lines."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [re.sub(r"\s+#.*$", "", line).removeprefix("$ ").strip() for line in lines]
    return [line for line in found if line.startswith("semgrad-guard ")]


def check_command(line: str) -> None:
    """Check that a command and each of its options exist.

    Raises:
        AssertionError: one does not.
    """
    words = shlex.split(line)[1:]
    names = [word for word in words[:3] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
    while names and CliRunner().invoke(app, [*names, "--help"]).exit_code != 0:
        names.pop()
    assert names or words[0].startswith("--"), f"there is no command `{line}`"
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    wrong = [word for word in words if word.startswith("--") and word.split("=")[0] not in shown]
    assert wrong == [], f"`{line}` has options that do not exist: {', '.join(wrong)}"
