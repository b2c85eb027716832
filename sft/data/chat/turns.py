"""A conversation in its chat template, and where in the text the model speaks.

For the assistant's message k, the template itself says what the model would sample:

    prompt = render(messages[:k], add_generation_prompt=True)      what the model is given
    text   = render(messages[:k + 1])                              prompt + reply + "<|im_end|>\\n"

The reply starts where the prompt ends, and ends with the stop token. Some templates render the history in another way
once the reply is there: the system message leaves the last question (Mistral), or an opened or empty thought leaves the
end of the prompt (DeepSeek-R1, Gemma 4). Then the sample is what was served: the prompt, and behind it the reply out of
the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sft.data.chat.apply import apply
from sft.data.chat.messages import REASONING_KEYS
from sft.data.chat.plain import around_questions, first_reply, is_plain, places_of_replies
from sft.data.chat.proof import (
    MaskError,
    check_content_is_kept,
    check_reply_is_whole,
    check_stop,
    check_tools_are_shown,
)
from sft.data.chat.spelling import last_place
from sft.data.chat.template import TurnShape, TurnShapes, shows_tools
from sft.errors import InputError

LONGEST_MARKUP = 200
"""Characters that a template writes, at most, between a message without words and the reply to it."""

MERGE = "Merge the messages that the assistant says in a row into one (its content, and its tool_calls)."


@dataclass(frozen=True)
class Span:
    """What stands for messages[turn]: the characters [start, end) of a text, and their weight in the loss.

    is_sampled: the assistant's, so all that the model samples, stop token included; else the content of a message.
    characters: by what the weight is multiplied in each of them, float32 [end - start]; None: by 1
    """

    turn: int
    start: int
    end: int
    weight: float
    is_sampled: bool
    characters: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ChatInTemplate:
    """A conversation on its way through one template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    template: str
    options: dict[str, Any]
    where: str
    tokenizer: Any
    shapes: TurnShapes

    def text(self, end: int, *, prompt: bool = False) -> str:
        """Return the rendering of messages[:end]."""
        messages = self.messages[:end]
        return apply(self.tokenizer, self.template, messages, self.tools, self.options, self.where, prompt)

    def check_tools(self, end: int, prompt: str) -> None:
        """Raise InputError if the prompt, of which messages[:end] is made, hides a tool."""
        if not self.tools:
            return
        is_shown = shows_tools(self.tokenizer, self.template, self.options)
        if not is_shown:  # or this template shows them only in some conversations
            bare = replace(self, tools=None)
            is_shown = prompt != bare.text(end)[: len(prompt)]
        check_tools_are_shown(self.tools, prompt, is_shown, self.where)

    def turn(self, k: int, weight: float) -> tuple[str, Span]:
        """Return the text that ends with messages[k], and where in it this message stands."""
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
        start = _start(prompt, text, shape)
        if start is None:
            text, start = self._served(k, prompt, text, shape, follows_itself)
        check_stop(text[start:], shape, k, self.where)
        span = Span(k, start, len(text) - len(shape.after_stop), weight, is_sampled=True)
        check_reply_is_whole(self.messages[k], text[start : span.end], shape, self.shapes, k, self.where)
        return text, span

    def _served(self, k: int, prompt: str, text: str, shape: TurnShape, follows_itself: bool) -> tuple[str, int]:
        """Return the prompt that a server sends and the reply behind it, and where the reply starts.

        The reply begins in `text` where the end of the prompt stands, from the words of its last message on, or else
        where what the prompt adds to the history stands (Hermes writes a newline more behind a result that is
        answered). Raises MaskError where neither stands there, or where what follows is not the reply.
        """
        failure = MaskError(
            self.where,
            k,
            "the chat template changes the prompt once the reply is there",
            expected=prompt,
            found=text,
            way_out=MERGE
            if follows_itself
            else "Set data.chat_template to one whose generation prompt is what stands before the reply.",
        )
        for start, is_likely in () if follows_itself else self._starts(k, prompt, text, shape):
            reply = text[start:]
            if shape.closes_thought:
                reply = _with_thought(self.messages[k], reply.removeprefix(shape.lead_rendered), shape)
            try:
                body = reply.removesuffix(shape.after_stop)
                check_reply_is_whole(self.messages[k], body, shape, self.shapes, k, self.where)
            except MaskError as error:
                failure = error if is_likely else failure  # or the same question stands in the history, too
            else:
                return prompt + reply, len(prompt)
        raise failure

    def _starts(self, k: int, prompt: str, text: str, shape: TurnShape) -> Iterator[tuple[int, bool]]:
        """Yield where in `text` the reply may begin, and whether the words of the last message stand before it."""
        for start in _ends_of_question(self.messages[k - 1], prompt, text, shape):
            yield start, True
        if k and last_place(self.messages[k - 1].get("content", ""), prompt) is not None:
            for start in _ends_of(prompt.removesuffix(shape.only_served).removeprefix(self.text(k)), text):
                yield start, False

    def plain_turns(self, trained: list[int], weights: list[float]) -> list[tuple[str, Span]] | None:
        """As `turn` for all that are trained, in the whole text; None where only the long way can tell."""
        if len(trained) < 2 or any(self.messages[k]["role"] != "assistant" for k in trained):
            return None
        if not is_plain(messages := self.messages[: trained[-1] + 1]):
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
        """Return a message of another role: its content alone, where the template shows which part that is."""
        before, text, content = self.text(k) if k else "", self.text(k + 1), self.messages[k]["content"]
        check_content_is_kept(content, before, text, k, self.where)
        start = text.index(content, len(before))
        return text, Span(k, start, start + len(content), weight, is_sampled=False)


