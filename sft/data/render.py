"""Messages -> text, and where in that text the model speaks.

For the assistant's message k, the template itself says what the model would sample:

    prompt = render(messages[:k], add_generation_prompt=True)      what the model is given
    text   = render(messages[:k + 1])                              prompt + reply + "<|im_end|>\\n"

The reply starts where the prompt ends, and ends with the stop token. What a template writes around every reply
(`TurnShape`) is learned once, by rendering a probe, so that a row's own words can never be taken for markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sft.data.messages import REASONING_KEYS, clean_messages, clean_tools
from sft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLY, THOUGHT = "¤reply¤", "¤thought¤"
"""Contents of the probe: words which no template writes by itself."""


@dataclass(frozen=True)
class Conversation:
    """The chat of one row. `where` ("train.jsonl:12") names it in messages."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "conversation"


@dataclass(frozen=True)
class Span:
    """What the model samples as messages[turn]: the characters [start, end) of a text, the stop token included."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Rendering:
    """The text of one sample, and the spans trained in it, in order. `where` names its row."""

    text: str
    spans: list[Span]
    where: str


@dataclass(frozen=True)
class TurnShape:
    """What a template writes around every reply.

    retractions: how many last characters of the generation prompt a reply may take back, ascending, 0 first.
        A prompt that ends with an empty think block loses its end when the reply thinks.
    before_stop, stop, after_stop: all that follows the content of a reply, such as "", "<|im_end|>", "\\n".
        The model samples it up to the stop token and with it; what comes after is the template's.
    """

    retractions: tuple[int, ...]
    before_stop: str
    stop: str
    after_stop: str
    stop_token_id: int


class MaskError(InputError):
    """What is to be trained cannot be proven equal to what the model would sample."""

    def __init__(self, where: str, turn: int, problem: str, *, expected: str, found: str, way_out: str):
        # What both share would fill the 80 characters shown, and hide the difference.
        same = max(0, _shared(expected, found) - 20)
        super().__init__(
            f"{where}: messages[{turn}] (assistant): {problem}: "
            f"expected {_short(expected[same:])}, found {_short(found[same:])}. {way_out}"
        )


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[Rendering]:
    """The texts in which every assistant turn stands exactly once, as it would be sampled.

    One text, if the template leaves earlier turns as they were; a template that rewrites them (Qwen3 drops the
    reasoning of earlier turns) gives one text for each state of the history. Messages after the last assistant
    turn are cut. Raises InputError for a row that the template cannot render, MaskError for a turn that does not
    follow its prompt.
    """
    where, options = conversation.where, conversation.template_options
    messages = clean_messages(conversation.messages, where)
    tools = clean_tools(conversation.tools, where)
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"{where}: no assistant message, so nothing to train (roles: {roles or 'none'}).")
    if turns[0] == 0:
        raise InputError(f"{where}: the assistant speaks first, to no prompt; start with a system or user message.")

    template = chat_template(tokenizer, tools)
    shape = turn_shape(tokenizer, template, json.dumps(options, sort_keys=True))
    as_sampled: list[tuple[str, Span]] = []
    for k in turns:
        prompt = _apply(tokenizer, template, messages[:k], tools, options, where, add_generation_prompt=True)
        text = _apply(tokenizer, template, messages[: k + 1], tools, options, where)
        span = _span(prompt, text, shape, k, where)
        _check_reply_is_whole(messages[k], text[span.start : span.end], shape, k, where)
        as_sampled.append((text, span))
    _check_prompt_is_whole(messages[: turns[-1]], *as_sampled[-1], where)
    return [Rendering(text, spans, where) for text, spans in _fewest_texts(as_sampled)]


def chat_template(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None = None) -> str:
    """The tokenizer's template for conversations with or without tools. Raises InputError if it has none."""
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template; set data.chat_template (jinja text, file or name), "
            "or set model.partial_pretrain to an Instruct model."
        )
    return tokenizer.get_chat_template(tools=tools)


@lru_cache(maxsize=64)
def turn_shape(tokenizer: PreTrainedTokenizerBase, template: str, options_json: str) -> TurnShape:
    """Learns what the template writes around a reply from a probe: one question, one marked reply.

    Raises InputError for templates that cannot tell where the model speaks: no content, no generation prompt,
    no stop token.
    """
    options = json.loads(options_json)
    question, reply = {"role": "user", "content": "question"}, {"role": "assistant", "content": REPLY}

    def probe(*messages: dict[str, str], add_generation_prompt: bool = False) -> str:
        where = "probe of the chat template"
        return _apply(tokenizer, template, list(messages), None, options, where, add_generation_prompt)

    history, prompt = probe(question), probe(question, add_generation_prompt=True)
    text, thinking_text = probe(question, reply), probe(question, reply | {REASONING_KEYS[0]: THOUGHT})
    if REPLY not in text:
        raise InputError("the chat template does not render the assistant's content; set data.chat_template.")
    header = text[len(prompt) : text.index(REPLY)].strip()
    if prompt == history and header:
        raise InputError(
            f"the chat template ignores add_generation_prompt, so its header {_short(header)} would be trained as "
            "if the model wrote it; set data.chat_template to one that renders the header when it is asked to."
        )
    markup_start = _shared(history, prompt)
    kept = [_shared(prompt, replied) for replied in (prompt, text, thinking_text)]
    if any(shared <= markup_start for shared in kept if shared < len(prompt)):
        raise InputError(
            f"the chat template's generation prompt {_short(prompt[markup_start:])} is not what stands before a reply, "
            f"{_short(text[markup_start:])}; set data.chat_template."
        )
    ending = text[text.rindex(REPLY) + len(REPLY) :]
    stop_token_id, stop = _stop_token(tokenizer, ending)
    before_stop, _, after_stop = ending.partition(stop)
    retractions = tuple(sorted({len(prompt) - shared for shared in kept}))
    return TurnShape(retractions, before_stop, stop, after_stop, stop_token_id)


