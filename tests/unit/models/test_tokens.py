"""Prompts and answers become the ids that the model really reads and writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from semgrad_guard.flow import Message
from semgrad_guard.models import LocalModel
from semgrad_guard.models.tokens import clean_text
from tests.unit.models.conftest import make_model, make_tokenizer

BOS, EOS, START, END = 1, 2, 3, 4
CHAT = (Message("system", "be short"), Message("user", "the question"))


def text_of(local: LocalModel, ids: tuple[int, ...]) -> str:
    """Return the text of ids with its special tokens."""
    return local.tokenizer.decode(list(ids), skip_special_tokens=False)


def test_messages_become_the_models_own_template(local: LocalModel) -> None:
    """Anything else than the model's own template is a prompt that it was never trained on."""
    rendered = "<|start|>system\nbe short<|end|>\n<|start|>user\nthe question<|end|>\n<|start|>assistant\n"
    assert text_of(local, local.encode_prompt(CHAT)) == rendered


def test_a_template_gets_no_second_leading_token(local: LocalModel) -> None:
    """A template writes its own special tokens; the tokenizer's would come twice."""
    assert BOS not in local.encode_prompt(CHAT)


def test_plain_text_is_read_raw_behind_the_leading_token(local: LocalModel) -> None:
    """A prompt template piped into a HuggingFacePipeline reaches the model like this."""
    assert text_of(local, local.encode_prompt("the question")) == "<bos>the question"


@pytest.mark.parametrize("text", ["<bos>the question", "<|start|>user\nthe question<|end|>\n"])
def test_rendered_text_is_left_as_it_is(local: LocalModel, text: str) -> None:
    """Text that a template has already rendered must not be rendered or led in again."""
    assert text_of(local, local.encode_prompt(text)) == text


def test_text_that_starts_with_an_unnamed_special_token_was_rendered(local: LocalModel) -> None:
    """Templates use tokens that the tokenizer lists nowhere but among its added ones."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("common", special=False)])
    other = LocalModel(local.model, tokenizer, "other")
    assert text_of(other, other.encode_prompt("<|turn|>hi")) == "<|turn|>hi"
    assert text_of(other, other.encode_prompt("common")) == "<bos>common"


def test_plain_text_can_be_read_as_a_chat(local: LocalModel) -> None:
    """A prompt that another model was asked belongs into the scoring model's own template."""
    assert local.encode_prompt("the question", as_chat=True) == local.encode_prompt((Message("user", "the question"),))


def test_an_empty_prompt_has_no_ids(local: LocalModel) -> None:
    """A lone leading token is not a prompt that anybody wrote."""
    assert local.encode_prompt("") == local.encode_prompt(()) == ()


def test_a_base_model_reads_contents_joined_by_blank_lines(base: LocalModel) -> None:
    """Without a template, labels would be words that nobody asked for."""
    assert text_of(base, base.encode_prompt(CHAT)) == "<bos>be short\n\nthe question"