def behind_prefill(turn: tuple[str, Span], k: int, prefill: str, where: str) -> tuple[str, Span]:
    """Return the turn (text, span); for messages[k], the span begins only after `prefill`, which the prompt gave."""
    text, span = turn
    if span.turn != k:
        return turn
    begin = text.find(prefill, span.start, span.end)
    if begin < 0:
        raise InputError(
            f"{where}: the chat template does not show the beginning of the reply that the prompt gives ({prefill!r}) "
            "as it is; take blanks off its ends, or set data.chat_template."
        )
    given = begin + len(prefill) - span.start
    characters = None if span.characters is None else span.characters[given:]
    return text, replace(span, start=span.start + given, characters=characters)


def _start(prompt: str, text: str, shape: TurnShape) -> int | None:
    """Return where in `text` the model begins to speak; None where `text` does not begin with the prompt."""
    starts = (len(prompt) - retraction for retraction in shape.retractions)
    return next((start for start in starts if text.startswith(prompt[:start])), None)


def _ends_of_question(question: Mapping[str, Any], prompt: str, text: str, shape: TurnShape) -> Iterator[int]:
    """Yield where in `text` the end of the prompt ends: the words of the last message, and all markup behind them.

    Of a message without words it is as much of that markup as the text has.
    """
    asked, said = prompt.removesuffix(shape.only_served), question.get("content", "")
    tails = range(max(0, len(asked) - LONGEST_MARKUP), len(asked))
    at = last_place(said, asked) if said.strip() else next((n for n in tails if asked[n:] in text), None)
    if at is None:
        return
    ending, found = asked[at:], text.find(asked[at:])
    while found >= 0:
        yield found + len(ending)
        found = text.find(ending, found + 1)


def _ends_of(markup: str, text: str) -> Iterator[int]:
    """Yield where the markup ends in `text`, the last place first."""
    at = text.rfind(markup) if markup.strip() else -1
    while at >= 0:
        yield at + len(markup)
        at = text.rfind(markup, 0, at)


def _with_thought(message: Mapping[str, Any], reply: str, shape: TurnShape) -> str:
    """Return the reply behind the message's thought, or none, and the tag that closes it; for shape.closes_thought."""
    stated = next((message[key] for key in REASONING_KEYS if key in message), "")
    inside = message.get("content", "").rpartition("</think>")[0].strip().removeprefix("<think>")
    thought = stated.strip() or inside.strip()
    return thought + shape.lead + reply.lstrip() if thought else shape.lead + reply
