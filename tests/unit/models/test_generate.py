"""Answers come out as the model wrote them, cut where they should be, and leave no trace on the model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
import torch

from semgrad_guard.errors import ContextTooLongError, EmptyPromptError, ModelSettingError, NonFiniteScoreError
from semgrad_guard.flow import Message
from semgrad_guard.models import LocalModel, LocalTextModel
from semgrad_guard.ports import TextModel
from tests.unit.models.conftest import Scripted, make_model, make_tokenizer

PROMPT = (Message("user", "the question"),)
END = 4
Writes = Callable[[str | list[int]], LocalModel]


def ids_of(local: LocalModel, text: str) -> tuple[int, ...]:
    """Return the ids of a text alone."""
    return tuple(local.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_finished_answer_keeps_its_end_token(writes: Writes) -> None:
    """Whether the model chose to stop is part of what is scored."""
    local = writes("the answer")
    answer = local.generate(PROMPT)
    assert answer.text == "the answer"
    assert answer.finish_reason == "stop"
    assert answer.answer_ids == (*ids_of(local, "the answer"), END)
    assert answer.prompt_ids == local.encode_prompt(PROMPT)


def test_an_answer_cut_off_by_the_limit_has_no_end_token(writes: Writes) -> None:
    """The model did not say that it was done."""
    local = writes("the answer to the question")
    answer = local.generate(PROMPT, max_new_tokens=2)
    assert answer.finish_reason == "length"
    assert answer.answer_ids == ids_of(local, "the answer to the question")[:2]


def test_an_answer_equals_what_transformers_writes(local: LocalModel) -> None:
    """Keeping the cache and watching the text must not change a token."""
    ids = torch.tensor([local.encode_prompt(PROMPT)], device=local.device)
    plain = local.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    answer = local.generate(PROMPT, max_new_tokens=24, on_text=lambda _: None, stop=["never written"])
    assert answer.answer_ids == tuple(plain[0, ids.shape[1] :].tolist())


def test_the_checkpoints_own_settings_do_not_change_the_answer(local: LocalModel) -> None:
    """A checkpoint that samples or penalises by default would make greedy answers random."""
    before = local.generate(PROMPT, max_new_tokens=24)
    own = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "num_beams": 2}
    local.model.generation_config.update(**own, num_return_sequences=2, min_new_tokens=30, max_length=60)
    after = local.generate(PROMPT, max_new_tokens=24)
    assert after.answer_ids == before.answer_ids
    assert local.model.generation_config.temperature == 5.0


def test_a_checkpoints_own_stop_strings_do_not_get_in_the_way(writes: Writes) -> None:
    """Transformers refuses to generate when it has to look for texts without a tokenizer."""
    local = writes("the answer. Question: and")
    local.model.generation_config.stop_strings = ["Question"]
    assert local.generate(PROMPT).text.startswith("the answer.")


# --- stop sequences ---------------------------------------------------------------------------------------------------


def test_a_stop_sequence_is_not_part_of_the_answer(writes: Writes) -> None:
    """Neither of its text nor of its tokens."""
    local = writes("the answer. Question: and")
    answer = local.generate(PROMPT, stop=["Question"])
    assert answer.text == "the answer. "
    assert answer.finish_reason == "stop_sequence"
    assert local.decode(answer.answer_ids).startswith("the answer. ")
    assert "Question" not in local.decode(answer.answer_ids)


def test_a_token_that_holds_the_end_of_the_answer_stays_whole(writes: Writes) -> None:
    """The model wrote that token; half of it does not exist."""
    local = writes("the answer to")
    answer = local.generate(PROMPT, stop=["swer"])
    assert answer.text == "the an"
    assert answer.answer_ids == ids_of(local, "the answer to")[:2]


def test_the_earliest_stop_sequence_wins(writes: Writes) -> None:
    """Whatever their order in the list."""
    assert writes("red, green, blue").generate(PROMPT, stop=["blue", "green"]).text == "red, "


def test_a_stop_sequence_at_the_start_leaves_an_empty_answer(writes: Writes) -> None:
    """No text, no tokens; the scorer then says that the answer is empty."""
    answer = writes("the answer").generate(PROMPT, stop=["the"])
    assert (answer.text, answer.answer_ids, answer.finish_reason) == ("", (), "stop_sequence")


def test_a_special_token_can_be_a_stop_sequence(writes: Writes) -> None:
    """People pass end-of-turn tokens as stop texts, and decoded text never shows them."""
    answer = writes([10, 11, 3, 12]).generate(PROMPT, stop=["<|start|>"])
    assert answer.answer_ids == (10, 11, 3)
    assert answer.finish_reason == "stop"


# --- streaming --------------------------------------------------------------------------------------------------------


def test_the_streamed_pieces_make_up_the_answer(writes: Writes) -> None:
    """A character of several tokens comes whole, in one piece."""
    pieces = list[str]()
    answer = writes("yes 👩‍🚀, the answer").generate(PROMPT, on_text=pieces.append)
    assert "".join(pieces) == answer.text == "yes 👩‍🚀, the answer"
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_nothing_of_a_stop_sequence_is_streamed(writes: Writes) -> None:
    """What was shown can't be taken back."""
    pieces = list[str]()
    answer = writes("red\n\nQuestion: why").generate(PROMPT, stop=["\n\nQuestion:"], on_text=pieces.append)
    assert "".join(pieces) == answer.text == "red"


