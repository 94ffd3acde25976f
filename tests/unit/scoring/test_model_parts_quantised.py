"""Quantised weights: a model scores, or says why it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from semgrad_guard.errors import GradientsUnavailableError, ModelError, ModelFilesError
from semgrad_guard.flow import Exchange
from semgrad_guard.models import load_model
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.model_parts import require_gradients
from tests.models_for_tests import local_model

EXCHANGE = Exchange(prompt_ids=tuple(range(3, 60)), answer_ids=tuple(range(9, 19)), on_policy=True)


class Packed(nn.Parameter):
    """A weight of a kind of its own."""


class Rounding(nn.Linear):
    """Rounds its inputs, as layers do that quantise them on the way."""

    def forward(self, x):
        return super().forward(x.round())


@pytest.mark.parametrize("kind", [nn.Linear, Rounding])
def test_a_layer_that_rounds_its_inputs_is_refused(kind):
    """Its gradients are zeros, which would look like a sure answer."""
    layer = kind(8, 4)
    layer.weight = Packed(layer.weight.data, requires_grad=False)
    block = nn.Sequential(nn.ReLU(), layer)
    if kind is nn.Linear:
        require_gradients("m", block)
        return
    with pytest.raises(GradientsUnavailableError, match=r"layer 1 \(Rounding .* quantise the weights only") as caught:
        require_gradients("m", block)
    assert caught.value.model == "m"


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    local = local_model(hidden_size=64, intermediate_size=128, head_dim=16, num_key_value_heads=4)
    folder = tmp_path_factory.mktemp("model")
    local.model.save_pretrained(folder)
    local.tokenizer.save_pretrained(folder)
    return folder


def torchao(name):
    module = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    return {
        "int8": module.Int8WeightOnlyConfig,
        "int4": lambda: module.IntxWeightOnlyConfig(weight_dtype=torch.int4),
        "int4 of kernels for other machines": module.Int4WeightOnlyConfig,
        "rounding": module.Int8DynamicActivationInt8WeightConfig,
    }[name]()


def bitsandbytes(bits):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)


CONFIGS = {
    "torchao int8": lambda: TorchAoConfig(torchao("int8")),
    "torchao int4": lambda: TorchAoConfig(torchao("int4")),
    "bitsandbytes int8": lambda: bitsandbytes(8),
    "bitsandbytes nf4": lambda: bitsandbytes(4),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_scored(folder, config):
    """Their gradient flows through what they stand for; another digest keeps another model's profile away."""
    plain, quantised = load_model(folder), load_model(folder, quantization_config=config())
    one, other = (SemGradScorer(local).score(EXCHANGE).signals for local in (plain, quantised))
    assert other["semgrad"] == pytest.approx(one["semgrad"], rel=0.6)
    assert other["semgrad@-2"] > 0
    assert quantised.weights_digest != plain.weights_digest


@pytest.mark.filterwarnings("ignore")
def test_what_this_machine_cannot_quantise_is_no_fault_of_the_files(folder):
    """Downloading a model again because of a missing kernel costs an hour and changes nothing."""
    with pytest.raises(ModelError, match=r"TorchAoConfig .* use a quantisation that this machine supports") as caught:
        load_model(folder, quantization_config=TorchAoConfig(torchao("int4 of kernels for other machines")))
    assert not isinstance(caught.value, ModelFilesError)


@pytest.mark.end_to_end
@pytest.mark.filterwarnings("ignore")
def test_eight_bits_nearly_keep_the_order_of_float32(shared_dir):
    """Who scores with 8 bits should get what was published; a wrong scale of the gradients would show here."""
    rows = json.loads((shared_dir / "reference" / "semgrad_reference.json").read_text())["exchanges"]
    scorer = SemGradScorer(load_model("smollm2-135m", quantization_config=CONFIGS["torchao int8"]()))
    scores = [scorer.score(exchange_of(row)).signals for row in rows]
    found = {
        method: float(spearmanr([row[method] for row in rows], [score[method] for score in scores]).statistic)
        for method in ("semgrad", "paragrad", "hybridgrad", "exgrad")
    }
    assert min(found.values()) >= 0.9, found


def exchange_of(row):
    return Exchange(prompt_ids=tuple(row["prompt_ids"]), answer_ids=tuple(row["answer_ids"]), on_policy=True)


@pytest.mark.filterwarnings("ignore")
def test_quantised_inputs_are_refused(folder):
    """They are rounded on the way."""
    local = load_model(folder, quantization_config=TorchAoConfig(torchao("rounding")))
    with pytest.raises(GradientsUnavailableError, match="quantise the weights only"):
        SemGradScorer(local)
