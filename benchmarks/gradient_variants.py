"""What other gradients than SemGrad's would be worth: every layer, position, norm and token weight, on graded answers.

Answers come from a run of `semgrad-guard evaluate`. Each is differentiated again by the states of all layers at the
last prompt tokens, for three objectives, and each gradient is reduced by three norms. The best variant is chosen on
four fifths of the pages and judged on the last, so that its figure is not the luck of the choice.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from semgrad_guard.calibration import Interval
from semgrad_guard.calibration.labels import collect, grouped_folds
from semgrad_guard.calibration.metrics import auroc, paired_difference, with_interval
from semgrad_guard.cli.terminal import bar
from semgrad_guard.evaluation.compare.report import short
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.models import load_model
from semgrad_guard.scoring.scorer import read_exchange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.models import LocalModel
    from semgrad_guard.scoring.layout import Tokens

    Array = NDArray[np.float64]

OBJECTIVES = ("entropy-weighted", "unweighted", "first token")
NORMS = ("mean |g|", "l2", "largest |g|")
N_POSITIONS = 8


@dataclass(frozen=True, slots=True)
class Graded:
    """Gradients of graded answers."""

    norms: Array
    """``(answer, objective, norm, layer, position)``; position 0 is the prompt's last token."""
    correct: Array
    groups: NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as asked."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=True)
    local = load_model(asked.model)
    scored = (row for row in read_rows(asked.answers) if "answer_ids" in row.fields and "error" not in row.fields)
    rows = list(islice(scored, asked.limit))
    with bar(console) as progress:
        task = progress.add_task("gradients", total=len(rows))
        norms: list[Array] = []
        for row in rows:
            norms.append(_gradients(local, _tokens(local, row)))
            progress.update(task, advance=1)
    labels = collect(Labeller(path=asked.answers).label(rows))
    graded = Graded(np.stack(norms), labels.correct, labels.groups)
    report = judge(graded)
    Console().print(_table(report))
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def judge(graded: Graded, seed: int = 0) -> dict[str, Any]:
    """Return the AUROC for "wrong" of the default, of each choice along one axis, and of the choice of all at once."""
    n_layers = graded.norms.shape[3]
    band = range(n_layers - n_layers // 2, n_layers)
    default = _band(graded, 0, 0, band, 0)
    named: dict[str, Array] = {"SemGrad at -1": default}
    named |= {f"position {-1 - p}": _band(graded, 0, 0, band, p) for p in range(1, N_POSITIONS)}
    named |= {f"norm {name}": _band(graded, 0, n, band, 0) for n, name in enumerate(NORMS) if n}
    named |= {f"objective {name}": _band(graded, o, 0, band, 0) for o, name in enumerate(OBJECTIVES) if o}
    thirds = {"lowest": range(n_layers // 3), "middle": range(n_layers // 3, 2 * n_layers // 3)}
    thirds["highest"] = range(2 * n_layers // 3, n_layers)
    named |= {f"{name} third of the layers": _band(graded, 0, 0, layers, 0) for name, layers in thirds.items()}
    chosen, chosen_names = _chosen(graded, seed)
    named["best of all, cross-validated"] = chosen
    return {
        "n": len(graded.correct),
        "right": float(graded.correct.mean()),
        "variants": {name: _figures(graded, values, default, seed) for name, values in named.items()},
        "chosen": chosen_names,
    }


def _figures(graded: Graded, values: Array, default: Array, seed: int) -> dict[str, Any]:
    whole = with_interval(auroc, -values, graded.correct, graded.groups, seed=seed)
    more = paired_difference(auroc, -values, -default, graded.correct, graded.groups, seed=seed)
    return {"auroc": whole.model_dump(), "above_default": more.model_dump()}


def _band(graded: Graded, objective: int, norm: int, layers: range, position: int) -> Array:
    """Return the mean over some layers."""
    found: Array = graded.norms[:, objective, norm, layers.start : layers.stop, position].mean(axis=1)
    return found


def _chosen(graded: Graded, seed: int) -> tuple[Array, list[str]]:
    """Return for each answer its rank by the variant that was best on the other folds, and which these were."""
    n, *shape = graded.norms.shape
    flat = graded.norms.reshape(n, -1)
    found, names = np.empty(n), list[str]()
    for test in grouped_folds(graded.correct, graded.groups, seed=seed):
        train, right = flat[~test], graded.correct[~test] > 0
        below = train[right][:, None, :] < train[~right][None, :, :]
        best = int(below.mean(axis=(0, 1)).argmax())
        o, norm, layer, position = np.unravel_index(best, shape)
        names.append(f"{OBJECTIVES[o]}, {NORMS[norm]}, layer {layer}, position {-1 - position}")
        found[test] = np.searchsorted(np.sort(train[:, best]), flat[test, best]) / len(train)
    return found, names


def _gradients(local: LocalModel, tokens: Tokens) -> Array:
    """Return ``(objective, norm, layer, position)`` of one exchange: a blind prefix, then autograd over the rest."""
    model: Any = local.model
    ids = torch.tensor([tokens.prompt + tokens.answer], device=local.device)
    start, n_answer = max(len(tokens.prompt) - N_POSITIONS, 1), len(tokens.answer)
    with local.lock:
        with torch.no_grad():
            cache = model(input_ids=ids[:, :start], use_cache=True, logits_to_keep=1).past_key_values
        with torch.enable_grad():
            embedded = model.get_input_embeddings()(ids[:, start:]).detach().requires_grad_()
            output = model(
                inputs_embeds=embedded,
                past_key_values=cache,
                position_ids=torch.arange(start, ids.shape[1], device=local.device)[None],
                output_hidden_states=True,
            )
            log_p = torch.log_softmax(output.logits[0, -n_answer - 1 : -1].float(), dim=-1)
            nll = -log_p.gather(1, ids[0, -n_answer:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(dim=-1).detach()
            objectives = ((entropy * nll).mean(), nll.mean(), nll[0])
            states = output.hidden_states[:-1]
            found = [list(_norms(torch.autograd.grad(o, states, retain_graph=True))) for o in objectives]
    return np.array(found, dtype=np.float64)


def _norms(gradients: Sequence[torch.Tensor]) -> Iterator[list[list[float]]]:
    """Yield ``(layer, position)`` for each norm, the last prompt token first."""
    at_prompt = torch.stack([gradient[0, :N_POSITIONS].flip(0) for gradient in gradients]).double()
    yield at_prompt.abs().mean(dim=-1).tolist()
    yield at_prompt.norm(dim=-1).tolist()
    yield at_prompt.abs().amax(dim=-1).tolist()


def _tokens(local: LocalModel, row: Row) -> Tokens:
    return read_exchange(local, row.exchange_for(chat=local.is_chat, on_policy=row.is_own))


def _table(report: dict[str, Any]) -> Table:
    table = Table(
        "gradient", "AUROC", "above SemGrad at -1", title=f"{report['n']} answers, {report['right']:.0%} right"
    )
    for name, found in report["variants"].items():
        table.add_row(name, *(short(Interval(**found[key])) for key in ("auroc", "above_default")))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_variants", description=__doc__)
    parser.add_argument("answers", help="answers.jsonl of a run of `semgrad-guard evaluate`")
    parser.add_argument("--model", default="smollm2-135m", help="the model that wrote them")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many")
    parser.add_argument("--json", default=None, help="file to write the numbers to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
