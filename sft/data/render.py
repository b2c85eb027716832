"""Messages -> text, and where in that text the model speaks.

For the assistant's message k, the template itself says what the model would sample:

    prompt = render(messages[:k], add_generation_prompt=True)      what the model is given
    text   = render(messages[:k + 1])                              prompt + reply + "<|im_end|>\\n"

The reply starts where the prompt ends, and ends with the stop token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sft.data.messages import REASONING_KEYS, clean_messages, clean_tools
from sft.data.plain import around_questions, first_reply, is_plain, places_of_replies
from sft.data.proof import (
    MaskError,
    check_content_is_kept,
    check_prompt_is_whole,
    check_reply_is_speech,
    check_reply_is_whole,
    check_tools_are_shown,
    thoughts_left_out,
)
from sft.data.template import TurnShape, TurnShapes, apply, chat_template, reasoning_key, shows_tools, turn_shapes
from sft.data.weights import Supervision, message_weights
from sft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEEPS_REASONING = {"preserve_thinking": True, "clear_thinking": False}
"""Switches with which templates (Qwen, GLM) are asked to leave the reasoning of earlier turns where it was."""

MERGE = "Merge the messages that the assistant says in a row into one (its content, and its tool_calls)."


@dataclass(frozen=True)
class Conversation:
    """The chat of one row. `where` ("train.jsonl:12") names it in messages."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "conversation"


@dataclass(frozen=True)
class Span:
    """What stands for messages[turn]: the characters [start, end) of a text, and their weight in the loss.

    is_sampled: the assistant's, so all that the model samples, stop token included; else the content of a message.
    """

    turn: int
    start: int
    end: int
    weight: float
    is_sampled: bool


@dataclass(frozen=True)
class Rendering:
    """The text of one sample, and its spans in order. `where` names its row.

    background: weight of everything that is in no span
    """

    text: str
    spans: list[Span]
    where: str
    background: float = 0.0


def render(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    supervision: Supervision | None = None,
    counts: Counter[str] | None = None,
) -> list[Rendering]:
    """The texts in which every trained turn stands exactly once, as it would be sampled.

    One text, if the template leaves earlier turns as they were; a template that rewrites them (Qwen3 drops the
    reasoning of earlier turns) gives one text for each state of the history. No text, if nothing is trained.
    Messages after the last trained turn are cut. Raises InputError for a row that the template cannot render,
    MaskError for a turn that does not follow its prompt. counts: where turns and thoughts that are left out are added.
    """
    supervision = supervision or Supervision()
    counts = Counter() if counts is None else counts
    where = conversation.where
    tools = clean_tools(conversation.tools, where)
    template = chat_template(tokenizer, tools)
    messages = clean_messages(conversation.messages, where)
    _name_reasoning(messages, reasoning_key(template), where)
    options = template_options(template, conversation.template_options, supervision)
    row = _Row(messages, tools, template, options, where, tokenizer, turn_shapes(tokenizer, template, options))
    weights = message_weights(conversation.messages, supervision.train_on, where)
    for k, message in enumerate(messages):
        if message["role"] == "assistant" and weights[k] > 0:
            check_reply_is_speech(message, row.shapes, k, where)
    if supervision.train_on == "all":
        return _whole_text(row, weights, counts)
    _check_somebody_answers(messages, weights, where, supervision.train_on)

    trained = [k for k, weight in enumerate(weights) if weight > 0]
    as_sampled = row.plain_turns(trained, weights) or [row.turn(k, weights[k]) for k in trained]
    if not as_sampled:
        return []
    text, last = as_sampled[-1]
    check_prompt_is_whole(messages[: last.turn], text[: last.start], where)
    row.check_tools(last.turn + 1, text[: last.start])
    texts = _fewest_texts(as_sampled)
    if len(texts) > 1 and supervision.thinking_history == "preserved":
        _refuse_rewriting(texts, where)
    if supervision.thinking_history == "last":
        texts = texts[-1:]
        counts["turns left out"] += len(as_sampled) - len(texts[0][1])
    return [Rendering(text, spans, where) for text, spans in texts]


