"""What a chat template writes around the words of the model, learned from the template itself.

A probe is rendered once: one question, one marked reply. What stands around the mark (`TurnShape`) stands around
every reply, so that a row's own words can never be taken for markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sft.data.chat.apply import EndlessTemplateError, apply
from sft.data.chat.messages import REASONING_KEYS
from sft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAGS_ALONE = re.compile(r"\s*(<[^<>]*>\s*)*")
THINKING_TAG = re.compile(r"<[^<>]*(think|thought|reason|channel)[^<>]*>", re.IGNORECASE)
THINKING_ALONE = re.compile(rf"\s*(({THINKING_TAG.pattern})\s*(think|thought|thinking)?\s*)*", re.IGNORECASE)
"""Markup around nothing; the tag of a thought; and such tags alone, the channel's name between them (Gemma 4)."""

REPLY, THOUGHT, CALL = "¤reply¤", "¤thought¤", "¤call¤"
"""Contents of the probe: words which no template writes by itself."""


@dataclass(frozen=True)
class TurnShape:
    """What a template writes around every reply.

    lead: what the model samples before the content of a reply without reasoning, such as "" or "<think>\\n\\n</think>".
    thought: what it samples before its reasoning, and between reasoning and content; None: no reasoning is rendered.
        The first is "" where the prompt opens the thought.
    retractions: how many last characters of the generation prompt a reply may take back, ascending, 0 first.
        A prompt that ends with an empty think block loses its end when the reply thinks.
    only_served: what the end of the prompt says and no rendered reply does, such as the empty thought of Gemma 4, or
        DeepSeek's opened one. lead_rendered: what the text has before the content in the place of both.
    before_stop, stop, after_stop: all that follows the content of a reply, such as "", "<|im_end|>", "\\n".
        The model samples it up to the stop token and with it; what comes after is the template's.
    is_next_tag: the template ends a reply with nothing, and the stop is the tag of the role that speaks next (GLM).
    """

    lead: str
    thought: tuple[str, str] | None
    retractions: tuple[int, ...]
    before_stop: str
    stop: str
    after_stop: str
    stop_token_id: int
    is_next_tag: bool
    only_served: str = ""
    lead_rendered: str = ""

    @property
    def closes_thought(self) -> bool:
        """Return True if the prompt opens a thought that the template renders in no reply, so that we close it."""
        return self.thought is not None and self.lead == self.thought[1] != self.lead_rendered


@dataclass(frozen=True)
class TurnShapes:
    """The shape of a reply of words, and of one that calls tools: some templates end these with another token.

    control_tokens: special tokens that no reply says by itself: those of the template's markup, bos, eos and pad.
    """

    words: TurnShape
    calls: TurnShape
    control_tokens: frozenset[str]

    @property
    def stop_token_ids(self) -> list[int]:
        """Return the ids of all tokens that end a turn, each once."""
        return list(dict.fromkeys([self.words.stop_token_id, self.calls.stop_token_id]))


@lru_cache(maxsize=64)
def reasoning_key(template: str) -> str:
    """Return the name under which the template looks for a message's reasoning."""
    named = (key for key in REASONING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template))
    return next(named, REASONING_KEYS[0])


def turn_shapes(tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any]) -> TurnShapes:
    """Return what the template writes around replies, rendered with these options.

    Raises InputError for templates that cannot tell where the model speaks: no content, no generation prompt,
    no stop token.
    """
    eos_token = tokenizer.eos_token
    return _learn(tokenizer, template, json.dumps(options, sort_keys=True), str(eos_token) if eos_token else None)


