"""Loading .gguf files: converted once, then read from a cache of safetensors that is checked at every start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from semgrad_guard.errors import ModelFilesError
from semgrad_guard.models.files import Loaded, from_folder, quiet
from semgrad_guard.models.files_digest import files_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.models.options import LoadOptions

_logger = logging.getLogger(__name__)
_LAYOUT = 1
"""Counts up when the cache's layout changes, so that older entries are not read."""
_MANIFEST = "semgrad-manifest.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of converted weights: the one given, `$SEMGRAD_CACHE_DIR`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("SEMGRAD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / "gguf"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "semgrad-guard" / "gguf"


def from_gguf(parts: Sequence[Path], options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a .gguf file, given whole or in parts.

    The first load converts (seconds to minutes); later ones read the converted weights. A cache entry that is
    damaged, half-written or made by another version of transformers is made anew; when nothing can be written the
    model is converted in memory each time.

    Raises:
        ModelFilesError: not a .gguf file, damaged, or of an architecture that transformers cannot read from it.
    """
    check_gguf(parts[0])
    dtype = options.torch_dtype() or torch.float32
    try:
        folder = _converted(parts, dtype, cache_root(options.cache_dir))
    except (OSError, SafetensorError) as error:
        _logger.warning("converted weights cannot be cached (%s): set SEMGRAD_CACHE_DIR to a writable folder", error)
        with tempfile.TemporaryDirectory() as scratch:
            return convert(parts, dtype, Path(scratch))
    return from_folder(folder, options)


def check_gguf(path: Path) -> None:
    """Look at the first bytes of a .gguf file.

    Raises:
        ModelFilesError: it is something else.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelFilesError(path, "not a GGUF file", "download it again, whole")


def convert(parts: Sequence[Path], dtype: torch.dtype, scratch: Path) -> Loaded:
    """Return model and tokenizer with dequantised weights; parts are joined in the folder `scratch`.

    Raises:
        ModelFilesError: damaged, or of an architecture that transformers cannot read from it.
    """
    path = parts[0] if len(parts) == 1 else _join(parts, scratch / "joined.gguf")
    _logger.info("converting %s once; later starts read the converted weights", parts[0].name)
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # the reader fails in many ways on a damaged file, none of them typed
        advice = "download it again, whole, or load the model from safetensors"
        raise ModelFilesError(parts[0], f"its weights cannot be read ({error})", advice) from error
    # the weights are plain numbers now; saying otherwise would make transformers look for a quantiser
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _converted(parts: Sequence[Path], dtype: torch.dtype, root: Path) -> Path:
    """Return the folder of the converted weights, made now if need be."""
    made_of = {
        "source": files_digest(parts),
        "dtype": str(dtype),
        "transformers": transformers.__version__,
        "layout": _LAYOUT,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    folder = root / key
    if _is_whole(folder, made_of):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):
        if not _is_whole(folder, made_of):  # another process may have made it while this one waited
            _make(folder, parts, dtype, made_of)
    return folder


def _make(folder: Path, parts: Sequence[Path], dtype: torch.dtype, made_of: dict[str, Any]) -> None:
    """Convert beside the folder, then put it in place in one step."""
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a process that was killed: the lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        model, tokenizer = convert(parts, dtype, scratch)
        new = scratch / "new"
        with quiet():
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
        manifest = {"made_of": made_of, "files": {file.name: files_digest([file]) for file in sorted(new.iterdir())}}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        if folder.exists():
            folder.replace(scratch / "damaged")
        new.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path, made_of: dict[str, Any]) -> bool:
    """Tell whether a cache entry is complete and every file in it is as it was written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        files: dict[str, str] = manifest["files"]
        return manifest["made_of"] == made_of and all(
            files_digest([folder / name]) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _join(parts: Sequence[Path], target: Path) -> Path:
    """Write the parts into one file and return it."""
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 16 * 1024 * 1024)
    return target
