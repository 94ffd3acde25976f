"""Load the weights of a `.gguf` file: they are converted once and kept in a verified cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from semgrad_guard.errors import ModelError, ModelFilesError
from semgrad_guard.model_names import check_gguf
from semgrad_guard.models.files import NO_FAULT_OF_THE_FILES, Loaded, files_digest, from_folder, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from semgrad_guard.models.files import LoadOptions

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
    """One folder of the cache, named by a digest of what its files depend on."""

    root: Path
    made_of: Mapping[str, str]
    """Everything that the contents depend on, including the source's digest."""

    @property
    def key(self) -> str:
        """Name of the folder."""
        return hashlib.sha256(json.dumps(dict(self.made_of), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Folder of the files, which need not exist yet."""
        return self.root / self.key

    def exists(self) -> bool:
        """Tell whether the entry exists; it may be damaged."""
        return (self.folder / _MANIFEST).is_file()

    def is_whole(self) -> bool:
        """Tell whether the entry is complete and all its files are unchanged; this reads all of them."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            files: dict[str, str] = manifest["files"]
            same = all(files_digest([self.folder / name]) == digest for name, digest in files.items())
            return same and bool(files) and manifest["made_of"] == dict(self.made_of)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def make(self, write: Callable[[Path, Path], None]) -> None:
        """Make the entry, unless another process makes it first; a damaged entry is replaced.

        Args:
            write: writes the files into its first argument, a new folder; the second is a folder for scratch files.

        Raises:
            OSError: the cache cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{self.key}.lock"):
            if not self.is_whole():
                self._replace(write)

    def _replace(self, write: Callable[[Path, Path], None]) -> None:
        for leftover in self.root.glob(f"{self.key}.tmp-*"):  # of a killed process: this one holds the lock now
            shutil.rmtree(leftover, ignore_errors=True)
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


_logger = logging.getLogger(__name__)
_LAYOUT = "1"
"""Version of the cached files; it changes with their content, so that older entries are not read."""


def from_gguf(parts: Sequence[Path], options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a .gguf file, given whole or in parts.

    The first load converts the weights (seconds to minutes); later ones read the converted weights. A cache entry that
    is damaged, half-written or from another version of transformers is made again. If the cache cannot be written, the
    model is converted in memory each time.

    Raises:
        ModelFilesError: it is not a .gguf file, is damaged, or transformers cannot read its architecture from .gguf.
    """
    check_gguf(parts[0])
    dtype = options.dtype or torch.float32
    made_of = {
        "source": files_digest(parts),
        "dtype": str(dtype),
        "transformers": transformers.__version__,
        "layout": _LAYOUT,
    }
    entry = CacheEntry(cache_root(options.cache_dir), made_of)
    found = _from_cache(entry, options)
    if found:
        return found
    try:
        entry.make(lambda folder, scratch: _write(parts, dtype, folder, scratch))
    except (OSError, SafetensorError) as error:
        _logger.warning("converted weights cannot be cached (%s): set SEMGRAD_CACHE_DIR to a writable folder", error)
        with tempfile.TemporaryDirectory() as scratch:
            return convert(parts, dtype, Path(scratch))
    return from_folder(entry.folder, options)


def convert(parts: Sequence[Path], dtype: torch.dtype, scratch: Path) -> Loaded:
    """Return model and tokenizer with dequantised weights; parts are joined in the folder `scratch`.

    Raises:
        ModelFilesError: the file is damaged, or transformers cannot read its architecture from .gguf.
    """
    path = parts[0] if len(parts) == 1 else _join(parts, scratch / "joined.gguf")
    _logger.info("converting %s once; later starts read the converted weights", parts[0].name)
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except NO_FAULT_OF_THE_FILES:
        raise
    except Exception as error:  # the reader raises many unrelated errors on a damaged file
        advice = "download the complete file again, or load the model from safetensors"
        raise ModelFilesError(parts[0], f"its weights cannot be read ({error})", advice) from error
    # the weights are plain numbers now; a quantisation config would make transformers look for a quantiser
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _from_cache(entry: CacheEntry, options: LoadOptions) -> Loaded | None:
    """Return model and tokenizer of an intact cache entry, or `None`; files are checked while they are loaded."""
    if not entry.exists():
        return None
    with ThreadPoolExecutor(max_workers=1) as pool:
        whole = pool.submit(entry.is_whole)
        try:
            found = from_folder(entry.folder, options)
        except ModelError:
            if whole.result():  # the files are unchanged, so the cache is not to blame
                raise
            return None
        return found if whole.result() else None


def _write(parts: Sequence[Path], dtype: torch.dtype, folder: Path, scratch: Path) -> None:
    model: Any
    model, tokenizer = convert(parts, dtype, scratch)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _join(parts: Sequence[Path], target: Path) -> Path:
    """Write the parts into one file and return it."""
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 16 * 1024 * 1024)
    return target