@lru_cache(maxsize=64)
def _learn(tokenizer: PreTrainedTokenizerBase, template: str, options_json: str, eos_token: str | None) -> TurnShapes:
    options = json.loads(options_json)
    question = {"role": "user", "content": "question"}
    reply = {"role": "assistant", "content": REPLY}

    def probe(*messages: dict[str, Any], add_generation_prompt: bool = False) -> str:
        where = "probe of the chat template"
        return apply(tokenizer, template, list(messages), tools, options, where, add_generation_prompt)

    tools = _no_tools(tokenizer, template, question, options)
    history, prompt = probe(question), probe(question, add_generation_prompt=True)
    text = probe(question, reply)
    thinking_text = probe(question, reply | {reasoning_key(template): THOUGHT})
    if REPLY not in text:
        raise InputError("the chat template does not render the assistant's content; set data.chat_template.")
    header = text[len(prompt) : text.index(REPLY)].strip()
    if prompt == history and header:
        raise InputError(
            f"the chat template ignores add_generation_prompt, so its header {short(header)} would be trained as "
            "if the model wrote it; set data.chat_template to one that renders the header when it is asked to."
        )
    markup_start = shared(history, prompt)
    opening = _Opening.find(prompt, text, markup_start)
    kept = _kept(prompt, thinking_text) if THOUGHT in thinking_text else len(prompt)
    # A reply that thinks may take back all of a prompt that says "think not", but no header and no history.
    taken_back = prompt[kept:]
    if opening is None or (taken_back and kept <= markup_start - ("think>" in taken_back)):
        raise InputError(
            f"the chat template's generation prompt {short(prompt[markup_start:])} is not what stands before a reply, "
            f"{short(text[markup_start:])}; set data.chat_template."
        )
    thought = None
    if THOUGHT in thinking_text and thinking_text.index(THOUGHT) < thinking_text.rindex(REPLY):
        before, _, rest = thinking_text[kept:].partition(THOUGHT)
        thought = before, rest.rpartition(REPLY)[0]
    elif opening.thought is not None:
        thought = opening.thought
    ending, middle = text.rpartition(REPLY)[2], _try(probe, question, reply, question).rpartition(REPLY)[2]
    stop = _Stop.find(tokenizer, ending, middle, prompt[markup_start:], eos_token)
    if stop is None:
        raise InputError(
            f"the chat template ends an assistant turn with {short(ending)}, which holds no special token: the model "
            f"would never learn to stop. Set data.chat_template to one that ends the turn ({eos_token!r}, say)."
        )
    words = TurnShape(
        lead=opening.lead,
        thought=thought,
        retractions=tuple(sorted({0, len(prompt) - kept})),
        before_stop=stop.before,
        stop=stop.token,
        after_stop=stop.after,
        stop_token_id=stop.token_id,
        is_next_tag=stop.is_next_tag,
        only_served=opening.only_served,
        lead_rendered=opening.lead_rendered,
    )
    system = {"role": "system", "content": "system"}
    markup = prompt + text + _try(probe, question, reply, question) + _try(probe, system, question)
    control_tokens = _control_tokens(tokenizer, markup, words)
    stop = _stop_of_calls(tokenizer, probe, question, prompt[markup_start:], eos_token)
    if stop is None:
        return TurnShapes(words, words, control_tokens)  # a row that calls tools will say what the template makes of it
    calls = replace(
        words, stop=stop.token, after_stop=stop.after, stop_token_id=stop.token_id, is_next_tag=stop.is_next_tag
    )
    return TurnShapes(words, calls, control_tokens)


def _no_tools(tokenizer: Any, template: str, question: dict[str, Any], options: dict[str, Any]) -> list[Any] | None:
    """Return what stands for no tools: None, or an empty list where a template for tools cannot do without (Hermes)."""

    def renders(tools: list[Any] | None) -> bool:
        try:
            return bool(apply(tokenizer, template, [question], tools, options, "probe of the chat template"))
        except EndlessTemplateError:
            raise
        except InputError:
            return False

    return [] if not renders(None) and renders([]) else None


def _control_tokens(tokenizer: Any, markup: str, words: TurnShape) -> frozenset[str]:
    always = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    sampled = "".join([words.lead, *(words.thought or ())])  # rows may hold raw thoughts, with their tags
    special = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(token for token in special if token in always or (token in markup and token not in sampled))


def shows_tools(tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any]) -> bool:
    """Return True if the template shows the model its tools: whether a tool's name stands in a rendered prompt."""
    return _learn_tools(tokenizer, template, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=64)
def _learn_tools(tokenizer: PreTrainedTokenizerBase, template: str, options_json: str) -> bool:
    schema = {"name": CALL, "description": "", "parameters": {"type": "object", "properties": {}}}
    tools, question = [{"type": "function", "function": schema}], [{"role": "user", "content": "question"}]
    try:
        return CALL in apply(tokenizer, template, question, tools, json.loads(options_json), "probe", True)
    except InputError:
        return False


