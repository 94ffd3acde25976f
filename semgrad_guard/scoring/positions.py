"""Where t* is for the templates that the method's authors studied.

t* is a prompt token whose hidden state carries the meaning of the input. For any other template it has to be found
from paraphrases (`semgrad-guard profile`); until then the last prompt token is used, because its state predicts the
answer's first token and so has read the whole input in every causal model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAST_TOKEN = -1


@dataclass(frozen=True, slots=True)
class KnownPosition:
    """t* of a family of templates."""

    family: str
    markers: tuple[str, ...]
    """Texts that all stand in the family's chat template."""
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
"""Families by what their templates hold; the first that fits counts."""


def known_position(tokenizer: PreTrainedTokenizerBase) -> KnownPosition | None:
    """Return the family that a tokenizer's chat template belongs to, `None` when it is none of the known ones."""
    template = str(tokenizer.chat_template or "")
    return next((known for known in KNOWN_POSITIONS if all(marker in template for marker in known.markers)), None)


def default_position(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return t* for a tokenizer's template: the known one, or the last prompt token."""
    known = known_position(tokenizer)
    return known.position if known else LAST_TOKEN
