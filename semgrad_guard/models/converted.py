"""The cache of converted weights on disk: written in one step, checked at every start, safe between processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from semgrad_guard.models.files import files_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MANIFEST = "semgrad-manifest.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of converted weights: the one given, `$SEMGRAD_CACHE_DIR`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("SEMGRAD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / "gguf"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "semgrad-guard" / "gguf"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache, named after what its files were made of."""

    root: Path
    made_of: Mapping[str, str]
    """Everything that the contents depend on, the source's digest among it."""

    @property
    def key(self) -> str:
        """Name of the folder."""
        return hashlib.sha256(json.dumps(dict(self.made_of), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where the files are, once made."""
        return self.root / self.key

    def exists(self) -> bool:
        """Tell whether there is an entry to look at."""
        return (self.folder / _MANIFEST).is_file()

    def is_whole(self) -> bool:
        """Tell whether the entry is complete and every file in it is as it was written; reads them all."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            files: dict[str, str] = manifest["files"]
            same = all(files_digest([self.folder / name]) == digest for name, digest in files.items())
            return same and bool(files) and manifest["made_of"] == dict(self.made_of)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def make(self, write: Callable[[Path, Path], None]) -> None:
        """Make the entry, unless another process makes it first; a damaged one is replaced.

        Args:
            write: writes the files into its first argument, a new folder; the second is room for scratch files.

        Raises:
            OSError: the cache cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{self.key}.lock"):
            if not self.is_whole():
                self._replace(write)

    def _replace(self, write: Callable[[Path, Path], None]) -> None:
        for left in self.root.glob(f"{self.key}.tmp-*"):  # of a process that was killed: the lock is ours now
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{self.key}.tmp-", dir=self.root))
        try:
            new = scratch / "new"
            new.mkdir()
            write(new, scratch)
            files = {file.name: files_digest([file]) for file in sorted(new.iterdir())}
            (new / _MANIFEST).write_text(json.dumps({"made_of": dict(self.made_of), "files": files}, indent=1))
            if self.folder.exists():
                self.folder.replace(scratch / "damaged")
            new.replace(self.folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