def _stop_token(tokenizer: Any, ending: str) -> tuple[int, str]:
    added = tokenizer.added_tokens_decoder
    ids = tokenizer.backend_tokenizer.encode(ending, add_special_tokens=False).ids
    candidates = [token_id for token_id in ids if token_id in added]
    # Markup such as </answer> is added too, but not special, and may stand before the token that stops.
    special = [token_id for token_id in candidates if added[token_id].special]
    for token_id in special + candidates:
        return token_id, added[token_id].content
    raise InputError(
        f"the chat template ends an assistant turn with {_short(ending)}, which holds no special token: the model "
        f"would never learn to stop. Set data.chat_template to one that ends the turn ({tokenizer.eos_token!r}, say)."
    )


def _apply(
    tokenizer: Any,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: Mapping[str, Any],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **options,
        )
        text.encode()  # a lone surrogate would fail later, among the texts of other rows
    except Exception as error:  # a template is a program of its own: whatever it raises is about this row
        raise InputError(f"{where}: the chat template cannot render this conversation: {error}") from error
    return text


def _span(prompt: str, text: str, shape: TurnShape, turn: int, where: str) -> Span:
    starts = (len(prompt) - retraction for retraction in shape.retractions)
    start = next((start for start in starts if text.startswith(prompt[:start])), None)
    if start is None:
        raise MaskError(
            where,
            turn,
            "the chat template changes the prompt once the reply is there",
            expected=prompt,
            found=text,
            way_out="Set data.chat_template to one whose generation prompt is what stands before the reply.",
        )
    ending = shape.stop + shape.after_stop
    if not text[start:].endswith(ending):
        raise MaskError(
            where,
            turn,
            "the chat template does not end this turn with its stop token",
            expected=ending,
            found=text[start:][-len(ending) :],
            way_out="Set data.chat_template to one that ends every assistant turn with the same token.",
        )
    return Span(turn, start, len(text) - len(shape.after_stop))


def _fewest_texts(waiting: list[tuple[str, Span]]) -> list[tuple[str, list[Span]]]:
    """The last turn's text trains all turns it leaves as they were sampled; so on with the turns still waiting."""
    texts = []
    while waiting:
        text, _ = waiting[-1]
        unchanged = [text.startswith(as_sampled[: span.end]) for as_sampled, span in waiting]
        texts.append((text, [span for (_, span), same in zip(waiting, unchanged, strict=True) if same]))
        waiting = [turn for turn, same in zip(waiting, unchanged, strict=True) if not same]
    return texts[::-1]


def _check_reply_is_whole(message: dict[str, Any], spoken: str, shape: TurnShape, turn: int, where: str) -> None:
    # Templates ignore keys that they do not know. Without this check a plain ChatML template would train
    # "call the tool" as silence, and a thinking row without its thoughts.
    calls = message.get("tool_calls") or []
    thoughts = [message[key] for key in REASONING_KEYS if key in message][:1]
    # Every template leaves this much of the content: thinking ones cut it at </think>, many strip it.
    said = message.get("content", "").rpartition("</think>")[2].strip()
    parts = [said, *map(str.strip, thoughts), *(call.get("function", call)["name"] for call in calls)]
    missing = [part for part in parts if part not in spoken]
    if not calls and not spoken.removesuffix(shape.before_stop + shape.stop).rstrip().endswith(said):
        missing.append(said)
    if missing:
        raise MaskError(
            where,
            turn,
            "the chat template drops or rewrites part of the message",
            expected=missing[0],
            found=spoken,
            way_out="Set data.chat_template to one that renders this part, or take the part out of the rows.",
        )


def _check_prompt_is_whole(messages: list[dict[str, Any]], text: str, span: Span, where: str) -> None:
    prompt = text[: span.start]
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            continue  # thinking templates shorten earlier turns; each is checked where it is trained
        said = message["content"].strip()
        as_json = json.dumps(said, ensure_ascii=False)[1:-1]  # Llama 3 prints tool results as JSON strings
        if said not in prompt and as_json not in prompt:
            raise InputError(
                f"{where}: the chat template drops or rewrites messages[{k}] ({message['role']}): {_short(said)} is "
                "not in the prompt. Set data.chat_template to one that knows the role, or change the rows."
            )


def _short(text: str) -> str:
    """The first 80 characters, quoted."""
    return repr(text) if len(text) <= 80 else repr(text[:80]) + "…"


def _shared(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