def test_what_only_looked_like_a_stop_sequence_is_streamed_later(writes: Writes) -> None:
    """Text that was held back must not get lost."""
    pieces = list[str]()
    writes("red\n\nblue").generate(PROMPT, stop=["\n\nQuestion:"], on_text=pieces.append)
    assert "".join(pieces) == "red\n\nblue"


def test_an_error_of_the_listener_ends_the_writing_and_leaves_no_trace(writes: Writes) -> None:
    """A broken connection must not keep the model busy or locked."""
    local = writes("the answer")
    local.model.train()

    def broken(_: str) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        local.generate(PROMPT, on_text=broken)
    assert local.model.training
    assert _is_free(local)


# --- ending early -----------------------------------------------------------------------------------------------------


def test_cancelling_returns_what_was_written(writes: Writes) -> None:
    """The caller may still want it, and the model is free again at once."""
    local, cancel = writes("the answer to the question"), threading.Event()
    answer = local.generate(PROMPT, cancel=cancel, on_text=lambda _: cancel.set())
    assert answer.finish_reason == "cancelled"
    assert answer.text == "the"


def test_a_cancelled_generation_does_not_start(writes: Writes) -> None:
    """Reading the prompt is most of the work."""
    local, cancel = writes("the answer"), threading.Event()
    cancel.set()
    answer = local.generate(PROMPT, cancel=cancel)
    assert (answer.finish_reason, answer.answer_ids) == ("cancelled", ())


def test_no_time_means_no_answer(writes: Writes) -> None:
    """A time limit holds for the whole writing."""
    assert writes("the answer").generate(PROMPT, max_time_s=0).finish_reason == "cancelled"


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_seed_makes_drawing_repeatable_and_leaves_torchs_own_state_alone(local: LocalModel) -> None:
    """Drawing must not disturb, nor be disturbed by, other code that draws."""
    torch.manual_seed(1)
    expected = torch.rand(1)
    first = local.generate(PROMPT, temperature=1.0, seed=7, max_new_tokens=12)
    torch.manual_seed(1)
    second = local.generate(PROMPT, temperature=1.0, seed=7, max_new_tokens=12)
    assert first.answer_ids == second.answer_ids
    assert torch.equal(torch.rand(1), expected)
    assert local.generate(PROMPT, temperature=1.0, seed=8, max_new_tokens=12).answer_ids != first.answer_ids


