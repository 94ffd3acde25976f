"""Loading .gguf files: converted once, then read from a cache of safetensors."""

from __future__ import annotations

import logging
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from semgrad_guard.errors import ModelError, ModelFilesError
from semgrad_guard.models.converted import CacheEntry, cache_root
from semgrad_guard.models.files import NO_FAULT_OF_THE_FILES, Loaded, files_digest, from_folder, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.models.files import LoadOptions

_logger = logging.getLogger(__name__)
_MAGIC = b"GGUF"
_LAYOUT = "1"
"""Counts up when what is written changes, so that older entries are not read."""


def from_gguf(parts: Sequence[Path], options: LoadOptions) -> Loaded:
    """Return model and tokenizer of a .gguf file, given whole or in parts.

    The first load converts (seconds to minutes); later ones read the converted weights. A cache entry that is
    damaged, half-written or made by another version of transformers is made anew; when nothing can be written the
    model is converted in memory each time.

    Raises:
        ModelFilesError: not a .gguf file, damaged, or of an architecture that transformers cannot read from it.
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


def check_gguf(path: Path) -> None:
    """Look at the first bytes of a .gguf file.

    Raises:
        ModelFilesError: it is something else.
    """
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
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
    except NO_FAULT_OF_THE_FILES:
        raise
    except Exception as error:  # the reader fails in many ways on a damaged file, none of them typed
        advice = "download it again, whole, or load the model from safetensors"
        raise ModelFilesError(parts[0], f"its weights cannot be read ({error})", advice) from error
    # the weights are plain numbers now; saying otherwise would make transformers look for a quantiser
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _from_cache(entry: CacheEntry, options: LoadOptions) -> Loaded | None:
    """Return what a whole cache entry holds; its files are checked while they are loaded."""
    if not entry.exists():
        return None
    with ThreadPoolExecutor(max_workers=1) as pool:
        whole = pool.submit(entry.is_whole)
        try:
            found = from_folder(entry.folder, options)
        except ModelError:
            if whole.result():  # the files are as they were written, so it is not the cache that is wrong
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
