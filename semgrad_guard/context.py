"""Finds the question and the passages of an answer in its prompt, where nobody stated them.

Prompts are read by their form alone, so that one exchange means the same wherever it was found:

* *The question* is the text behind the last label such as `Question:`, else the last line if it ends with a question
  mark, else such a first line, else the last user message as a whole.
* *Passages* are the texts beside it, one for each block: blocks end at blank lines, lines of dashes, tags such as
  `<context>`, headings such as `Answer from this context:` and numbers such as `[2]`. Headings, labels and numbers are
  no part of a passage; nothing else in it is changed.
* *Instructions* before and after the passages are left out where they can be recognised: English sentences that begin
  like orders (`Answer in`, `You are`, `If you don't know`). Other instructions count as passages.
* *Turns* of the conversation are no passages: what the assistant said, earlier questions, solved examples.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from semgrad_guard.flow import Passage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from semgrad_guard.flow import Exchange, Message, PassagesFrom, Prompt

MAX_QUESTION_WORDS = 40
"""The most words of a block that counts as the question because it is the last one after a heading."""
_MAX_HEADING_WORDS = 40

_COLON = r"\**[ \t]*[:：]\**"
_START = r"^[ \t>*#]*"
_ASKING = r"(?i:(?:[\w'-]+[ ]){0,2}(?:question|query)|follow[ -]up input|input|human|user|frage|pregunta|domanda)|Q"
_ANSWERING = r"(?i:(?:[\w'-]+[ ]){0,2}(?:answer|response)|ai|assistant|antwort|respuesta|risposta|réponse)|A"
_SOURCE = (
    r"contexts?|passages?|documents?|docs?|sources?|texts?|excerpts?|snippets?|evidence|facts?|background|articles?|"
    r"information|knowledge|references?|results?|chunks?|materials?|kontext|contexto|contexte|contesto"
)
_PLAIN_SOURCE = r"contexts?|passages?|documents?|docs?|texts?|excerpts?|snippets?|evidence|facts?|background|articles?"

_QUESTION_LINE = re.compile(rf"{_START}(?P<label>{_ASKING}){_COLON}[ \t]*(?P<rest>.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(rf"{_START}(?:{_ANSWERING}){_COLON}[ \t]*(?P<rest>.*)$")
_LAST_ANSWER_LABEL = re.compile(rf"(?:^|\n)[ \t>*#]*(?:{_ANSWERING}){_COLON}\s*$")
_OWN_LINE = re.compile(r"(?<=\S)[ \t]+(?=(?:Question|Query|Answer)[ \t]*:)")
_NUMBERED = re.compile(rf"{_START}(?:\[\d+\]|(?i:{_SOURCE})[ ]?[\[(#]?\d+[\])]?{_COLON})[ \t]*")
_LABEL = re.compile(rf"{_START}(?i:(?:retrieved |relevant |given )?(?:{_PLAIN_SOURCE}|kontext)){_COLON}[ \t]*")
_NAMES_SOURCE = re.compile(rf"\b(?:{_SOURCE})\b", re.IGNORECASE)
_RULE = re.compile(r"[ \t]*[-=_*#~`]{3,}[ \t]*")
_TAG = re.compile(rf"</?(?i:{_SOURCE}|documents?_content)(?:\s[^<>\n]*)?/?>")
_QUESTION_MARKS = ("?", "？", "؟", "\u037e", "՞", "፧", "⁇", "︖")

_INSTRUCTION = re.compile(
    r"""[\s>*#-]*(?:\d+[.)]\s*)?(?:(?:please|always|never|only|also|then|but|and)[ ,]+)*(?:
      you(?:'re|r)?\b | act\sas | be\b | keep\b | do\snot | don't | cite\b | quote\b | say\b | think\b | explain\b
    | answer\s(?:the|this|these|my|all|any|each|every|in|within|without|only|from|by|based|briefly|shortly|concisely)\b
    | answer\s(?:truthfully|honestly|as|to|questions?|using|strictly|solely|and)\b
    | answer\swith\s(?:a|an|one|two|at|only|the|yes|just|your|no)\b
    | (?:reply|respond)\b | us(?:e|ing)\b | given\s(?:the|this|these|only)\b | based\s(?:on|only|solely)\b
    | if\s(?:you|the\s(?:answer|context|passages?|documents?|question|information)|it\b|there|none|unsure|not)
    | when\s(?:you|the\sanswer|answering) | write\b | provide\b | return\b | output\b | read\b | consider\b
    | give\s(?:a|an|the|your|only|short|brief|me)\b | the\sfollowing\b | (?:below|here)\s(?:is|are)\b | let's\b
    | context\sinformation\sis\sbelow | make\ssure | limit\b | refer\b | assume\b | ensure\b | treat\b | follow\b
    | search\sagain | question:?\s*$ )""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def with_context(exchange: Exchange) -> Exchange:
    """Return an exchange with the question and passages that its prompt shows, where it names none itself.

    Passages that it names are kept, each once. With `passages_from="stated"` and no passages there are none.
    """
    question = exchange.question or question_asked(exchange.prompt)
    passages, found = each_once(exchange.passages), exchange.passages_from
    if exchange.passages:
        found = found or "stated"
    elif found is None:
        passages, found = _passages_beside(exchange.prompt, question)
    if (question, passages, found) == (exchange.question, exchange.passages, exchange.passages_from):
        return exchange
    return replace(exchange, question=question, passages=passages, passages_from=found)


def question_asked(prompt: Prompt, known: Iterable[str | None] = ()) -> str | None:
    """Return the question that a prompt puts to the model; `None` for an empty prompt.

    The user's own words count where the prompt repeats them. A question that the chain reworded counts where the prompt
    holds that one instead: it is what the model answered.

    Args:
        prompt: what the model read.
        known: what the question may be, the likeliest first, such as inputs of the chain and queries to its retriever.
            A text that is the whole prompt is no better known than the prompt.
    """
    asked = _asked(prompt)
    candidates = [text.strip() for text in known if text and text.strip()]
    inside = [text for text in candidates if _place(text, asked) is not None]
    parts = [text for text in inside if text.split() != asked.split()]
    cut = _cut(asked)
    if parts:
        question = _cut(parts[0]).question
    elif inside or cut.label or not candidates:
        question = cut.question
    else:
        question = _cut(candidates[0]).question
    return question or None


def each_once(passages: Iterable[Passage]) -> tuple[Passage, ...]:
    """Return passages in order, each text once; empty ones are left out."""
    by_text: dict[str, Passage] = {}
    for passage in passages:
        by_text.setdefault(" ".join(passage.text.split()), passage)
    return tuple(passage for text, passage in by_text.items() if text)


def blocks_of(text: str) -> list[str]:
    """Return the blocks of a text that count as passages, in order."""
    return _blocks(text, "")


# --- the question -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text cut into its question and the rest."""

    question: str
    rest: str = ""
    label: str = ""
    """The word before the question, in lower case."""


def _asked(prompt: Prompt) -> str:
    """Return the text that holds the question: a plain prompt, or all that the user said last."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(m.content for m in prompt[_turn_start(prompt) :] if m.role == "user")


def _turn_start(messages: Sequence[Message]) -> int:
    """Return where the last turn begins: behind what the assistant said before the user's last message."""
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    return max((i + 1 for i, m in enumerate(messages[: last_user + 1]) if m.role == "assistant"), default=0)


def _cut(text: str) -> _Cut:
    plain = _plain(text)
    return _labelled(plain) or _marked(plain) or _after_heading(plain) or _Cut(plain.strip())


def _plain(text: str) -> str:
    """Return a text with each label at the start of a line, and none for the answer at its end."""
    return _LAST_ANSWER_LABEL.sub("", _OWN_LINE.sub("\n", text))


def _labelled(text: str) -> _Cut | None:
    """Return the question behind the last label."""
    for found in reversed(list(_QUESTION_LINE.finditer(text))):
        start = end = found.start("rest")
        lines = text[start:].splitlines(keepends=True)
        taken: list[str] = []
        for line in lines:
            if taken and _ends_question(line):
                break
            end += len(line)
            taken += [line.strip()] if line.strip() else []
        if taken:
            rest = f"{text[: found.start()]}\n\n{text[end:]}"
            return _Cut("\n".join(taken), rest, found["label"].casefold())
    return None


def _ends_question(line: str) -> bool:
    return not line.strip() or any(p.match(line) for p in (_ANSWER_LINE, _NUMBERED, _LABEL, _RULE, _TAG))


def _marked(text: str) -> _Cut | None:
    """Return the last line, or else the first, where it ends with a question mark and is not the whole text."""
    lines = text.strip().splitlines()
    if len(lines) > 1:
        for line, rest in ((lines[-1], lines[:-1]), (lines[0], lines[1:])):
            if line.rstrip().endswith(_QUESTION_MARKS) and not _LABEL.match(line) and not _NUMBERED.match(line):
                return _Cut(line.strip(), "\n".join(rest))
    return None


def _after_heading(text: str) -> _Cut | None:
    """Return the last block of a text that says where its passages begin."""
    before, _, last = text.strip().rpartition("\n\n")
    is_short = "\n" not in last and len(last.split()) <= MAX_QUESTION_WORDS
    shows_passages = any(_is_heading(line) or _LABEL.match(line) for line in before.splitlines())
    begins_passage = any(pattern.match(last) for pattern in (_LABEL, _NUMBERED))
    return _Cut(last.strip(), before) if is_short and shows_passages and not begins_passage else None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a text holds a question."""

    text: str
    start: int
    end: int

    @property
    def line_before(self) -> str:
        return self.text[self.text.rfind("\n", 0, self.start) + 1 : self.start]

    @property
    def line_after(self) -> str:
        return self.text[self.end :].partition("\n")[0]


_MOST_PLACES = 1000
"""How many places of a question are looked at; no prompt repeats it so often."""


def _place(question: str, text: str) -> _Place | None:
    """Return where a text holds a question that stands by itself: behind a label, else on its own line, else last."""
    places = [found for found in _places(question, text) if _stands_alone(question, found)]
    lines = [found for found in places if not found.line_before.strip()]
    labelled = [found for found in places if _QUESTION_LINE.fullmatch(found.line_before)]
    return next(reversed(labelled or lines or places), None)


def _places(question: str, text: str) -> Iterator[_Place]:
    """Yield where a text holds a question as whole words, whatever white space is between them.

    A regular expression of the question's words would take time that grows with the product of both lengths.
    """
    wanted, plain = " ".join(question.split()), " ".join(text.split())
    at = plain.find(wanted) if wanted else -1
    if at < 0:
        return
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    begins = [0, *accumulate(len(word) + 1 for word in plain.split(" "))]

    def original(offset: int) -> int:
        word = bisect_right(begins, offset) - 1
        return starts[word] + offset - begins[word]

    for _ in range(_MOST_PLACES):
        found = _Place(text, original(at), original(at + len(wanted) - 1) + 1)
        is_whole = not (_is_word(text[found.start - 1 : found.start]) or _is_word(text[found.end : found.end + 1]))
        if is_whole:
            yield found
        at = plain.find(wanted, at + (len(wanted) if is_whole else 1))
        if at < 0:
            return


def _is_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _stands_alone(question: str, found: _Place) -> bool:
    before = found.text[max(0, found.start - 80) : found.start].rstrip(" \t")
    by_itself = not before or before.endswith(("\n", "\r", *".!?:：;>\"'`([{|,-"))
    return by_itself or question.rstrip().endswith(_QUESTION_MARKS)


# --- the passages -----------------------------------------------------------------------------------------------------


def _passages_beside(prompt: Prompt, question: str | None) -> tuple[tuple[Passage, ...], PassagesFrom | None]:
    asked = _beside(_asked(prompt), question or "")
    if isinstance(prompt, str):
        prompted, tools = asked, list[str]()
    else:
        prompted, tools = _beside_turn(prompt, asked), _from_tools(prompt)
    texts = dict.fromkeys([*prompted, *tools])
    found: PassagesFrom = "prompt" if prompted else "tool"
    return tuple(map(Passage, texts)), found if texts else None


def _beside_turn(messages: Sequence[Message], asked: list[str]) -> list[str]:
    """Return the blocks of all messages but those of assistant and tools, with those of the last turn in its place."""
    start = _turn_start(messages)
    before = [block for message in messages[:start] for block in _of_earlier(message)]
    others = [m for m in messages[start:] if m.role not in {"user", "assistant", "tool"}]
    return [*before, *(block for message in others for block in blocks_of(message.content)), *asked]


def _of_earlier(message: Message) -> list[str]:
    """Return the blocks of a message before the last turn; of the user's, what stands beside a question."""
    if message.role in {"assistant", "tool"}:
        return []
    if message.role != "user":
        return blocks_of(message.content)
    cut = _cut(message.content)
    return [] if cut.label else blocks_of(cut.rest)  # a label marks a solved example


def _from_tools(messages: Sequence[Message]) -> list[str]:
    """Return what tools gave in the last turn, or before it where they gave nothing since."""
    start = _turn_start(messages)
    texts = [m.content for m in messages[start:] if m.role == "tool"] or [
        m.content for m in messages if m.role == "tool"
    ]
    return [block for text in texts for block in blocks_of(text)]


def _beside(text: str, question: str) -> list[str]:
    """Return the blocks of a text beside its question."""
    plain = _plain(text)
    found = _place(question, plain)
    if found is None:
        cut = _cut(text)
        return _blocks(cut.rest, cut.label)
    before, after, line = plain[: found.start], plain[found.end :], found.line_before
    labelled = _QUESTION_LINE.fullmatch(line)
    if labelled is None and (line.strip() or found.line_after.strip()):
        return _blocks(before + after, "")  # the question is part of a sentence
    label = labelled["label"].casefold() if labelled else ""
    return _blocks(f"{before[: len(before) - len(line)]}\n\n{after}", label)


@dataclass(slots=True)
class _Block:
    lines: list[str]
    is_shown: bool
    """Whether a heading or label before it says that passages follow."""

    @property
    def text(self) -> str:
        """The block without its label or number."""
        text = "\n".join(self.lines)
        found = _NUMBERED.match(text) or _LABEL.match(text)
        return (text[found.end() :] if found else text).strip()


def _blocks(text: str, label: str) -> list[str]:
    """Return the blocks of a text, without instructions around them and turns that are written like the question.

    Args:
        text: a prompt without its question.
        label: the word that stands before the question, in lower case.
    """
    blocks = _without_turns(_split(text), label)
    start, end = 0, len(blocks)
    while start < end and not blocks[start].is_shown and _is_instruction(blocks[start].text):
        start += 1
    while start < end and not _is_marked(blocks[end - 1].lines[0]) and _is_instruction(blocks[end - 1].text):
        end -= 1
    return [block.text for block in blocks[start:end] if block.text]


def _split(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    is_open = is_shown = False
    for line in _TAG.sub("\ncontext:\n", text).splitlines():
        if _is_heading(line):
            is_open, is_shown = False, True
        elif not line.strip() or _RULE.fullmatch(line):
            is_open = False
        elif is_open and not _begins_block(line, blocks[-1]):
            blocks[-1].lines.append(line)
        else:
            is_shown = is_shown or _is_marked(line)
            blocks.append(_Block([line], is_shown))
            is_open = True
    return blocks


def _is_heading(line: str) -> bool:
    """Tell whether a line announces passages: it ends with a colon, and names them or gives an order."""
    plain = line.strip().strip("*#").strip()
    if not plain.endswith((":", "：")) or len(plain.split()) > _MAX_HEADING_WORDS:
        return False
    return bool(_NAMES_SOURCE.search(plain) or _INSTRUCTION.match(plain))


def _is_marked(line: str) -> bool:
    return bool(_NUMBERED.match(line) or _LABEL.match(line))


def _begins_block(line: str, current: _Block) -> bool:
    """Tell whether a line begins a new block although no blank line is before it."""
    if not current.is_shown:
        return _is_marked(line)
    return bool(_NUMBERED.match(line) and _NUMBERED.match(current.lines[0]))


def _without_turns(blocks: Sequence[_Block], label: str) -> list[_Block]:
    kept: list[_Block] = []
    was_turn = False
    for block in blocks:
        is_question = bool(label) and any(
            found is not None and found["label"].casefold() == label for found in map(_QUESTION_LINE.match, block.lines)
        )
        is_turn = is_question or (was_turn and _ANSWER_LINE.match(block.lines[0]) is not None)
        kept += [] if is_turn else [block]
        was_turn = is_question
    return kept


def _is_instruction(text: str) -> bool:
    return all(_INSTRUCTION.match(sentence) for sentence in _SENTENCE_END.split(text.strip()))