def _stop_of_calls(
    tokenizer: Any, probe: Any, question: dict[str, Any], prompt_markup: str, eos_token: str | None
) -> _Stop | None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": {"word": CALL}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "look_up", "content": "result", "tool_call_id": "abcdefghi"}
    text = _try(probe, question, called)
    if CALL not in text:
        return None
    ending_start = text.rindex(CALL) + len(CALL)
    middle = _try(probe, question, called, result)[ending_start:]
    return _Stop.find(tokenizer, text[ending_start:], middle, prompt_markup, eos_token)


@dataclass(frozen=True)
class _Opening:
    """How the end of the prompt and the beginning of a reply without reasoning fit; the fields are those of TurnShape.

    thought: where the prompt opens a thought that the template never closes
    """

    lead: str
    only_served: str = ""
    lead_rendered: str = ""
    thought: tuple[str, str] | None = None

    @classmethod
    def find(cls, prompt: str, text: str, markup_start: int) -> _Opening | None:
        """Return how prompt and reply fit; None if they differ by more than a thought, such as another header."""
        if text.startswith(prompt):
            lead = text[len(prompt) : text.index(REPLY)]
            return cls(lead, lead_rendered=lead)
        kept = _kept(prompt, text)
        only_served, rendered = prompt[kept:], text[kept : text.index(REPLY)]
        if kept < markup_start or not THINKING_TAG.search(prompt, markup_start):
            return None
        if not THINKING_ALONE.fullmatch(only_served) or not TAGS_ALONE.fullmatch(rendered):
            return None
        name = re.search(r"<(\w+)>\s*$", prompt)
        if name is None or f"</{name[1]}>" in rendered:
            return cls(rendered, only_served, rendered)
        closing = f"\n</{name[1]}>\n\n"
        return cls(closing, only_served, rendered, thought=("", closing))


@dataclass(frozen=True)
class _Stop:
    token_id: int
    token: str
    before: str
    after: str
    is_next_tag: bool = False

    @classmethod
    def find(cls, tokenizer: Any, ending: str, middle: str, prompt_markup: str, eos_token: str | None) -> _Stop | None:
        """Return the token that ends a turn.

        ending, middle: what follows the reply where it is the last message, and where another role speaks after it
        ("" if the template does not say). What only the end of a conversation has (Phi-3's eos) ends no turn.
        """
        added = tokenizer.added_tokens_decoder
        last = tokenizer.backend_tokenizer.encode(ending, add_special_tokens=False)
        between = tokenizer.backend_tokenizer.encode(middle, add_special_tokens=False)
        in_both = range(shared(last.ids, between.ids))

        def at(n: int) -> _Stop:
            token = added[last.ids[n]].content
            start = ending.index(token, last.offsets[n][0])
            end = start + len(token)  # Phi-3's <|end|> takes the newline behind it into its offsets
            return cls(last.ids[n], token, ending[:start], ending[end:])

        special = [n for n, token_id in enumerate(last.ids) if token_id in added and added[token_id].special]
        kept = [n for n in special if n in in_both]
        everywhere = kept or special
        for n in everywhere:
            if added[last.ids[n]].content == eos_token:
                return at(n)
        if kept:  # the last: Cohere ends a turn with two, and Gemma 4 a call with its own quotes and brackets before it
            return at(kept[-1])
        if everywhere:
            first = everywhere[0]
            return at(max(n for n in everywhere if all(m in everywhere for m in range(first, n + 1))))
        if middle.startswith(ending) and len(in_both) < len(between.ids):
            tag = added.get(between.ids[len(in_both)])
            if tag is not None and tag.special and tag.content not in prompt_markup:
                return cls(between.ids[len(in_both)], tag.content, ending, "", is_next_tag=True)
        # Markup such as </answer> is added too, but not special, and may stand before the token that stops.
        return next((at(n) for n, token_id in enumerate(last.ids) if token_id in added), None)


def _kept(prompt: str, text: str) -> int:
    """Return how many characters of the generation prompt stand before a reply, never half of a <tag>."""
    kept = shared(prompt, text)
    opened = prompt.rfind("<", 0, kept)
    return opened if kept < len(prompt) and opened > prompt.rfind(">", 0, kept) else kept


def _try(probe: Any, *messages: dict[str, Any]) -> str:
    """Return the probe's text; "" where the template refuses such a conversation."""
    try:
        return probe(*messages)
    except InputError:
        return ""


def short(text: str) -> str:
    """Return the first 80 characters, quoted."""
    return repr(text) if len(text) <= 80 else repr(text[:80]) + "…"


def shared(a: Any, b: Any) -> int:
    """Return how many items at the beginning of both are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
