"""Live objects of other libraries are opened without importing those libraries, and shared."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoConfig, T5ForConditionalGeneration, pipeline

from semgrad_guard.errors import ModelError
from semgrad_guard.models import LocalModel, load_model
from tests.unit.models.conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(name="model", scope="module")
def _model() -> PreTrainedModel:
    """Return a tiny live model."""
    return make_model()


@pytest.fixture(name="pipe")
def _pipe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a text-generation pipeline around it."""
    return pipeline("text-generation", model=model, tokenizer=tokenizer)


def test_a_pair_is_taken_as_it_is(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model is shared, never copied, moved or converted."""
    local = load_model((model, tokenizer), dtype="bfloat16")
    assert local.model is model
    assert local.tokenizer is tokenizer
    assert local.dtype == "float32"


def test_a_loaded_model_comes_back_itself(local: LocalModel) -> None:
    """Whoever passes one on need not know what it is."""
    assert load_model(local) is local


def test_a_pipeline_is_opened(pipe: Any, model: PreTrainedModel) -> None:
    """The pipeline's own model answers, so it is the one to score with."""
    assert load_model(pipe).model is model


def test_an_object_that_holds_a_loaded_model_is_opened(local: LocalModel) -> None:
    """Adapters of this package say which model they write with."""
    assert load_model(SimpleNamespace(local_model=local)) is local


def test_two_views_of_one_live_model_share_the_lock(pipe: Any, model: PreTrainedModel) -> None:
    """Otherwise one thread would write while another takes gradients."""
    assert load_model(pipe).lock is load_model((model, pipe.tokenizer)).lock


def test_langchains_pipeline_is_opened(pipe: Any, model: PreTrainedModel) -> None:
    """The usual way to run a local model in LangChain."""
    langchain = pytest.importorskip("langchain_huggingface")
    llm = langchain.HuggingFacePipeline(pipeline=pipe)
    assert load_model(llm).model is model
    assert load_model(llm.bind(stop=["x"])).model is model


def test_langchains_chat_model_is_opened_with_its_own_tokenizer(pipe: Any, model: PreTrainedModel) -> None:
    """Its tokenizer renders the messages, so it decides what the model reads."""
    langchain = pytest.importorskip("langchain_huggingface")
    own = make_tokenizer()
    chat = langchain.ChatHuggingFace(llm=langchain.HuggingFacePipeline(pipeline=pipe), tokenizer=own, model_id="tiny")
    local = load_model(chat)
    assert local.model is model
    assert local.tokenizer is own


def test_llama_indexs_model_is_opened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """It keeps model and tokenizer in private attributes."""
    huggingface = pytest.importorskip("llama_index.llms.huggingface")
    llm = huggingface.HuggingFaceLLM(model=model, tokenizer=tokenizer, context_window=128)
    local = load_model(llm)
    assert local.model is model
    assert local.tokenizer is tokenizer


@pytest.mark.parametrize("source", [object(), None, ("only one",), SimpleNamespace(pipeline=None), ("a", "b")])
def test_an_object_without_a_local_model_is_refused_with_what_is_accepted(source: object) -> None:
    """A remote model has no weights here to take gradients of."""
    with pytest.raises(ModelError, match="HuggingFacePipeline"):
        load_model(source)


def test_a_model_without_its_tokenizer_is_refused(model: PreTrainedModel) -> None:
    """Ids can't be guessed."""
    with pytest.raises(ModelError, match="tokenizer"):
        load_model((model, "its name"))


def test_an_encoder_decoder_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its prompt is not read by the blocks that write the answer."""
    config = AutoConfig.for_model("t5", vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_model((T5ForConditionalGeneration(config), tokenizer))


def test_no_framework_is_imported() -> None:
    """Opening by shape keeps the model layer free of the frameworks that it serves."""
    code = (
        "import sys, semgrad_guard.models; from types import SimpleNamespace as N\n"
        "try: semgrad_guard.models.load_model(N())\nexcept Exception: pass\n"
        "print([m for m in ('langchain_core', 'llama_index', 'langchain_huggingface') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
