"""The places of prompt, answer and position t* in the tokens of an exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semgrad_guard.errors import EmptyAnswerError, EmptyPromptError
from semgrad_guard.scoring.prompt_parts import FIRST_TOKEN, IN_PROMPT, OWN, REST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from semgrad_guard.scoring.prompt_parts import PromptParts

LAST_TOKEN = -1


@dataclass(frozen=True, slots=True)
class KnownPosition:
    """The position t* of a family of chat templates."""

    family: str
    markers: tuple[str, ...]
    """Texts that the family's chat template contains."""
    position: int
    source: str


PAPER = "SemGrad (arXiv 2605.04638), the positions of its authors' code"

KNOWN_POSITIONS = (
    KnownPosition("Llama 3", ("<|start_header_id|>", "<|eot_id|>"), -4, PAPER),
    KnownPosition(
        "ChatML (Qwen, SmolLM2)", ("<|im_start|>", "<|im_end|>"), -3, f"{PAPER}, for Qwen; SmolLM2 shares the template"
    ),
    KnownPosition("Mistral", ("[INST]", "[/INST]"), -2, PAPER),
)
"""Families of templates; the first whose markers are all in the template is used."""


def known_position(tokenizer: PreTrainedTokenizerBase) -> KnownPosition | None:
    """Return the family of a tokenizer's chat template; `None` for an unknown template."""
    template = str(tokenizer.chat_template or "")
    return next((known for known in KNOWN_POSITIONS if all(marker in template for marker in known.markers)), None)


