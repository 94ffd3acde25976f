"""Folders and Hugging Face ids: what can be loaded is, what can't says why."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from semgrad_guard.errors import ModelError, ModelFilesError, ModelNotFoundError, ModelSettingError
from semgrad_guard.models import load_model
from tests.unit.models.conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="saved", scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a saved tiny model; do not change it."""
    folder = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(name="folder")
def _folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the saved model that may be spoilt."""
    return shutil.copytree(saved, tmp_path / "model")


def test_a_folder_is_loaded_in_float32_by_default(saved: Path) -> None:
    """Gradients of half-precision weights are coarse; whoever wants them says so."""
    local = load_model(saved)
    assert local.dtype == "float32"
    assert local.name == str(saved)
    assert local.is_chat
    assert not local.model.training


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_number_format_can_be_chosen(saved: Path, dtype: str | torch.dtype) -> None:
    """By name or as torch's own value."""
    assert load_model(saved, dtype=dtype).dtype == "bfloat16"


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_the_files_number_format_can_be_kept(folder: Path, dtype: str | None) -> None:
    """Large models are stored in the format that they should run in."""
    make_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_model(folder, dtype=dtype).dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float31", "int8", "nn", torch.int8])
def test_an_unknown_number_format_is_refused(saved: Path, dtype: str) -> None:
    """The message names those that can be used."""
    with pytest.raises(ModelSettingError, match="bfloat16"):
        load_model(saved, dtype=dtype)


def test_device_map_passes_through(saved: Path) -> None:
    """Models larger than one device are spread by accelerate."""
    local = load_model(saved, device_map={"": "cpu"})
    assert local.device == torch.device("cpu")
    assert local.generate("a", max_new_tokens=2).answer_ids


@pytest.mark.parametrize("device", ["abacus", "cuda:63", "meta"])
def test_a_device_that_is_not_there_is_refused_in_words(device: str) -> None:
    """Before the files are looked for, and with what there is."""
    with pytest.raises(ModelSettingError, match=f"device='{device}' cannot be used: allowed is cpu.* on this machine"):
        load_model("no-such-model", device=device)


def test_device_and_device_map_exclude_each_other(saved: Path) -> None:
    """One would undo the other."""
    with pytest.raises(ModelSettingError, match="not both"):
        load_model(saved, device="cpu", device_map="auto")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    """It may be any folder."""
    (folder / "config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"config\.json"):
        load_model(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    """Half-finished downloads look like this."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFilesError, match="no weights"):
        load_model(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    """Unpickling a stranger's file runs the stranger's code."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="pickled"):
        load_model(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    """A cut-off file must not end in a traceback of the reader."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelFilesError, match="copy the complete files"):
        load_model(folder)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    """Missing weights would be filled with noise, and the answers with it."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    """A config of one model beside the weights of another."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ModelFilesError):
        load_model(folder)


def test_tied_weights_are_not_missing(folder: Path) -> None:
    """A tied head is stored once."""
    make_model(tie_word_embeddings=True).save_pretrained(folder)
    assert load_model(folder).generate("a", max_new_tokens=2).answer_ids


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "of_tomorrow"}}', "[]"])
def test_a_damaged_tokenizer_is_refused(folder: Path, text: str) -> None:
    """Its reader raises bare exceptions, which would end in a traceback."""
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    """A config that can't be read, or holds nonsense."""
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFilesError):
        load_model(folder)


def test_running_out_of_memory_is_not_blamed_on_the_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying the files again would not help."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(saved)


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    """Ids can't be guessed."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load_model(folder)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    """A newer model than the installed transformers knows."""
    (folder / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    with pytest.raises(ModelFilesError, match="of_tomorrow"):
        load_model(folder)


def test_a_model_with_code_of_its_own_is_refused_unless_trusted(folder: Path) -> None:
    """Loading a model must not run a stranger's code."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load_model(folder)


def test_an_encoder_decoder_folder_is_refused(folder: Path) -> None:
    """There is no causal model of that kind."""
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelFilesError):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/no-such-model", "the Hugging Face cache and hub; check the spelling, download it first"),
        ("smollm2", "did you mean `smollm2-135m`?"),
        ("./not/there", "check the path; a Hugging Face id has the form owner/name"),
        ("weird name?", "a Hugging Face id has the form owner/name"),
    ],
)
def test_a_name_that_is_nowhere_says_where_it_was_looked_for(name: str, said: str) -> None:
    """Only of a real id a typo and a closed network look the same, so both are named."""
    with pytest.raises(ModelNotFoundError, match=said.replace("?", r"\?")) as caught:
        load_model(name)
    assert caught.value.name == name
    assert any("smollm2-135m" in place for place in caught.value.looked)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="the package that is missing here is installed")
def test_a_quantisation_without_its_package_says_what_to_install(saved: Path) -> None:
    """The config passes through to transformers, which needs another package for it."""
    with pytest.raises(ModelError, match=r"pip install.*bitsandbytes"):
        load_model(saved, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_progress_bars_are_put_back(saved: Path) -> None:
    """They belong to the application, which may want its own."""
    transformers_logging.enable_progress_bar()
    load_model(saved)
    assert transformers_logging.is_progress_bar_enabled()