def test_a_base_model_reads_roles_when_an_assistant_spoke_before(base: LocalModel) -> None:
    """Turns of two speakers can't be told apart without their names."""
    chat = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert text_of(base, base.encode_prompt(chat)) == "<bos>user: a\n\nassistant: b\n\nuser: c\n\nassistant:"


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_user_message() -> None:
    """Some templates raise on a system role; the instructions must still reach the model."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    local = LocalModel(make_model(), make_tokenizer(template=refuses + make_tokenizer().chat_template), "strict")
    text = text_of(local, local.encode_prompt(CHAT))
    assert text == "<|start|>user\nbe short\n\nthe question<|end|>\n<|start|>assistant\n"


def test_an_answer_follows_its_prompt_exactly(local: LocalModel) -> None:
    """Prompt and answer together must read as one text."""
    prompt_ids = local.encode_prompt(CHAT)
    ids = local.encode_answer(prompt_ids, CHAT, "the answer", ended=False)
    assert text_of(local, prompt_ids + ids).endswith("<|start|>assistant\nthe answer")


def test_an_answer_is_tokenised_as_it_stands_behind_its_prompt() -> None:
    """Many tokenizers put a blank before whatever starts a text; behind a line break there is none."""
    base = LocalModel(make_model(), make_tokenizer(template=None, prefix_space=True), "with blanks")
    prompt = "the question:\n"
    prompt_ids = base.encode_prompt(prompt)
    ids = base.encode_answer(prompt_ids, prompt, "answer", ended=False)
    assert prompt_ids + ids == base.encode_prompt("the question:\nanswer")
    assert ids == base.encode_answer(prompt_ids, "", "answer", ended=False)
    assert ids != base.encode_prompt("answer")[1:]


@pytest.mark.parametrize("answer", ["er", "er red blue green"])
def test_an_answer_that_melts_into_the_prompt_is_tokenised_alone(base: LocalModel, answer: str) -> None:
    """When a token would span the border, the prompt's ids stay as the model read them."""
    prompt = "an answ"
    prompt_ids = base.encode_prompt(prompt)
    assert base.encode_prompt(prompt + answer)[: len(prompt_ids)] != prompt_ids
    ids = base.encode_answer(prompt_ids, prompt, answer, ended=False)
    assert text_of(base, ids) == answer


def test_an_answer_needs_only_the_prompts_ids(local: LocalModel) -> None:
    """Callers that recorded ids need not keep the text."""
    prompt_ids = local.encode_prompt(CHAT)
    assert local.encode_answer(prompt_ids, "", "the answer", ended=True) == local.encode_answer(
        prompt_ids, CHAT, "the answer", ended=True
    )


def test_an_ended_answer_has_the_templates_end_of_turn(local: LocalModel) -> None:
    """The model's choice to stop is part of what it wrote; its token is the template's, not the tokenizer's."""
    ids = local.encode_answer(local.encode_prompt(CHAT), CHAT, "the answer", ended=True)
    assert ids[-1] == END
    assert local.end_ids == {END, EOS}


def test_a_base_models_answer_ends_with_the_end_of_text(base: LocalModel) -> None:
    """A base model has no turns."""
    assert base.encode_answer(base.encode_prompt("a"), "a", "the answer", ended=True)[-1] == EOS


def test_an_empty_answer_has_no_ids(local: LocalModel) -> None:
    """There is nothing to score in it."""
    assert local.encode_answer(local.encode_prompt(CHAT), CHAT, "", ended=False) == ()


def test_a_tokenizer_that_appends_an_end_token_does_not_end_the_prompt() -> None:
    """An end token after the prompt would tell the model that everything is said."""
    tokenizer = make_tokenizer(template=None)
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    local = LocalModel(make_model(), tokenizer, "appends")
    assert text_of(local, local.encode_prompt("the question")) == "<bos>the question"


@pytest.mark.parametrize(("text", "clean"), [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀")])
def test_lone_surrogates_become_replacement_characters(text: str, clean: str) -> None:
    """They come in from broken JSON, and no tokenizer can read them."""
    assert clean_text(text) == clean


@given(st.text(st.characters(categories=None)))
def test_any_text_can_be_read(text: str) -> None:
    """No text that Python can hold may crash the guard."""
    local = LocalModel(_MODEL, _TOKENIZER, "any")
    prompt = (Message("user", text),)
    prompt_ids = local.encode_prompt(prompt)
    answer_ids = local.encode_answer(prompt_ids, prompt, text, ended=False)
    assert bool(answer_ids) == bool(text)
    local.encode_prompt(text)


_MODEL, _TOKENIZER = make_model(), make_tokenizer()


def test_emoji_come_back_whole(local: LocalModel) -> None:
    """A character of several bytes spans tokens."""
    ids = local.encode_answer(local.encode_prompt(CHAT), CHAT, "yes 👩‍🚀!", ended=True)
    assert local.decode(ids) == "yes 👩‍🚀!"
