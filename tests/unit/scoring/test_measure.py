"""The engine as a guest on a caller's model, and on nets with weights set by hand."""

from __future__ import annotations

import threading

import pytest
import torch

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import Band, upper_half
from tests.differential.plain_definition import plain_scores
from tests.models_for_tests import build, tiny_lm

TOKENS = Tokens((5, 9, 13, 40, 7, 8, 61), (20, 33, 2))
SPEC = GradientSpec(Band(2, 3), 5)


def _traces(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        ["forward" in vars(module) for module in model.modules()],
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left_on_the_model(fails):
    """The model is the caller's: mode, gradients, hooks and grad mode are as they were, also after an error."""
    model = build("gpt2")
    model.train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    measure(model, [TOKENS], SPEC)
    if fails:
        with torch.no_grad():
            model.transformer.h[3].mlp.c_fc.weight[0, 0] = float("nan")
    before = _traces(model)
    if fails:
        with pytest.raises(ArithmeticError):
            measure(model, [TOKENS], SPEC)
    else:
        measure(model, [TOKENS], SPEC)
    assert _traces(model) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2"])
def test_the_callers_grad_mode_does_not_matter(arch, mode):
    """Pipelines call models under `no_grad` or `inference_mode`."""
    expected = measure(tiny_lm(arch), [TOKENS], SPEC)[0].parts[0]
    with mode():
        found = measure(tiny_lm(arch), [TOKENS], SPEC)[0].parts[0]
    assert found.semgrad == expected.semgrad
    assert found.by_weight.paragrad == expected.by_weight.paragrad


def test_frozen_and_training_models_score_alike():
    """Dropout must not be on, and weights need no gradients."""
    expected = measure(build("gpt2"), [TOKENS], SPEC)[0].parts[0]
    model = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    model.requires_grad_(False)
    model.train()
    assert measure(model, [TOKENS], SPEC)[0].parts[0].semgrad == pytest.approx(expected.semgrad, rel=1e-6)


def test_weights_made_in_inference_mode_are_refused_by_name():
    """Autograd refuses them with a message that names nobody."""
    with torch.inference_mode():
        model = build("gpt2")
    with pytest.raises(GradientsUnavailableError) as caught:
        measure(model, [TOKENS], SPEC)
    assert "inference_mode" in caught.value.why


def test_in_double_precision_the_definition_is_met_exactly():
    """GPT-2 computes in float64 throughout, so nothing but the derivation can differ."""
    model = build("gpt2", dtype=torch.float64)
    plain = plain_scores(build("gpt2", dtype=torch.float64), TOKENS.prompt, TOKENS.answer)
    found = measure(model, [TOKENS], SPEC)[0].parts[0]
    assert found.semgrad == pytest.approx([plain["semgrad"][-k] for k in range(1, 6)], rel=1e-9)
    assert found.by_weight == pytest.approx((plain["paragrad"], plain["exgrad"]), rel=1e-9)


def test_blocks_that_add_nothing_leave_the_heads_own_gradient():
    """With attention and MLP set to zero every block hands its input on, and paper suffices.

    Then h[l] = h for all l, z = g h / r with r² = mean h² + eps, so the gradient by h at the position that predicts the
    answer's only token is H J^T W^T (p - onehot), with J = diag(g) (I - h h^T / (d r²)) / r; elsewhere it is 0.
    """
    model = build("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    tokens = Tokens((5, 9, 13), (20,))
    found = measure(model, [tokens], GradientSpec(Band(2, 3), 2))[0]
    weight, gain = model.lm_head.weight.detach().double(), model.model.norm.weight.detach().double()
    h = model.model.embed_tokens.weight[13].detach().double()
    r = (h.square().mean() + model.config.rms_norm_eps).sqrt()
    log_p = (weight @ (gain * h / r)).log_softmax(dim=0)
    entropy = -(log_p.exp() * log_p).sum()
    error = log_p.exp()
    error[20] -= 1
    at_z = gain * (weight.T @ error)
    by_h = entropy * (at_z - h * (h @ at_z) / (len(h) * r.square())) / r
    assert found.parts[0].semgrad[0] == pytest.approx(float(by_h.abs().mean()), rel=1e-5)
    assert found.parts[0].semgrad[1] == 0.0


def test_parts_add_up_to_the_whole():
    """The objective of the whole is the length-weighted mean of its parts', so one long part is the whole."""
    model = tiny_lm("llama")
    parts = [[slice(0, 3), slice(0, 1)]]
    whole, same, first = measure(model, [TOKENS], SPEC, parts=parts)[0].parts
    assert same.semgrad == pytest.approx(whole.semgrad, rel=1e-6)
    assert same.by_weight == pytest.approx(whole.by_weight, rel=1e-6)
    alone = measure(model, [Tokens(TOKENS.prompt, TOKENS.answer[:1])], SPEC)[0].parts[0]
    assert first.semgrad == pytest.approx(alone.semgrad, rel=2e-4)
    assert first.by_weight.paragrad == pytest.approx(alone.by_weight.paragrad, rel=2e-4)


def test_float16_keeps_small_gradients():
    """Gradients of 1e-7 are nothing in float16 unless they are scaled up on the way."""
    exact = measure(build("gpt2"), [TOKENS], SPEC)[0].parts[0]
    half = measure(build("gpt2", dtype=torch.float16), [TOKENS], SPEC)[0].parts[0]
    assert half.semgrad == pytest.approx(exact.semgrad, rel=3e-2)


def test_threads_on_one_model_get_the_numbers_of_one():
    """Hooks of one thread must never see another thread's forward pass: the lock is the scorer's, so hold it."""
    model, lock = tiny_lm("llama"), threading.RLock()
    expected = measure(model, [TOKENS], SPEC)[0].parts[0]
    found = []

    def work():
        for _ in range(5):
            with lock:
                found.append(measure(model, [TOKENS], SPEC)[0].parts[0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(part == expected for part in found)


@pytest.mark.parametrize(("n_blocks", "first"), [(1, 0), (2, 1), (5, 3), (30, 15)])
def test_the_band_is_the_upper_half(n_blocks, first):
    """Layers L - floor(L/2) to L - 1, as published; a model of one block has only that one."""
    assert upper_half(n_blocks) == Band(first, n_blocks - 1)