def test_drawn_answers_know_how_likely_the_model_found_them(local: LocalModel) -> None:
    """Sampling methods weigh answers by it, and no temperature may change it."""
    (one,) = local.generate_batch([PROMPT], temperature=2.0, top_p=0.9, seed=7, max_new_tokens=6)
    ids = torch.tensor([one.prompt_ids + one.answer_ids], device=local.device)
    with torch.no_grad():
        log_probabilities = local.model(ids).logits[0].log_softmax(-1)
    behind = log_probabilities[len(one.prompt_ids) - 1 : -1]
    expected = -behind.gather(-1, ids[0, len(one.prompt_ids) :, None])[:, 0]
    assert one.nlls == pytest.approx(expected.tolist(), rel=1e-4)
    assert local.generate(PROMPT, max_new_tokens=2).nlls is None


def test_without_a_seed_torchs_state_decides(local: LocalModel) -> None:
    """`torch.manual_seed` is how people make a program repeatable."""
    torch.manual_seed(3)
    first = local.generate(PROMPT, temperature=1.0, max_new_tokens=12)
    second = local.generate(PROMPT, temperature=1.0, max_new_tokens=12)
    torch.manual_seed(3)
    assert local.generate(PROMPT, temperature=1.0, max_new_tokens=12).answer_ids == first.answer_ids
    assert second.answer_ids != first.answer_ids


def test_a_tiny_nucleus_is_the_likeliest_token(local: LocalModel) -> None:
    """`top_p` keeps the smallest set of tokens that reaches it, so at least one."""
    greedy = local.generate(PROMPT, max_new_tokens=12)
    drawn = local.generate(PROMPT, temperature=1.0, top_p=1e-6, seed=1, max_new_tokens=12)
    assert drawn.answer_ids == greedy.answer_ids


def test_drawing_from_nan_is_an_error(local: LocalModel) -> None:
    """A model that overflowed has no distribution to draw from."""
    hook = local.model.get_output_embeddings().register_forward_hook(lambda *a: a[2] * float("nan"))
    with pytest.raises(NonFiniteScoreError):
        local.generate(PROMPT, temperature=1.0, max_new_tokens=2)
    hook.remove()


# --- batches ----------------------------------------------------------------------------------------------------------

QUESTIONS = ["a", "the question", "red, green, blue: what is the answer to the question in the passage", "an"]


_SMALL = {
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "gemma3_text", "mamba"])
def test_a_batch_answers_as_one_by_one(arch: str) -> None:
    """Padding and neighbours must not change an answer, nor its order."""
    changes = {"hidden_size": 32} if arch != "mamba" else {"hidden_size": 32, "num_attention_heads": None}
    local = LocalModel(make_model(arch, **changes), make_tokenizer(), arch)
    alone = [local.generate(question, max_new_tokens=8, keep=False) for question in QUESTIONS]
    assert local.generate_batch(QUESTIONS, max_new_tokens=8, batch_size=3) == alone


