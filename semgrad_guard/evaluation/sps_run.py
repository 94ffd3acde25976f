"""One scan from model to report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.evaluation.position.choice import choose
from semgrad_guard.evaluation.position.preservation import scan
from semgrad_guard.evaluation.position.report import SpsReport
from semgrad_guard.evaluation.sps_states import N_POSITIONS, read_states
from semgrad_guard.scoring.layout import default_position, known_position
from semgrad_guard.scoring.recording import upper_half

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.evaluation.paraphrases import Paraphrased
    from semgrad_guard.evaluation.position.choice import LabelCheck
    from semgrad_guard.evaluation.position.preservation import States
    from semgrad_guard.models import LocalModel


def find_position(  # noqa: PLR0913 - each is a choice of the caller with a usual value
    local: LocalModel,
    paraphrased: Sequence[Paraphrased],
    *,
    n_positions: int = N_POSITIONS,
    batch_size: int = 16,
    seed: int = 0,
    labels: LabelCheck | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> SpsReport:
    """Return where a model's states carry the meaning of the question.

    Args:
        local: the model.
        paraphrased: questions with their paraphrases.
        n_positions: positions looked at, from the prompt's end.
        batch_size: texts read together.
        seed: seed of draws and halvings.
        labels: what labelled answers say, to be shown beside it.
        advance: told how many more texts were read.

    Raises:
        NonFiniteScoreError: a state holds NaN or infinity.
    """
    states = read_states(local, paraphrased, n_positions=n_positions, batch_size=batch_size, advance=advance)
    sps = scan(states)
    known, band = known_position(local.tokenizer), upper_half(sps.n_layers)
    choice = choose(
        sps,
        band=(band.first, band.last),
        default=default_position(local.tokenizer),
        is_published=known is not None,
        seed=seed,
    )
    return SpsReport(
        model=local.name,
        sps=sps,
        choice=choice,
        tokens=_tokens(local, states, sps.is_template.tolist()),
        published=known,
        labels=labels,
    )


def _tokens(local: LocalModel, states: States, is_template: Sequence[bool]) -> tuple[str, ...]:
    """Return what stands at each position, control characters made visible."""
    return tuple(
        repr(local.tokenizer.decode([int(token)]))[1:-1] if fixed else "(question)"
        for token, fixed in zip(states.tokens[0], is_template, strict=True)
    )
