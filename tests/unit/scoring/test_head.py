"""The closed form of the output head, against numbers on paper and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from semgrad_guard.errors import NonFiniteScoreError
from semgrad_guard.scoring import budget as budget_module
from semgrad_guard.scoring.budget import MemoryBudget
from semgrad_guard.scoring.head import LogitMap, OutputHead, run_head


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class _Wrapped(nn.Module):
    """A head whose weight cannot be read, as a quantised one."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner(z)


def test_two_words_and_one_dimension_by_hand():
    """A case small enough for paper.

    W = (ln 3, 0), z = 1: logits (ln 3, 0), p = (3/4, 1/4). The target is the second word:
    NLL = ln 4; H = 3/4 ln(4/3) + 1/4 ln 4; p - onehot = (3/4, -3/4);
    by z: 3/4 ln 3; by W: (3/4, -3/4), mean of absolutes 3/4.
    """
    weight = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    head = OutputHead(_linear(weight), LogitMap(), 2)
    found = run_head(head, torch.ones(1, 1, dtype=torch.float64), torch.tensor([1]), [slice(0, 1)])
    pull, found = found.pull, found.read()
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert found.nll[0] == pytest.approx(math.log(4), rel=1e-14)
    assert found.entropy[0] == pytest.approx(entropy, rel=1e-14)
    assert float(pull) == pytest.approx(0.75 * math.log(3), rel=1e-14)
    assert found.norms[0].exgrad == pytest.approx(0.75, rel=1e-14)
    assert found.norms[0].paragrad == pytest.approx(0.75 * entropy, rel=1e-14)
    assert (found.top[0], bool(found.is_top[0])) == (pytest.approx(0.75, rel=1e-14), False)


def _random(n_tokens: int = 6, n_vocabulary: int = 150, hidden: int = 7):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n_tokens, hidden, generator=generator, dtype=torch.float64)
    weight = torch.randn(n_vocabulary, hidden, generator=generator, dtype=torch.float64)
    bias = torch.randn(n_vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(n_vocabulary, (n_tokens,), generator=generator)
    return z, weight, bias, targets


def _by_autograd(logit_map: LogitMap, part: slice):
    """Return NLL, entropy, pull and the two norms by autograd."""
    z, weight, bias, targets = _random()
    z.requires_grad_()
    weight.requires_grad_()
    raw = (z @ weight.T + bias) * logit_map.scale
    logits = raw if logit_map.cap is None else logit_map.cap * torch.tanh(raw / logit_map.cap)
    log_p = logits.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1).detach()
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    (pull,) = torch.autograd.grad(nll.sum(), z, retain_graph=True)
    (ex,) = torch.autograd.grad(nll[part].mean(), weight, retain_graph=True)
    (para,) = torch.autograd.grad((entropy * nll)[part].mean(), weight)
    return nll.detach(), entropy, pull, float(para.abs().mean()), float(ex.abs().mean())


@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.25), LogitMap(cap=5.0), LogitMap(2.0, 8.0)])
@pytest.mark.parametrize("source", ["open", "wrapped"])
@pytest.mark.parametrize("room", ["stored", "computed twice", "known", "one block"])
def test_every_way_through_the_head_equals_autograd(monkeypatch, logit_map, source, room):
    """Blocks, scales, caps, a head that cannot be read, one too large to keep and a known output: all the same."""
    monkeypatch.setattr(budget_module, "_CACHE_ENTRIES", 1)  # blocks of 64: the vocabulary is not a multiple
    budget = {"computed twice": MemoryBudget(0), "one block": MemoryBudget(2**30)}.get(room, MemoryBudget())
    z, weight, bias, targets = _random()
    linear = _linear(weight, bias)
    head = OutputHead(linear if source == "open" else _Wrapped(linear), logit_map, len(weight))
    part = slice(1, 4)
    known = z @ weight.T + bias if room == "known" else None
    before = None if known is None else known.clone()
    found = run_head(head, z, targets, [slice(0, 6), part], known, budget=budget)
    by_z, found = found.pull, found.read()
    assert known is None or before is None or torch.equal(known, before)  # other scores may come from it
    nll, entropy, pull, para, ex = _by_autograd(logit_map, part)
    assert found.nll.tolist() == pytest.approx(nll.tolist(), rel=1e-10)
    assert found.entropy.tolist() == pytest.approx(entropy.tolist(), rel=1e-10)
    assert by_z.flatten().tolist() == pytest.approx(pull.flatten().tolist(), rel=1e-9)
    assert found.norms[1] == pytest.approx((para, ex), rel=1e-10)


@pytest.mark.parametrize("norms", [("paragrad",), ("exgrad",), ()])
def test_only_the_gradients_asked_for_are_computed_and_nothing_else_changes(norms):
    """Each costs a pass over the vocabulary, which who wants SemGrad alone need not pay."""
    z, weight, bias, targets = _random()
    head, parts = OutputHead(_linear(weight, bias), LogitMap(), len(weight)), [slice(0, 6), slice(1, 4)]
    whole = run_head(head, z, targets, parts)
    found = run_head(head, z, targets, parts, norms=norms)
    assert torch.equal(found.pull, whole.pull)
    assert torch.equal(found.entropy, whole.entropy)
    for one, other in zip(found.read().norms, whole.read().norms, strict=True):
        measured = {name: value for name, value in one._asdict().items() if value is not None}
        assert measured == pytest.approx({name: other._asdict()[name] for name in norms}, rel=1e-12)


def test_half_precision_heads_are_computed_in_single():
    """Rounding 150 logits to 8 bits of mantissa would move the entropy by a percent."""
    z, weight, _, targets = _random()
    z, weight = z.bfloat16(), weight.bfloat16()
    found = run_head(OutputHead(_linear(weight), LogitMap(), 150), z, targets, [slice(0, 6)]).read()
    exact = run_head(OutputHead(_linear(weight.double()), LogitMap(), 150), z.double(), targets, [slice(0, 6)]).read()
    assert found.entropy.tolist() == pytest.approx(exact.entropy.tolist(), rel=1e-5)
    assert found.norms[0] == pytest.approx(exact.norms[0], rel=1e-5)


def test_a_sure_token_keeps_its_tiny_entropy():
    """The weight of a token is its entropy; a difference of large numbers would leave only rounding.

    Logits (30, 0): H = log(1 + e^-30) + 30 e^-30 / (1 + e^-30), about 2.9e-12.
    """
    weight = torch.tensor([[30.0], [0.0]])
    found = run_head(OutputHead(_linear(weight), LogitMap(), 2), torch.ones(1, 1), torch.tensor([0]), []).read()
    small = math.exp(-30)
    assert found.entropy[0] == pytest.approx(math.log1p(small) + 30 * small / (1 + small), rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_out_of_bounds_are_refused(bad):
    """NaN would pass every comparison of a policy unnoticed."""
    head = OutputHead(_linear(torch.tensor([[1.0], [2.0]])), LogitMap(), 2)
    with pytest.raises(NonFiniteScoreError) as caught:
        run_head(head, torch.tensor([[bad]]), torch.tensor([0]), []).read()
    assert "hidden state" in caught.value.where
    broken = OutputHead(_linear(torch.tensor([[1.0], [bad]])), LogitMap(), 2)
    with pytest.raises(NonFiniteScoreError) as caught:
        run_head(broken, torch.tensor([[1.0]]), torch.tensor([0]), []).read()
    assert "log-likelihood" in caught.value.where