def test_a_recurrent_model_writes_one_answer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every recurrent layer can be kept from reading the padding."""
    local = LocalModel(make_model("mamba", num_attention_heads=None), make_tokenizer(), "mamba")
    real, n_rows = local.model.generate, list[int]()

    def counted(**arguments: torch.Tensor) -> object:
        n_rows.append(len(arguments["input_ids"]))
        return real(**arguments)

    monkeypatch.setattr(local.model, "generate", counted)
    local.generate_batch(QUESTIONS, max_new_tokens=2)
    assert n_rows == [1] * len(QUESTIONS)


def test_rows_of_a_batch_end_each_at_its_own_place(local: LocalModel) -> None:
    """A row that met its stop sequence is padded while the others go on."""
    scripts = {"a": "red. green", "the question": "blue and more. red"}
    ids = {question: ids_of(local, text) for question, text in scripts.items()}
    step = iter(range(100))

    def replace(_m: object, _a: object, output: torch.Tensor) -> torch.Tensor:
        n, scores = next(step), torch.full_like(output, -50.0)
        for row, written in enumerate(ids.values()):
            scores[row, -1, written[n] if n < len(written) else END] = 50.0
        return scores

    hook = local.model.get_output_embeddings().register_forward_hook(replace)
    answers = local.generate_batch(list(scripts), stop=["."])
    hook.remove()
    assert [answer.text for answer in answers] == ["red", "blue and more"]
    assert {answer.finish_reason for answer in answers} == {"stop_sequence"}


def test_equal_prompts_of_a_batch_get_different_draws_that_do_not_depend_on_the_batch(local: LocalModel) -> None:
    """Sampling several answers to one question is what a batch of equal prompts is for."""
    three = local.generate_batch(["a"] * 3, temperature=1.0, seed=1, max_new_tokens=12)
    assert len({answer.answer_ids for answer in three}) == 3
    assert local.generate_batch(["a"] * 3, temperature=1.0, seed=1, max_new_tokens=12, batch_size=2) == three


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "bloom", "mistral", "gemma3_text", "gpt_neo", "mamba"])
def test_drawing_several_answers_reads_the_prompt_once_and_draws_as_before(arch: str) -> None:
    """Where memory of a prompt can be repeated, several answers cost one reading; without, nothing else changes."""
    mamba = {"num_attention_heads": None}
    local = LocalModel(make_model(arch, **(mamba if arch == "mamba" else _SMALL.get(arch, {}))), make_tokenizer(), arch)
    prompts = ["the question"] * 3 + ["red, green, blue"] + ["a passage about colours"] * 2
    read = list[tuple[int, ...]]()
    hook = local.model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: read.append(args[0].shape))
    greedy = local.generate_batch(prompts, max_new_tokens=6)
    hook.remove()
    alone = [local.generate(prompt, max_new_tokens=6, keep=False) for prompt in prompts]
    assert greedy == alone
    longest = max(len(local.encode_prompt(prompt)) for prompt in prompts)
    if arch != "mamba":
        assert read[:2] == [(3, longest - 1), (6, 1)]
    drawn = local.generate_batch(prompts, temperature=1.0, seed=3, max_new_tokens=6)
    assert drawn == local.generate_batch(prompts, temperature=1.0, seed=3, max_new_tokens=6, batch_size=1)
    assert len({answer.answer_ids for answer in drawn[:3]}) == 3


def test_drawing_behind_an_answer_does_not_read_the_prompt_again(local: LocalModel) -> None:
    """The answer's KV cache is left as it was: its score is still to come."""
    answer = local.generate(PROMPT, max_new_tokens=6)
    assert answer.kept is not None
    before = [layer.keys.clone() for layer in answer.kept.cache.layers]
    read = list[int]()
    hook = local.model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: read.append(args[0].shape[1]))
    again = local.generate_batch([PROMPT] * 2, max_new_tokens=6, kept=answer.kept)
    other = local.generate_batch([QUESTIONS[0]], max_new_tokens=2, kept=answer.kept)
    hook.remove()
    assert [one.answer_ids for one in again] == [answer.answer_ids] * 2
    assert set(read[: len(answer.answer_ids)]) == {1}
    assert other == [local.generate(QUESTIONS[0], max_new_tokens=2, keep=False)]
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(answer.kept.cache.layers, before, strict=True))


def test_a_batch_that_does_not_fit_is_halved(local: LocalModel) -> None:
    """Memory runs out with the batch size, and a smaller batch gives the same answers."""
    alone = local.generate_batch(QUESTIONS, max_new_tokens=4, batch_size=1)
    real = local.model.generate

    def scarce(**arguments: torch.Tensor) -> object:
        if len(arguments["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return real(**arguments)

    local.model.generate = scarce  # type: ignore[method-assign]
    assert local.generate_batch(QUESTIONS, max_new_tokens=4, batch_size=4) == alone


def test_no_prompts_no_answers(local: LocalModel) -> None:
    """An empty batch is a batch."""
    assert local.generate_batch([]) == []


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_prompt_that_fills_the_context_is_refused_before_it_is_read(local: LocalModel) -> None:
    """Reading beyond the trained positions gives noise, not an error."""
    with pytest.raises(ContextTooLongError) as caught:
        local.generate(prompt_ids=[5] * 128)
    assert (caught.value.n_tokens, caught.value.limit) == (129, 128)


def test_an_answer_ends_where_the_context_does(local: LocalModel) -> None:
    """The model can't write beyond it."""
    Scripted(local.model, [10] * 50)
    assert len(local.generate(prompt_ids=[5] * 120).answer_ids) == 8


@pytest.mark.parametrize("prompt", ["", (), None])
def test_an_empty_prompt_is_refused(local: LocalModel, prompt: str | tuple[()] | None) -> None:
    """Nothing predicts the first token."""
    with pytest.raises(EmptyPromptError):
        local.generate(prompt)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("stop", [""])],
)
def test_a_setting_out_of_range_is_named(local: LocalModel, setting: str, value: object) -> None:
    """The message says what is allowed."""
    with pytest.raises(ModelSettingError) as caught:
        local.generate(PROMPT, **{setting: value})
    assert caught.value.setting == setting


