"""Every method that is compared: single scores as they are, fusions of several, sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from semgrad_guard.calibration.wording import direction_of
from semgrad_guard.evaluation.compare.sampled_signals import SAMPLED
from semgrad_guard.scoring.signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["gradient", "likelihood", "text", "embedding", "forward", "sampling", "fused", "chosen"]
"""What ranks the answers: one signal of a kind, several fused, or the one that was best on the other folds."""

_GRADIENTS = ("semgrad", "paragrad", "hybridgrad", "exgrad")
"""Families of signals that need the backward pass, by the beginning of their names."""
_LIKELIHOOD_RANKS = frozenset({"min_prob", "first_prob"})
"""They rank as `max_nll` and `first_nll` do, and are only of use inside a fusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How answers are ranked, and from which signals."""

    name: str
    kind: Kind
    signals: tuple[str, ...]
    """One, or several that are fused or chosen from."""

    @property
    def direction(self) -> int:
        """1 where a higher value of the single signal is surer, -1 where it is less sure."""
        return -1 if self.kind == "sampling" else direction_of(self.signals[0])


def kind_of(signal: str) -> Kind:
    """Return what a signal comes from."""
    if signal in SAMPLED:
        return "sampling"
    if signal.startswith(_GRADIENTS):
        return "gradient"
    cost = SIGNALS[signal].cost
    return "likelihood" if cost == "free" else cost


def single_methods(names: tuple[str, ...]) -> list[Method]:
    """Return a method for each signal that has a direction, from the signals that rows have."""
    known = [name for name in names if name in SAMPLED or name in SIGNALS]
    ranked = [name for name in known if name in SAMPLED or (direction_of(name) and name not in _LIKELIHOOD_RANKS)]
    return [Method(name=name, kind=kind_of(name), signals=(name,)) for name in ranked]


def fused_methods(names: tuple[str, ...]) -> list[Method]:
    """Return the fusions that show what each family adds; the first is what the guard uses by default."""
    by_kind: dict[Kind, tuple[str, ...]] = {
        kind: tuple(name for name in names if name in SIGNALS and kind_of(name) == kind)
        for kind in ("gradient", "likelihood", "text", "embedding", "forward")
    }
    gradients, likelihoods, texts, closeness, forward = by_kind.values()
    without = gradients + likelihoods + texts
    wanted = {
        "fused": without + closeness,
        "fused + forward": without + closeness + forward if forward else (),
        "fused, no gradients": likelihoods + texts + closeness,
        "fused, no text": gradients + likelihoods + closeness if texts else (),
        "fused, no embeddings": without if closeness else (),
        "fused, no embeddings, no gradients": likelihoods + texts if closeness else (),
        "fused, gradients only": gradients,
        "fused, likelihoods only": likelihoods,
        "fused, text only": texts,
        "fused, embeddings only": closeness,
    }
    return _of_several("fused", wanted)


def chosen_methods(names: tuple[str, ...]) -> list[Method]:
    """Return the choices of one score by its figures on the other folds.

    They are what a fusion has to beat: the best of many scores on the very answers it is judged by is partly luck.
    """
    directed = [name for name in names if name in SIGNALS and direction_of(name)]
    own = tuple(name for name in directed if kind_of(name) in {"gradient", "likelihood"})
    free = tuple(name for name in directed if kind_of(name) != "forward")
    return _of_several("chosen", {"best score of the model": own, "best single score": free})


def _of_several(kind: Kind, wanted: Mapping[str, tuple[str, ...]]) -> list[Method]:
    return [Method(name=name, kind=kind, signals=signals) for name, signals in wanted.items() if len(signals) > 1]