def default_position(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return t* for a tokenizer's template: the known one, or the last prompt token."""
    known = known_position(tokenizer)
    return known.position if known else LAST_TOKEN


SHORTEST_SHARED = 16
"""Fewer common tokens are not worth a separate pass."""
SHARED_SLACK = 64
"""Most prefix tokens after the common ones; they are recorded with the rest so that the common ones are run once."""
PAD = 0
"""Id of padding; it is masked, so any id will do."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One exchange as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    parts: PromptParts | None = None
    """What the prompt's tokens belong to, where that was asked for."""

    def __post_init__(self) -> None:
        """Refuse an empty answer or prompt."""
        if not self.answer:
            raise EmptyAnswerError
        if not self.prompt:
            raise EmptyPromptError

    def __len__(self) -> int:
        """Return the number of tokens that the model must read, which excludes the answer's last token."""
        return len(self.prompt) + len(self.answer) - 1

    @property
    def read(self) -> tuple[int, ...]:
        """The ids that the model must read."""
        return self.prompt + self.answer[:-1]


def columns_of(tokens: Tokens, first: int, n: int) -> NDArray[np.int64]:
    """Return the column of each of some tokens of an exchange; of padding any, because nothing attends to it.

    Args:
        tokens: the exchange.
        first: position of the first of them; below 0 where padding comes first.
        n: how many there are.
    """
    roles = tokens.parts.roles if tokens.parts else (REST,) * len(tokens.prompt)
    columns = np.full(max(n, len(tokens) - first), OWN)
    columns[-first : len(roles) - first] = IN_PROMPT + np.array(roles)
    columns[-first] = FIRST_TOKEN
    return columns[:n]


@dataclass(frozen=True, slots=True)
class Segment:
    """The input of one forward pass: equally long, padded pieces of several exchanges."""

    ids: Tensor
    """``(exchange, token)``"""
    positions: Tensor
    """Position of each token in its exchange, ``(exchange, token)``."""
    mask: Tensor | None
    """1 for every token up to and including this piece, 0 for padding, ``(exchange, earlier and present token)``.

    `None` where there is no padding.
    """


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The answers' tokens of a batch, one after the other, and where each is predicted; each is ``(token,)``."""

    ids: Tensor
    exchanges: Tensor
    """Numbers of their exchanges."""
    places: Tensor
    """Places in the rest of the tokens that predict them."""
    lengths: tuple[int, ...]
    """How many tokens each exchange's answer has."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch as tensors: prefixes are padded on the left and rests on the right, so all rests begin together."""

    prefix: Segment | None
    """Tokens before the earliest recorded position; `None` if there are none; a single row if all rows are equal."""
    rest: Segment
    starts: tuple[int, ...]
    """Length of each exchange's prefix, which is the position of the first token of its rest."""
    recorded: Tensor
    """Places in the rest of the last prompt tokens, ``(exchange, n)``: the last column is the last prompt token.

    Where the prompt is shorter than `n`, the leading columns repeat its first token.
    """
    answers: AnswerTokens
    columns: Tensor | None = None
    """What each token of prefix and rest belongs to, ``(exchange, token)``: see `columns_of`."""


def lay_out(
    batch: Sequence[Tokens],
    n_recorded: int,
    device: torch.device,
    *,
    split: bool = True,
    with_columns: bool = False,
) -> Layout:
    """Return the tensors for some exchanges; they go to the device in one transfer.

    Args:
        batch: the exchanges.
        n_recorded: how many of the last prompt tokens belong to the differentiated rest.
        device: device of the model's input ids.
        split: False puts everything in the rest, for models without a KV cache.
        with_columns: whether to tell what each token belongs to.
    """
    starts = _starts(batch, n_recorded) if split else (0,) * len(batch)
    n_prefix, n_rest = max(starts), max(len(t) - s for t, s in zip(batch, starts, strict=True))
    begin = np.array(starts)[:, None]
    end = np.array([len(tokens) for tokens in batch])[:, None]
    places = np.arange(-n_prefix, n_rest)[None, :] + begin
    mask = (places >= 0) & (places < end)
    ids = np.full(places.shape, PAD)
    ids[mask] = [token for tokens in batch for token in tokens.read]
    # padded places keep counting, but never from outside what learned positions cover
    positions = np.minimum(np.maximum(places, 0), end - 1)
    first = np.array([len(t.prompt) - s for t, s in zip(batch, starts, strict=True)])
    recorded = np.maximum(first[:, None] + np.arange(-n_recorded, 0), 0)
    lengths = tuple(len(tokens.answer) for tokens in batch)
    exchanges = np.repeat(np.arange(len(batch)), lengths)
    predicting = np.concatenate([start - 1 + np.arange(n) for start, n in zip(first, lengths, strict=True)])
    answers = np.array([token for tokens in batch for token in tokens.answer])
    arrays = [ids, positions, mask, recorded, answers, exchanges, predicting]
    if with_columns:
        arrays.append(
            np.stack([columns_of(t, s - n_prefix, n_prefix + n_rest) for t, s in zip(batch, starts, strict=True)])
        )
    numbers = _transferred(arrays, device)
    columns = numbers[7] if with_columns else None
    whole = Segment(numbers[0], numbers[1], None if mask.all() else numbers[2])
    answer_tokens = AnswerTokens(numbers[4], numbers[5], numbers[6], lengths)
    rest = Segment(whole.ids[:, n_prefix:], whole.positions[:, n_prefix:], whole.mask)
    if not n_prefix:
        return Layout(None, rest, starts, numbers[3], answer_tokens, columns)
    n_rows = 1 if shared_start(batch, n_recorded) else len(batch)
    padded = whole.mask is not None and n_rows > 1 and not mask[:, :n_prefix].all()
    prefix = Segment(
        whole.ids[:n_rows, :n_prefix],
        whole.positions[:n_rows, :n_prefix],
        numbers[2][:, :n_prefix] if padded else None,
    )
    return Layout(prefix, rest, starts, numbers[3], answer_tokens, columns)


def _transferred(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return arrays of whole numbers as tensors on a device; one transfer is one wait."""
    whole = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64)).to(device)
    pieces = torch.split(whole, [array.size for array in arrays])
    return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


def shared_start(batch: Sequence[Tokens], n_recorded: int) -> int:
    """Return the number of leading tokens common to all exchanges if running them once saves time, else 0.

    It saves time when few tokens before the recorded positions differ. These are recorded with the rest, because
    padding between them and the common part would shift sliding windows.
    """
    ends = [len(tokens.prompt) - n_recorded for tokens in batch]
    columns = zip(*(tokens.prompt[: max(0, min(ends))] for tokens in batch), strict=True)
    common = next((n for n, column in enumerate(columns) if len(set(column)) > 1), max(0, min(ends)))
    pays = common >= SHORTEST_SHARED and max(ends) - common <= min(SHARED_SLACK, common // 4)
    return common if pays else 0


def _starts(batch: Sequence[Tokens], n_recorded: int) -> tuple[int, ...]:
    """Return where each exchange's rest begins."""
    shared = shared_start(batch, n_recorded)
    return tuple(shared or max(0, len(tokens.prompt) - n_recorded) for tokens in batch)
