"""One door to every local model: a name, a path, a Hugging Face id or a live object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import ModelNotFoundError, ModelSettingError
from semgrad_guard.models.files import PACKAGED, Loaded, LoadOptions, from_folder, from_hub, parse_dtype
from semgrad_guard.models.gguf import from_gguf
from semgrad_guard.models.live import from_live
from semgrad_guard.models.local import LocalModel

if TYPE_CHECKING:
    import torch


def load_model(  # noqa: PLR0913 - each passes one argument of transformers through
    source: object,
    *,
    dtype: str | torch.dtype | None = "float32",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> LocalModel:
    """Return a local causal language model, ready to write and to be scored.

    Args:
        source: `smollm2-135m` or `gemma3-270m` (models that come as Python packages), a Hugging Face id, a folder, the
            path of a .gguf file, a (model, tokenizer) pair, a transformers pipeline, a LangChain `ChatHuggingFace` or
            `HuggingFacePipeline`, a LlamaIndex `HuggingFaceLLM`, or a `LocalModel`. A live object is shared, never
            loaded again, moved or converted: the other arguments do not touch it.
        dtype: number format of the weights; `None` or `auto` keeps that of the files (float32 for .gguf).
        device: where to put the model, for example `cuda`.
        device_map: spread it over devices instead, as `accelerate` does.
        quantization_config: a quantisation config of transformers, of the weights only. Eight bits nearly keep the
            order of float32 scores; on small models four do not. A profile fits the weights that it was made with.
        trust_remote_code: run Python code that comes with the model's files.
        revision: branch, tag or commit of a Hugging Face id.
        cache_dir: folder for downloads and converted weights, instead of the usual ones.

    Raises:
        ModelNotFoundError: nothing of that name.
        ModelFilesError: files are missing, damaged, pickled or of an unknown kind.
        ModelSettingError: no such `dtype`.
        ModelError: a live object holds no local causal language model.
    """
    options = LoadOptions(
        dtype=parse_dtype(dtype),
        device=device,
        device_map=device_map,
        quantization_config=quantization_config,
        trust_remote_code=trust_remote_code,
        revision=revision,
        cache_dir=cache_dir,
    )
    if not isinstance(source, str | os.PathLike):
        return from_live(source)
    if device is not None and device_map is not None:
        raise ModelSettingError("device_map", device_map, "either device or device_map, not both")
    name = str(os.fspath(source))
    name = name.lower() if name.lower() in PACKAGED else name
    model, tokenizer = _from_files(name, options)
    loaded: Any = model
    if options.device is not None:
        loaded.to(options.device)
    loaded.eval()
    return LocalModel(model, tokenizer, name)


def _from_files(name: str, options: LoadOptions) -> Loaded:
    packaged = PACKAGED.get(name)
    if packaged:
        return from_gguf(packaged.paths(), options)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_dir(path, options)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(name, [str(path.absolute())], "check the path")
        return from_gguf([path], options)
    return from_hub(name, options)


def _from_dir(path: Path, options: LoadOptions) -> Loaded:
    """Load a folder; one that holds a single .gguf file and nothing else to load means that file."""
    weights = sorted(path.glob("*.gguf"))
    if len(weights) == 1 and not (path / "config.json").exists():
        return from_gguf(weights, options)
    return from_folder(path, options)
