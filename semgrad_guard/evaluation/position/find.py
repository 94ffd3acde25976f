"""Reads states of paraphrases and runs the search."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch  # noqa: TID253 - this module is reached only to run a model
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semgrad_guard.errors import DataFileError, NonFiniteScoreError
from semgrad_guard.evaluation.position.choice import choose
from semgrad_guard.evaluation.position.preservation import TIE, States, scan
from semgrad_guard.evaluation.position.report import SpsReport
from semgrad_guard.evaluation.rows import question_prompt
from semgrad_guard.models.device import evaluating, plain_tensors
from semgrad_guard.scoring.layout import default_position, known_position
from semgrad_guard.scoring.model_parts import upper_half

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.evaluation.position.choice import LabelCheck
    from semgrad_guard.models import LocalModel

FORM = 'each line is one object such as {"question": "...", "paraphrases": ["...", "..."]}'
MIN_QUESTIONS = 8
"""Fewer questions cannot be halved for the held-out check."""
_BUILT_IN = "paraphrases.jsonl"
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=True)
    question: Annotated[str, Field(min_length=1)]
    paraphrases: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True, slots=True)
class Paraphrased:
    """One question in several wordings that mean the same."""

    texts: tuple[str, ...]
    """The question and its paraphrases, two texts or more, all different."""


def read_paraphrases(path: Path | str | None = None) -> tuple[Paraphrased, ...]:
    """Return questions with their paraphrases.

    Args:
        path: JSONL file with `question` and `paraphrases` on each line; `None` is the built-in set.

    Raises:
        DataFileError: the file cannot be read, a line cannot be used, or there are fewer than `MIN_QUESTIONS`.
    """
    named = path or _BUILT_IN
    try:
        source = Path(path) if path else resources.files("semgrad_guard.evaluation.position").joinpath(_BUILT_IN)
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise DataFileError(named, None, f"cannot be read: {error.strerror}", "check the path") from error
    found = tuple(_groups(lines, named))
    if len(found) < MIN_QUESTIONS:
        advice = (
            f"give at least {MIN_QUESTIONS} different questions, each with paraphrases; 60 make the result reliable"
        )
        raise DataFileError(named, None, f"holds {len(found)} questions", advice)
    return found


def last_word(text: str) -> str:
    """Return the last word of a text in lower case, without punctuation; empty when it has no word."""
    words = _WORD.findall(text.lower())
    return words[-1] if words else ""


def _groups(lines: list[bytes], path: Path | str) -> Iterator[Paraphrased]:
    line_of = dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        form = _form(line, path, number)
        texts = (form.question, *form.paraphrases)
        for text in texts:
            if text in line_of:
                why = f"{text!r} is already in line {line_of[text]}"
                raise DataFileError(path, number, why, "keep each wording once")
            line_of[text] = number
        yield Paraphrased(texts)


def _form(line: bytes, path: Path | str, number: int) -> _Form:
    try:
        return _Form.model_validate(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise DataFileError(path, number, f"not UTF-8 text ({error.reason})", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataFileError(path, number, f"not JSON: {error}", FORM) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise DataFileError(path, number, f"`{where}`: {first['msg']}", FORM) from error


N_POSITIONS = 12
"""Prompt positions looked at, from the prompt's end."""


def read_states(
    local: LocalModel,
    paraphrased: Sequence[Paraphrased],
    *,
    n_positions: int = N_POSITIONS,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> States:
    """Return the states entering every block at the last positions of each text's prompt.

    Args:
        local: the model; its lock is held for one batch at a time.
        paraphrased: questions with their paraphrases.
        n_positions: positions from the prompt's end; fewer when a prompt is shorter.
        batch_size: texts read together.
        advance: told how many more texts were read.

    Raises:
        NonFiniteScoreError: a state holds NaN or infinity.
    """
    texts = [text for group in paraphrased for text in group.texts]
    prompts = [local.encode_prompt(question_prompt(text, chat=local.is_chat)) for text in texts]
    n_last = min(n_positions, *map(len, prompts))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths share a batch: little padding
    read = dict[int, "NDArray[np.float32]"]()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        read |= zip(numbers, _read(local, [prompts[i] for i in numbers], n_last), strict=True)
        advance(len(numbers))
    hidden = np.stack([read[i] for i in range(len(prompts))], axis=1)
    if not np.isfinite(hidden).all():
        raise NonFiniteScoreError("a hidden state")
    return States(
        hidden=hidden,
        tokens=np.array([ids[-n_last:] for ids in prompts], dtype=np.int64),
        questions=np.repeat(np.arange(len(paraphrased)), [len(group.texts) for group in paraphrased]),
        last_words=[last_word(text) for text in texts],
        tie=max(TIE, torch.finfo(local.model.dtype).eps ** 2),  # a cosine moves by the square of a state's rounding
    )


def _read(local: LocalModel, prompts: Sequence[tuple[int, ...]], n_last: int) -> list[NDArray[np.float32]]:
    """Return ``(layer, position, hidden)`` of each prompt; padding stands behind it, where no causal model looks."""
    longest = max(map(len, prompts))
    ids = [list(ids) + [local.pad_id] * (longest - len(ids)) for ids in prompts]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts]
    model: Any = local.model
    with local.lock, evaluating(local.model), plain_tensors():
        output = model(
            input_ids=torch.tensor(ids, device=local.device),
            attention_mask=torch.tensor(mask, device=local.device),
            output_hidden_states=True,
            use_cache=False,
        )
        entering = output.hidden_states[:-1]  # the last one leaves the last block
        return [
            np.stack([state[row, len(p) - n_last : len(p)].float().cpu().numpy() for state in entering])
            for row, p in enumerate(prompts)
        ]


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
    """Return the token at each position, control characters made visible."""
    return tuple(
        repr(local.tokenizer.decode([int(token)]))[1:-1] if fixed else "(question)"
        for token, fixed in zip(states.tokens[0], is_template, strict=True)
    )