# --- manners ----------------------------------------------------------------------------------------------------------


def test_each_module_keeps_its_mode(local: LocalModel) -> None:
    """Callers freeze parts of a model in eval mode and train the rest."""
    local.model.train()
    local.model.model.layers[0].eval()
    before = {name: module.training for name, module in local.model.named_modules()}
    local.generate(PROMPT, max_new_tokens=2)
    assert {name: module.training for name, module in local.model.named_modules()} == before


def test_dropout_is_off_while_writing() -> None:
    """A model in train mode would give another answer each time."""
    local = LocalModel(make_model("gpt2", hidden_size=32, resid_pdrop=0.9), make_tokenizer(), "drops")
    calm = local.generate(PROMPT, max_new_tokens=8)
    local.model.train()
    assert local.generate(PROMPT, max_new_tokens=8).answer_ids == calm.answer_ids


def test_the_cache_can_take_part_in_a_backward_pass_whatever_mode_the_caller_is_in(local: LocalModel) -> None:
    """Pipelines run under inference mode, whose tensors autograd refuses for good."""
    with torch.inference_mode():
        kept = local.generate(PROMPT, max_new_tokens=4).kept
    assert kept is not None
    assert not any(layer.keys.is_inference() for layer in kept.cache.layers)


def test_the_lock_is_held_while_writing(writes: Writes) -> None:
    """Whoever scores with the model has to wait."""
    local, free = writes("the answer"), list[bool]()
    local.generate(PROMPT, on_text=lambda _: free.append(_is_free(local)))
    assert set(free) == {False}
    assert _is_free(local)


def test_nothing_is_logged(local: LocalModel, caplog: pytest.LogCaptureFixture) -> None:
    """A server's log must not fill up with remarks about settings that nobody chose."""
    theirs = logging.getLogger("transformers")
    theirs.addHandler(caplog.handler)
    try:
        local.generate(PROMPT, max_new_tokens=2)
        local.generate_batch(["a", "the question"], max_new_tokens=2, temperature=0.5)
    finally:
        theirs.removeHandler(caplog.handler)
    assert not caplog.messages


def test_threads_on_one_model_write_as_one(local: LocalModel) -> None:
    """One lock per model: callers from many threads wait for each other."""
    other = LocalModel(local.model, local.tokenizer, "another view of the same model")
    expected = [local.generate(question, max_new_tokens=6).answer_ids for question in QUESTIONS]
    found = dict[int, tuple[int, ...]]()

    def write(number: int) -> None:
        model = (local, other)[number % 2]
        found[number] = model.generate(QUESTIONS[number % len(QUESTIONS)], max_new_tokens=6).answer_ids

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.lock is local.lock
    assert [found[number] for number in range(16)] == expected * 4


def test_a_text_model_gives_the_bare_text(writes: Writes) -> None:
    """Stages that only want words must not see tokens."""
    model = LocalTextModel(writes(" the answer\n"))
    assert isinstance(model, TextModel)
    assert model.complete(PROMPT) == "the answer"


def _is_free(local: LocalModel) -> bool:
    """Tell whether another thread can take the model's lock."""
    taken = list[bool]()

    def take() -> None:
        taken.append(local.lock.acquire(blocking=False))
        if taken[0]:
            local.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]
