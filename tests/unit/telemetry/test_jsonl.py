"""Records as lines of a file that others write to as well."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.flow import ExchangeId
from semgrad_guard.telemetry import JsonlSink, read_records
from semgrad_guard.telemetry.jsonl import LOCK_TRIES, AppendFile
from tests.records import make_attempt, make_record

if TYPE_CHECKING:
    from semgrad_guard.flow import Record

fcntl = pytest.importorskip("fcntl", reason="file locks of POSIX")


def named(name: str) -> Record:
    """Record with this id."""
    return replace(make_record(make_attempt(name)), id=ExchangeId(name))


def ids(path: Path, keep: int = 5) -> list[str]:
    """Ids of the records in a file, oldest first."""
    return [str(r.id) for r in read_records(path, keep=keep)]


def test_each_record_is_one_line(tmp_path: Path) -> None:
    """Line tools must work on the file."""
    sink = JsonlSink(tmp_path / "new" / "guard.jsonl")
    sink.emit(make_record(text="two\nlines\u2028and more"))
    sink.emit(named("b"))
    assert len((tmp_path / "new" / "guard.jsonl").read_bytes().splitlines()) == 2
    assert ids(tmp_path / "new" / "guard.jsonl") == ["a1", "b"]


def test_the_secret_is_not_in_the_bytes(tmp_path: Path) -> None:
    """`log_text: false` is a promise about the file, not about our types."""
    JsonlSink(tmp_path / "f", log_text=False).emit(make_record(text="Xyzzy"))
    assert b"Xyzzy" not in (tmp_path / "f").read_bytes()


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    """It holds what users asked."""
    JsonlSink(tmp_path / "f").emit(named("a"))
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_full_files_are_rotated_and_only_so_many_kept(tmp_path: Path) -> None:
    """A log must not fill the disk."""
    sink = JsonlSink(tmp_path / "f", max_bytes=1, keep=2)
    for name in "abcd":
        sink.emit(named(name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "f.1", "f.2"]
    assert ids(tmp_path / "f") == ["b", "c", "d"]


def test_keeping_no_rotated_file_starts_afresh(tmp_path: Path) -> None:
    """`keep=0` bounds the log to one file."""
    sink = JsonlSink(tmp_path / "f", max_bytes=1, keep=0)
    sink.emit(named("a"))
    sink.emit(named("b"))
    assert ids(tmp_path / "f") == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_moved_away_by_others_is_begun_anew(tmp_path: Path) -> None:
    """Log rotation of the system must not make us write into the old file."""
    sink = JsonlSink(tmp_path / "f")
    sink.emit(named("a"))
    (tmp_path / "f").rename(tmp_path / "away")
    sink.emit(named("b"))
    assert (ids(tmp_path / "away"), ids(tmp_path / "f")) == (["a"], ["b"])


def test_threads_lose_no_record_and_mix_none(tmp_path: Path) -> None:
    """One sink serves all requests of a process."""
    sink = JsonlSink(tmp_path / "f", max_bytes=20_000, keep=50)

    def write(k: int) -> None:
        for n in range(25):
            sink.emit(named(f"{k}-{n}"))

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(ids(tmp_path / "f", keep=50)) == sorted(f"{k}-{n}" for k in range(8) for n in range(25))
    assert sink.dropped == 0


def write_many(path: str, k: int) -> None:
    """Write 50 records, in a process of its own."""
    sink = JsonlSink(path, max_bytes=20_000, keep=50)
    for n in range(50):
        sink.emit(named(f"{k}-{n}"))


def test_processes_lose_no_record_while_the_file_rotates(tmp_path: Path) -> None:
    """Web servers fork, and all workers log to the file that the policy names."""
    spawn = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = [spawn.Process(target=write_many, args=(str(tmp_path / "f"), k)) for k in range(4)]
    [w.start() for w in workers]
    [w.join(60) for w in workers]
    assert sorted(ids(tmp_path / "f", keep=50)) == sorted(f"{k}-{n}" for k in range(4) for n in range(50))
    assert (tmp_path / "f.1").exists()


def test_a_line_torn_by_a_killed_process_spoils_no_other(tmp_path: Path) -> None:
    """A kill -9 may leave half a line."""
    sink = JsonlSink(tmp_path / "f")
    sink.emit(named("a"))
    with (tmp_path / "f").open("ab") as file:
        file.write(b'{"version": 1, "id": "to')
    sink.emit(named("b"))
    assert ids(tmp_path / "f") == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand answers must not write a thousand complaints."""
    sink = JsonlSink("/dev/full")
    for name in "abc":
        sink.emit(named(name))
    assert sink.dropped == 3
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "No space left" in caplog.text


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    """A disk that fills up in the middle of a line must not leave a torn one."""
    script = f"""
import resource, signal
from pathlib import Path
from semgrad_guard.telemetry.jsonl import AppendFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = AppendFile(path=Path({str(tmp_path / "f")!r}), max_bytes=10**9, keep=1)
file.append(b"whole\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    file.append(b"torn-by-the-limit\\n")
except OSError as error:
    print(type(error).__name__)
"""
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "OSError\n"
    assert (tmp_path / "f").read_bytes() == b"whole\n"


def test_after_a_failure_the_next_one_is_logged_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second outage is news."""
    sink = JsonlSink(tmp_path / "folder")
    for _ in range(2):
        (tmp_path / "folder").mkdir()
        sink.emit(named("a"))
        (tmp_path / "folder").rmdir()
        sink.emit(named("b"))
        (tmp_path / "folder").unlink()
    assert (sink.dropped, len(caplog.records)) == (2, 2)


def test_a_lock_that_is_never_released_delays_but_loses_nothing(tmp_path: Path) -> None:
    """A stopped process may hold the lock for ever."""
    pauses: list[float] = []
    (tmp_path / "f").touch()
    with (tmp_path / "f").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        AppendFile(path=tmp_path / "f", max_bytes=10**6, keep=1, pause=pauses.append).append(b"x\n")
    assert (tmp_path / "f").read_bytes() == b"x\n"
    assert len(pauses) == LOCK_TRIES


def test_reading_names_the_file_that_is_missing(tmp_path: Path) -> None:
    """Simulating on nothing would print a table of nothing."""
    with pytest.raises(DataFileError, match="no such file"):
        list(read_records(tmp_path / "none.jsonl"))


def test_reading_names_the_line_that_is_no_record(tmp_path: Path) -> None:
    """Any JSONL file may be given by mistake."""
    JsonlSink(tmp_path / "f").emit(named("a"))
    with (tmp_path / "f").open("a") as file:
        file.write(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    with pytest.raises(DataFileError) as caught:
        list(read_records(tmp_path / "f"))
    assert (caught.value.line, "version" in caught.value.why) == (2, True)


def test_a_pipe_can_be_written_to(tmp_path: Path) -> None:
    """Log shippers read from named pipes."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    JsonlSink(tmp_path / "pipe", max_bytes=1).emit(named("a"))
    assert json.loads(os.read(reader, 100_000))["id"] == "a"
    os.close(reader)
