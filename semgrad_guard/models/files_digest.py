"""Digests of files, fast enough to be taken at every start."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BLOCK = 32 * 1024 * 1024


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest of the contents of files, in order: SHA-256 over the SHA-256 of each block, taken in parallel.

    Raises:
        OSError: a file cannot be read.
    """
    blocks = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), _BLOCK)]
    # hashing and reading release the interpreter lock, so threads use every core
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(_block_digest, blocks))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _block_digest(block: tuple[Path, int]) -> bytes:
    path, start = block
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(_BLOCK)).digest()
