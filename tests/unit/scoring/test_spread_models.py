"""Models that `accelerate` spreads: parts on another device, or on disk until they are needed."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel, load_model
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

EXCHANGE = Exchange(prompt_ids=tuple(range(3, 60)), answer_ids=tuple(range(9, 19)), on_policy=True)
OUTSIDE = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
BLOCKS = {f"model.layers.{n}": "cpu" for n in range(4)}
MAPS = {
    "one device": {**OUTSIDE, **BLOCKS},
    "blocks on disk": {**OUTSIDE, **BLOCKS, "model.layers.1": "disk", "model.layers.3": "disk"},
    "head on disk": {**OUTSIDE, **BLOCKS, "lm_head": "disk"},
    "embeddings on disk": {**OUTSIDE, **BLOCKS, "model.embed_tokens": "disk"},
    "all on disk": {"": "disk"},
}


@pytest.fixture(name="plain", scope="module")
def _plain():
    return local_model()


@pytest.fixture(name="folder", scope="module")
def _folder(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    plain.model.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    return folder


def numbers(local):
    """Return the signals of a cold score, of a batch and of a score from the writing's cache, and the answer."""
    scorer = SemGradScorer(local)
    written = local.generate(prompt_ids=EXCHANGE.prompt_ids, max_new_tokens=4, states_of=scorer.band_blocks)
    scores = [scorer.score(EXCHANGE), *scorer.score_batch([EXCHANGE, EXCHANGE]), scorer.score_generated(written)]
    return [score.signals for score in scores], [score.path for score in scores], written.answer_ids


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS.keys())
def test_a_spread_model_gives_the_numbers_of_a_plain_one(plain, folder, tmp_path, device_map):
    """Where a weight lies is no property of the model, so its profile must fit too."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    local = LocalModel(model, plain.tokenizer, "spread")
    (signals, paths, ids), (expected, _, ids_expected) = numbers(local), numbers(plain)
    assert ids == ids_expected
    assert paths == ["cold", "cold", "cold", "reused"]
    for one, other in zip(signals, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-4)
    assert local.weights_digest == plain.weights_digest


def test_a_model_is_loaded_over_disk_by_its_name(plain, folder):
    """The usual way in."""
    score = SemGradScorer(load_model(folder, device_map=MAPS["blocks on disk"])).score(EXCHANGE)
    assert score.value == pytest.approx(SemGradScorer(plain).score(EXCHANGE).value, rel=2e-4)


def test_hooks_that_move_states_are_part_of_the_gradient(plain):
    """Between two devices, accelerate moves a state inside the block: what is kept lies where it came from."""
    spread = local_model()
    dispatch_model(spread.model, MAPS["one device"], main_device="cpu", force_hooks=True)
    assert all(hasattr(block, "_hf_hook") for block in spread.model.model.layers)
    expected = SemGradScorer(plain).score(EXCHANGE).signals  # by the gradient that is written out, without hooks
    assert SemGradScorer(spread).score(EXCHANGE).signals == pytest.approx(expected, rel=1e-5)


def test_a_model_without_numbers_is_refused(plain):
    """A model built on the meta device has shapes only."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(plain.model.config)
    with pytest.raises(GradientsUnavailableError, match="meta device") as caught:
        SemGradScorer(LocalModel(empty, plain.tokenizer, "empty"))
    assert caught.value.model == "LlamaForCausalLM"