def template_options(template: str, given: Mapping[str, Any], supervision: Supervision) -> dict[str, Any]:
    """The template's variables: those given, and with thinking_history=preserved its own switch for that."""
    wanted = KEEPS_REASONING if supervision.thinking_history == "preserved" else {}
    return {name: value for name, value in wanted.items() if name in template} | dict(given)


@dataclass(frozen=True)
class _Row:
    """A conversation on its way through one template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    template: str
    options: dict[str, Any]
    where: str
    tokenizer: Any
    shapes: TurnShapes

    def text(self, end: int, *, prompt: bool = False) -> str:
        """The rendering of messages[:end]."""
        messages = self.messages[:end]
        return apply(self.tokenizer, self.template, messages, self.tools, self.options, self.where, prompt)

    def check_tools(self, end: int, prompt: str) -> None:
        """Raises InputError if the prompt, of which messages[:end] is made, hides a tool."""
        if not self.tools:
            return
        is_shown = shows_tools(self.tokenizer, self.template, self.options)
        if not is_shown:  # or this template shows them only in some conversations
            bare = replace(self, tools=None)
            is_shown = prompt != bare.text(end)[: len(prompt)]
        check_tools_are_shown(self.tools, prompt, is_shown, self.where)

    def turn(self, k: int, weight: float) -> tuple[str, Span]:
        """The text that ends with messages[k], and where in it this message stands."""
        if self.messages[k]["role"] != "assistant":
            return self._given(k, weight)
        shape = self.shapes.calls if self.messages[k].get("tool_calls") else self.shapes.words
        prompt, text = self.text(k, prompt=True), self.text(k + 1)
        follows_itself = k > 0 and self.messages[k - 1]["role"] == "assistant"
        if follows_itself and prompt.endswith(shape.stop + shape.after_stop):
            raise InputError(
                f"{self.where}: messages[{k}] follows another message of the assistant's, where the chat template "
                f"opens no new turn: it would be sampled behind {shape.stop!r}, beyond which no model speaks. {MERGE}"
            )
        if shape.is_next_tag:
            text += shape.stop
        start = _start(prompt, text, shape, k, self.where, follows_itself)
        span = Span(k, start, len(text) - len(shape.after_stop), weight, is_sampled=True)
        check_reply_is_whole(self.messages[k], text[start : span.end], shape, self.shapes, k, self.where)
        return text, span

    def plain_turns(self, trained: list[int], weights: list[float]) -> list[tuple[str, Span]] | None:
        """As `turn` for all that are trained, in the whole text; None where only the long way can tell."""
        if len(trained) < 2 or not is_plain(messages := self.messages[: trained[-1] + 1]):
            return None
        shape = self.shapes.words
        around = around_questions(self.tokenizer, self.template, self.options, shape)
        if around is None:
            return None
        try:
            text, last = self.turn(trained[-1], weights[trained[-1]])
            first_prompt = self.text(first_reply(messages), prompt=True)
        except InputError:
            return None  # the long way names the first turn that is wrong
        places = places_of_replies(messages, text, first_prompt, shape, around)
        if places is None or places[last.turn] != (last.start, last.end):
            return None
        return [(text, Span(k, *places[k], weights[k], is_sampled=True)) for k in trained]

    def _given(self, k: int, weight: float) -> tuple[str, Span]:
        """A message of another role: its content alone, where the template shows which part of the text that is."""
        before, text, content = self.text(k) if k else "", self.text(k + 1), self.messages[k]["content"]
        check_content_is_kept(content, before, text, k, self.where)
        start = text.index(content, len(before))
        return text, Span(k, start, start + len(content), weight, is_sampled=False)


def _whole_text(row: _Row, weights: list[float], counts: Counter[str]) -> list[Rendering]:
    """All of the conversation with weight 1, but for turns that state another weight."""
    messages, where = row.messages, row.where
    if not messages:
        raise InputError(f"{where}: no messages, so nothing to train.")
    end = len(messages) - 1
    answered = messages[end]["role"] == "assistant" and end > 0
    text, _ = row.turn(end, weights[end]) if answered else (row.text(end + 1), None)
    check_prompt_is_whole(messages, text, where)
    row.check_tools(end + 1, text)
    counts["thoughts left out"] += thoughts_left_out(messages, text)
    spans = []
    for k, weight in enumerate(weights):
        if weight != 1:
            as_sampled, span = row.turn(k, weight)
            if not text.startswith(as_sampled[: span.end]):
                raise MaskError(
                    where,
                    k,
                    "the chat template rewrites this turn later, so its own weight has no place in the whole text",
                    expected=as_sampled[: span.end],
                    found=text,
                    way_out="Take the weight out, or set data.train_on=assistant.",
                )
            spans.append(span)
    return [Rendering(text, spans, where, background=1.0)]


def _name_reasoning(messages: list[dict[str, Any]], key: str, where: str) -> None:
    """Put the reasoning of every turn where the template looks for it: the one that is stated, or not blank."""
    for k, message in enumerate(messages):
        stated = {
            name: message.pop(name) for name in REASONING_KEYS if name in message and message["role"] == "assistant"
        }
        filled = [name for name in stated if stated[name].strip()]
        if len({stated[name].strip() for name in filled}) > 1:
            raise InputError(
                f"{where}: messages[{k}] states its reasoning more than once, and differently: {' and '.join(filled)}; "
                "keep one."
            )
        if stated:
            message[key] = stated[(filled or list(stated))[0]]


def _check_somebody_answers(messages: list[dict[str, Any]], weights: list[float], where: str, train_on: str) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles and train_on != "custom":
        told = ", ".join(roles) or "none"
        raise InputError(f"{where}: no assistant message, so nothing to train (roles: {told}).")
    if roles[:1] == ["assistant"] and weights[0] > 0:
        raise InputError(
            f"{where}: the assistant speaks first, to no prompt, so messages[0] cannot be trained. Give it `train`: "
            "false, set data.train_on=last_assistant, or leave such rows out by data.bad_rows=drop."
        )


def _start(prompt: str, text: str, shape: TurnShape, turn: int, where: str, follows_itself: bool) -> int:
    """Where in `text` the model begins to speak."""
    starts = (len(prompt) - retraction for retraction in shape.retractions)
    start = next((start for start in starts if text.startswith(prompt[:start])), None)
    if start is None:
        raise MaskError(
            where,
            turn,
            "the chat template changes the prompt once the reply is there",
            expected=prompt,
            found=text,
            way_out=MERGE
            if follows_itself
            else "Set data.chat_template to one whose generation prompt is what stands before the reply.",
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
    return start


def _fewest_texts(waiting: list[tuple[str, Span]]) -> list[tuple[str, list[Span]]]:
    """The last turn's text trains all turns it leaves as they were sampled; so on with the turns still waiting."""
    texts = []
    while waiting:
        text, _ = waiting[-1]
        unchanged = [text.startswith(as_sampled[: span.end]) for as_sampled, span in waiting]
        texts.append((text, [span for (_, span), same in zip(waiting, unchanged, strict=True) if same]))
        waiting = [turn for turn, same in zip(waiting, unchanged, strict=True) if not same]
    return texts[::-1]


def _refuse_rewriting(texts: list[tuple[str, list[Span]]], where: str) -> None:
    (early, spans), (late, _) = texts[-2:]
    raise MaskError(
        where,
        spans[-1].turn,
        "data.thinking_history=preserved, but the chat template rewrites this turn once others follow",
        expected=early[: spans[-1].end],
        found=late,
        way_out="Set data.thinking_history=auto (one sample per turn), data.chat_template to one that keeps earlier "
        "turns, or the template's switch for it in data.apply_chat_template_kwargs.",
    )
