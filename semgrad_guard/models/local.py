"""A causal language model in this process, with everything that scoring and generating need."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from semgrad_guard.errors import ModelSettingError
from semgrad_guard.flow import Message
from semgrad_guard.models import tokens
from semgrad_guard.models.device import input_device, lock_of, weights_digest
from semgrad_guard.models.generate import Generated, GenerationSettings, Keep, Row, ending, generate, generate_batches
from semgrad_guard.models.tokens import has_template, template_digest

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.flow import Prompt
    from semgrad_guard.models.cache import KeptCache

_LIMIT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(eq=False)
class LocalModel:
    """A live model and its tokenizer. Make one with `load_model`.

    Hold `lock` while running the model; all `LocalModel` objects of one live model share it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Readable name."""
    lock: threading.RLock = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Get the model's lock; of a model that `torch.compile` has wrapped, take the model inside.

        Scoring looks at single blocks, which a compiled model does not show; who calls it keeps the compiled one.
        """
        self.model = getattr(self.model, "_orig_mod", self.model)
        self.lock = lock_of(self.model)

    @property
    def dtype(self) -> str:
        """Number format of the weights, for example `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Device that the model expects token ids on."""
        return input_device(self.model)

    @property
    def is_chat(self) -> bool:
        """True if the model has a chat template."""
        return has_template(self.tokenizer)

    @property
    def context_limit(self) -> int | None:
        """Maximum number of tokens of prompt and answer; `None` if there is no limit."""
        config = self.model.config.get_text_config(decoder=True)
        limits = (getattr(config, key, None) for key in _LIMIT_KEYS)
        return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)

    @cached_property
    def weights_digest(self) -> str:
        """Digest of architecture and weights, the same in every process."""
        return weights_digest(self.model)

    @cached_property
    def template_digest(self) -> str:
        """Digest of the chat template; of the empty text for a base model."""
        return template_digest(self.tokenizer)

    @cached_property
    def _end_tokens(self) -> tuple[int, ...]:
        return tokens.end_token_ids(self.model, self.tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return frozenset(self._end_tokens)

    @property
    def pad_id(self) -> int:
        """Token id that pads shorter rows of a batch; it is masked, so any id would do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else next(iter(self._end_tokens), 0)

    def encode_prompt(self, prompt: Prompt, *, as_chat: bool = False) -> tuple[int, ...]:
        """Return the exact ids of a prompt.

        Messages are rendered by the model's chat template, up to where the answer begins; a base model reads their
        contents joined by blank lines. Plain text is read unchanged, after the tokenizer's usual leading tokens, as in
        a `PromptTemplate | HuggingFacePipeline` chain; text that a template has already rendered (it begins with a
        special token) gets no leading tokens.

        Args:
            prompt: text or chat messages.
            as_chat: read plain text that no template has rendered as one user message, if this model has a chat
                template; for text that was the prompt of another model.
        """
        return tokens.encode_prompt(self.tokenizer, self._as_chat(prompt) if as_chat else prompt)

    def encode_answer(self, prompt_ids: Sequence[int], prompt: Prompt, answer: str, *, ended: bool) -> tuple[int, ...]:
        """Return the ids of an answer as they follow a prompt.

        Args:
            prompt_ids: the result of `encode_prompt` for the prompt, or the ids that the model actually read.
            prompt: the same prompt; empty if only its ids are known.
            answer: the answer's text.
            ended: whether the model ended its turn there and was not cut off; if so, the end-of-turn token follows.
        """
        ids = tokens.encode_answer(self.tokenizer, prompt_ids, (prompt, self._as_chat(prompt)), answer)
        return ids + self._end_tokens[:1] if ended else ids

    def prompt_offsets(self, prompt_ids: Sequence[int], prompt: Prompt) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a prompt's ids, and the first character and the end of each token in it.

        Args:
            prompt_ids: the ids that the model read.
            prompt: the same prompt as text or messages; empty if only its ids are known.
        """
        return tokens.prompt_offsets(self.tokenizer, prompt_ids, (prompt, self._as_chat(prompt)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return tokens.decode(self.tokenizer, [token for token in ids if token not in self.end_ids])

    def generate(  # noqa: PLR0913 - each is a choice of the caller with a usual value
        self,
        prompt: Prompt | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        keep: bool = True,
        states_of: Sequence[nn.Module] = (),
        max_time_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Generated:
        """Return the model's answer to a prompt.

        Args:
            prompt: text or messages; read by the rules of `encode_prompt`.
            prompt_ids: the prompt's token ids, instead of `prompt`.
            max_new_tokens: maximum number of tokens to generate; fewer if the context window ends before.
            temperature: 0 always takes the likeliest token; higher values sample.
            top_p: sample from the smallest set of tokens whose probabilities reach this sum.
            stop: texts that end the answer and are not part of it.
            seed: makes sampling repeatable; without it torch's global random state is used.
            on_text: gets the answer piece by piece while it is generated.
            keep: keep the KV cache for scoring.
            states_of: decoder blocks whose input states are kept with the cache, for the last `N_PROMPT_STATES` tokens
                of the prompt and for the answer, together with the output head's outputs for the answer. Scoring then
                need not run the layers below these blocks again, nor the head.
            max_time_s: end the answer after this many seconds, as if cancelled.
            cancel: end the answer when this event is set; the text so far is returned.

        Raises:
            EmptyPromptError: the prompt has no tokens.
            ContextTooLongError: the prompt leaves no room for an answer.
            ModelSettingError: a setting is out of range.
        """
        settings = GenerationSettings(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=tuple(stop), seed=seed
        )
        ids = tuple(prompt_ids) if prompt_ids is not None else self.encode_prompt(prompt or "")
        should_end = ending(cancel, max_time_s)
        kept = Keep(tuple(states_of)) if keep else None
        return generate(self, [Row(0, ids)], settings, on_text=on_text, should_end=should_end, memory=kept)[0]

    def generate_batch(  # noqa: PLR0913 - as `generate`
        self,
        prompts: Sequence[Prompt] = (),
        *,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        max_time_s: float | None = None,
        cancel: threading.Event | None = None,
        batch_size: int = 16,
        kept: KeptCache | None = None,
    ) -> list[Generated]:
        """Return the answers to several prompts, in order; no KV cache is kept.

        Equal prompts of a batch are read once, so `generate_batch([prompt] * 5, temperature=1.0)` is a cheap way to
        sample several answers to one prompt.

        Args:
            prompts: texts or messages.
            prompt_ids: their token ids, instead of `prompts`.
            max_new_tokens: as for `generate`; the longest prompt of a batch limits it to what fits the context window.
            temperature: as for `generate`.
            top_p: as for `generate`.
            stop: as for `generate`.
            seed: as for `generate`; equal prompts still get different answers, by their position in `prompts`.
            max_time_s: limit for all answers together.
            cancel: ends all answers.
            batch_size: how many answers are generated together.
            kept: `Generated.kept` of an earlier answer; if all prompts are equal to its prompt, this is not read again.

        Raises:
            EmptyPromptError: a prompt has no tokens.
            ContextTooLongError: a prompt leaves no room for an answer.
            ModelSettingError: a setting is out of range.
        """
        settings = GenerationSettings(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=tuple(stop), seed=seed
        )
        if batch_size < 1:
            raise ModelSettingError("batch_size", batch_size, "1 or more")
        ids = prompt_ids if prompt_ids is not None else [self.encode_prompt(prompt) for prompt in prompts]
        should_end = ending(cancel, max_time_s)
        rows = [tuple(row) for row in ids]
        return generate_batches(self, rows, settings, batch_size=batch_size, should_end=should_end, kept=kept)

    def _as_chat(self, prompt: Prompt) -> Prompt:
        """Return plain text as one user message, if the model has a template and the text is not rendered yet."""
        if not isinstance(prompt, str) or not tokens.can_wrap(self.tokenizer, prompt):
            return prompt
        return (Message("user", prompt),)


class LocalTextModel:
    """A `TextModel` that answers prompts greedily with a local model."""

    def __init__(self, local: LocalModel, *, max_new_tokens: int = 256, stop: Sequence[str] = ()) -> None:
        """Take the model and what limits its answers.

        Args:
            local: the model.
            max_new_tokens: maximum number of tokens of one answer.
            stop: texts that end an answer, for base models that would otherwise continue.
        """
        self._local, self._max_new_tokens, self._stop = local, max_new_tokens, tuple(stop)

    def complete(self, prompt: Prompt) -> str:
        """Return the model's answer to a prompt, without surrounding whitespace."""
        answer = self._local.generate(prompt, max_new_tokens=self._max_new_tokens, stop=self._stop, keep=False)
        return answer.text.strip()
