"""A changed policy file takes effect; a broken one does not, and says so once."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy import PolicyWatcher

if TYPE_CHECKING:
    from pathlib import Path

GOOD, BETTER, BROKEN = "accept: 0.7\n", "accept: 0.8\n", "acept: 0.8\n"


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """A policy file that may change."""
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def write(path: Path, text: str) -> None:
    """Write a file whose time of change is surely another, however coarse the file system's clock."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(before + 1, before + 1))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings logged so far."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_first_reading_must_succeed(path: Path) -> None:
    """There is no last good policy to go on with yet."""
    write(path, BROKEN)
    with pytest.raises(PolicyFileError):
        PolicyWatcher(path)


def test_a_change_takes_effect(path: Path) -> None:
    """Thresholds are tuned without a restart; equal length does not hide a change."""
    watcher = PolicyWatcher(path)
    write(path, BETTER)
    assert watcher.current().accept == 0.8


def test_an_unchanged_file_gives_the_same_policy_object(path: Path) -> None:
    """The guard rebuilds its stages when the object is another."""
    watcher = PolicyWatcher(path)
    first = watcher.current()
    write(path, GOOD)
    assert watcher.current() is first
    write(path, "# a comment\n" + GOOD)
    assert watcher.current() is first


def test_a_broken_change_keeps_the_last_good_policy_and_warns_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A typo saved on a Friday must not take the guard down, nor fill the log."""
    watcher = PolicyWatcher(path)
    write(path, BROKEN)
    for _ in range(3):
        assert watcher.current().accept == 0.7
    assert watcher.problem is not None
    assert watcher.problem.key == "acept"
    assert len(warnings(caplog)) == 1
    assert "the last good one stays in force" in warnings(caplog)[0]


def test_saving_the_same_mistake_again_is_not_told_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Editors save often while someone is still typing."""
    watcher = PolicyWatcher(path)
    for text in (BROKEN, BROKEN, BROKEN + "# a comment\n"):
        write(path, text)
        watcher.current()
    assert len(warnings(caplog)) == 1


def test_another_mistake_is_told_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever repairs the file wants to know whether it helped."""
    watcher = PolicyWatcher(path)
    for text in (BROKEN, "accept: 7\n"):
        write(path, text)
        watcher.current()
    assert len(warnings(caplog)) == 2


def test_a_repaired_file_clears_the_problem(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Repaired to something new, or back to what it was."""
    caplog.set_level(logging.INFO)
    watcher = PolicyWatcher(path)
    for repaired, accept in ((BETTER, 0.8), (BETTER, 0.8)):
        write(path, BROKEN)
        watcher.current()
        assert watcher.problem is not None
        write(path, repaired)
        assert watcher.current().accept == accept
        assert watcher.problem is None
    assert sum("reloaded" in record.getMessage() for record in caplog.records) == 2


def test_a_file_that_goes_away_and_comes_back(path: Path) -> None:
    """Some editors and deployments replace files by removing them first."""
    watcher = PolicyWatcher(path)
    path.unlink()
    assert watcher.current().accept == 0.7
    assert watcher.problem is not None
    write(path, BETTER)
    assert watcher.current().accept == 0.8


def test_a_new_password_is_a_change(path: Path) -> None:
    """The digest hides passwords, but the queue needs the new one."""
    text = "accept: 0.7\nreview: {{url: 'postgresql://u:{}@h/d'}}\n"
    write(path, text.format("old"))
    watcher = PolicyWatcher(path)
    write(path, text.format("new"))
    assert ":new@" in watcher.current().review.url


def test_many_threads_may_ask(path: Path) -> None:
    """One guard serves many requests."""
    watcher = PolicyWatcher(path)
    write(path, BETTER)
    with ThreadPoolExecutor(8) as pool:
        policies = list(pool.map(lambda _: watcher.current(), range(64)))
    assert {id(policy) for policy in policies} == {id(watcher.current())}
