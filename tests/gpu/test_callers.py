"""What a caller has set up around a model changes no score: contexts, compiled models, ways of attention, threads."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext

import pytest
import torch

from semgrad_guard.errors import OutOfMemoryError
from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel, load_model
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

PROMPT = tuple(range(3, 60))
EXCHANGE = Exchange(prompt_ids=PROMPT, answer_ids=tuple(range(9, 19)), on_policy=True)
CLOSE = 2e-4


def model_on(device, arch="llama", **changes):
    local = local_model(arch, **changes)
    local.model.to(device)
    return local


def scored(local):
    """Return the signals of a cold score and of one behind the writing."""
    scorer = SemGradScorer(local)
    written = local.generate(prompt_ids=PROMPT, max_new_tokens=6, states_of=scorer.band_blocks)
    return scorer.score(EXCHANGE).signals, scorer.score_generated(written).signals


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=CLOSE)


CONTEXTS = {
    "inference_mode": lambda _: torch.inference_mode(),
    "no_grad": lambda _: torch.no_grad(),
    "autocast": lambda device: torch.autocast(device, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_callers_context_does_not_matter(arch, context, device):
    """A server runs its models under `inference_mode` or `autocast`; a score compares with those taken elsewhere."""
    if device == "pretend" and context is not CONTEXTS["no_grad"]:
        pytest.skip("torch has neither for a device that is written in Python")
    expected, local = scored(model_on(device, arch)), model_on(device, arch)
    with context(device):
        found = scored(local)
    assert_close(found, expected)


@pytest.mark.parametrize("how", ["wrapped", "in place", "block by block"])
def test_a_compiled_model_is_scored_as_it_was_written(how, device):
    """Its numbers are the model's; the caller's compiled model stays compiled."""
    plain = model_on(device)
    expected = scored(plain)
    local = model_on(device)
    if how == "wrapped":
        local = load_model((torch.compile(local.model, backend="eager"), local.tokenizer))
    elif how == "in place":
        local.model.compile(backend="eager")
    else:
        for block in local.model.model.layers:
            block.compile(backend="eager")
    compiled = [vars(module).get("_compiled_call_impl") for module in local.model.modules()]
    assert_close(scored(local), expected)
    assert [vars(module).get("_compiled_call_impl") for module in local.model.modules()] == compiled


def test_a_wrapped_compiled_model_shares_its_lock_with_the_model_inside():
    """Two callers of one model must take turns, whichever form they hold."""
    local = local_model()
    assert LocalModel(torch.compile(local.model, backend="eager"), local.tokenizer, "compiled").lock is local.lock


@pytest.mark.parametrize("interface", ["sdpa", "eager"])
def test_the_way_of_attention_does_not_matter(interface, device):
    """Each kernel has its own form of mask."""
    assert_close(scored(model_on(device, attn_implementation=interface)), scored(model_on(device)))


@pytest.mark.gpu
def test_flash_attention_is_respected_or_refused_in_words():
    """It takes half precision only, and no mask."""
    pytest.importorskip("flash_attn", reason="needs the package flash-attn")
    flash = model_on("cuda", attn_implementation="flash_attention_2", head_dim=16)
    plain = model_on("cuda", head_dim=16)
    for local in (flash, plain):
        local.model.to(torch.bfloat16)
    for one, other in zip(scored(flash), scored(plain), strict=True):
        assert one["semgrad"] == pytest.approx(other["semgrad"], rel=5e-2)


def test_threads_get_the_numbers_of_one(device):
    """Several threads with scorers of their own, on one model; on a GPU each on a stream of its own."""
    local = model_on(device)
    expected, found = scored(local), []

    def work():
        own = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()
        with own:
            found.extend(scored(local) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for one in found:
        assert_close(one, expected)


def tensors():
    """Return how many live tensors there are of each size, weights left out."""
    gc.collect()
    return Counter(one.numel() for one in gc.get_objects() if type(one) is torch.Tensor)


@contextmanager
def full_when(model, is_too_much):
    """Let the memory be full whenever a block's state is more than there is room for."""
    tried = []

    def look(_block, args, kwargs):
        state = args[0] if args else kwargs["hidden_states"]
        if is_too_much(state, tried):
            tried.append(tuple(state.shape))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    hook = model.model.layers[3].register_forward_pre_hook(look, with_kwargs=True)
    yield tried
    hook.remove()


def test_a_batch_that_does_not_fit_is_halved_and_frees_everything(device):
    """Eight do not fit, nor four; two do."""
    local = model_on(device)
    scorer = SemGradScorer(local)
    batch = [
        Exchange(prompt_ids=tuple(range(5 + n, 40 + 2 * n)), answer_ids=(5, 6, 7), on_policy=True) for n in range(8)
    ]
    expected = [score.signals for score in scorer.score_batch(batch)]
    before = tensors()
    with full_when(local.model, lambda state, _: len(state) > 2) as tried:
        found = scorer.score_batch(batch)
    assert [shape[0] for shape in tried] == [8, 4, 4]
    assert_close([score.signals for score in found], expected)
    assert not tensors() - before


def test_an_exchange_that_never_fits_says_so_and_frees_everything(device):
    """The error must not hold on to the tensors that did not fit, as long as somebody keeps it."""
    local = model_on(device)
    scorer = SemGradScorer(local)
    scorer.score(EXCHANGE)
    before, caught = tensors(), []
    with full_when(local.model, lambda *_: True):
        try:
            scorer.score(EXCHANGE)
        except OutOfMemoryError as error:
            caught.append(error)
    assert caught
    assert not tensors() - before


def test_an_exchange_that_does_not_fit_as_a_whole_goes_by_small_pieces(device):
    """A generous budget is no reason to refuse a score that fits with a smaller one."""
    local = model_on(device, "llama")
    scorer = SemGradScorer(local, max_extra_mb=10_000)
    expected = scorer.score(EXCHANGE).signals
    with full_when(local.model, lambda _state, tried: not tried) as tried:
        found = scorer.score(EXCHANGE).signals
    assert len(tried) == 1
    assert_close([found], [expected])
