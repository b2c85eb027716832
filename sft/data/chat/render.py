"""Messages -> the texts in which every trained turn stands as the model would sample it (turns.py says where)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.chat.apply import chat_template
from sft.data.chat.calls import clean_tools, refuse_tools_twice
from sft.data.chat.details import character_weights, placed
from sft.data.chat.messages import REASONING_KEYS, clean_messages
from sft.data.chat.proof import (
    MaskError,
    check_prompt_is_rendered_once,
    check_prompt_is_whole,
    check_reply_is_speech,
    thoughts_left_out,
    thoughts_never_opened,
)
from sft.data.chat.template import reasoning_key, turn_shapes
from sft.data.chat.turns import ChatInTemplate, Span, behind_prefill
from sft.data.chat.variables import refuse_unread
from sft.data.chat.weights import message_weights
from sft.data.types import Conversation, RowCounts, Supervision
from sft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEEPS_REASONING = {"preserve_thinking": True, "clear_thinking": False}
"""Switches with which templates (Qwen, GLM) are asked to leave the reasoning of earlier turns where it was."""


LETS_THINK = ("enable_thinking", "thinking")
"""Switches without which templates leave out what the model thinks (Gemma 4, DeepSeek)."""


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
    counts: RowCounts | None = None,
) -> list[Rendering]:
    """Return the texts in which every trained turn stands exactly once, as it would be sampled.

    One text, if the template leaves earlier turns as they were; a template that rewrites them (Qwen3 drops the
    reasoning of earlier turns) gives one text for each state of the history. No text, if nothing is trained.
    Messages after the last trained turn are cut. Raises InputError for a row that the template cannot render,
    MaskError for a turn that does not follow its prompt. counts: where turns and thoughts that are left out are added.
    """
    supervision = supervision or Supervision()
    counts = RowCounts() if counts is None else counts
    where = conversation.where
    chat = chat_in_template(conversation, tokenizer, supervision)
    messages = chat.messages
    weights = message_weights(conversation.messages, supervision.train_on, where, given=conversation.given)
    details = _details(conversation.messages, weights, where, supervision.train_on)
    for k, message in enumerate(messages):
        if message["role"] == "assistant" and weights[k] > 0:
            check_reply_is_speech(message, chat.shapes, k, where)
    if supervision.train_on == "all":
        return _whole_text(chat, weights, details, counts)
    _check_somebody_answers(messages, weights, where, supervision.train_on)

    trained = [k for k, weight in enumerate(weights) if weight > 0]
    as_sampled = _as_sampled(chat, trained, weights)
    if not as_sampled:
        return []
    as_sampled = [_with_details(turn, details, chat) for turn in as_sampled]
    if conversation.prefill:
        as_sampled = [behind_prefill(turn, conversation.given, conversation.prefill, where) for turn in as_sampled]
    text, last = as_sampled[-1]
    check_prompt_is_whole(messages[: last.turn], text[: last.start], where)
    for of_turn, span in as_sampled:
        if span.is_sampled and span.turn:
            check_prompt_is_rendered_once(messages[span.turn - 1], of_turn[: span.start], span.turn - 1, where)
    chat.check_tools(last.turn + 1, text[: last.start])
    counts.thoughts_never_opened += thoughts_never_opened(messages[: last.turn + 1], text)
    texts = _fewest_texts(as_sampled)
    if len(texts) > 1 and supervision.thinking_history == "preserved":
        _refuse_rewriting(texts, where)
    if supervision.thinking_history == "last":
        texts = texts[-1:]
        counts.turns_left_out += len(as_sampled) - len(texts[0][1])
    return [Rendering(text, spans, where) for text, spans in texts]


def _as_sampled(chat: ChatInTemplate, trained: list[int], weights: list[float]) -> list[tuple[str, Span]]:
    """Return the text and the place of every trained turn. A MaskError names the switch that would help."""
    try:
        return chat.plain_turns(trained, weights) or [chat.turn(k, weights[k]) for k in trained]
    except MaskError as error:
        for name in LETS_THINK:
            if name not in chat.template or chat.options.get(name):
                continue
            options = {**chat.options, name: True}
            try:
                shapes = turn_shapes(chat.tokenizer, chat.template, options)
                [replace(chat, options=options, shapes=shapes).turn(k, weights[k]) for k in trained]
            except InputError:
                continue
            error.args = (f"{error} With data.apply_chat_template_kwargs.{name}=true the template renders this row.",)
            break
        raise


def chat_in_template(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, supervision: Supervision
) -> ChatInTemplate:
    """Return the conversation, cleaned, with the template that renders it.

    Raises InputError for what no template can take.
    """
    where = conversation.where
    tools = clean_tools(conversation.tools, where)
    template = chat_template(tokenizer, tools)
    messages = clean_messages(conversation.messages, where, template)
    _name_reasoning(messages, reasoning_key(template), where)
    refuse_tools_twice(messages, tools, where)
    refuse_unread(conversation.template_options, template, where)
    options = template_options(template, conversation.template_options, supervision)
    shapes = turn_shapes(tokenizer, template, options)
    return ChatInTemplate(messages, tools, template, options, where, tokenizer, shapes)


def template_options(template: str, given: Mapping[str, Any], supervision: Supervision) -> dict[str, Any]:
    """Return the template's variables: those given, and with thinking_history=preserved its own switch for that."""
    wanted = KEEPS_REASONING if supervision.thinking_history == "preserved" else {}
    return {name: value for name, value in wanted.items() if name in template} | dict(given)


def _details(
    messages: Sequence[Mapping[str, Any]], weights: list[float], where: str, train_on: str
) -> dict[int, np.ndarray]:
    """Return the weights of the characters of the messages that state them. A message of which no character is trained
    gets the weight 0.
    """
    details = {
        k: stated
        for k, message in enumerate(messages)
        if isinstance(message, Mapping)
        and (stated := character_weights(message, f"{where}: messages[{k}]")) is not None
    }
    for k, stated in details.items():
        if train_on == "custom" and not weights[k] and stated.any():
            raise InputError(
                f"{where}: messages[{k}] states which characters are trained, and data.train_on=custom trains only "
                "messages that say so; give it `train`: true."
            )
        weights[k] *= bool(stated.any())
    return details


def _with_details(turn: tuple[str, Span], details: Mapping[int, np.ndarray], chat: ChatInTemplate) -> tuple[str, Span]:
    """Return the turn with the weights of its characters, if it states them."""
    k = turn[1].turn
    if k not in details:
        return turn
    return placed(turn, chat.messages[k]["content"], details[k], chat.shapes.words, chat.where)


def _whole_text(
    chat: ChatInTemplate, weights: list[float], details: Mapping[int, np.ndarray], counts: RowCounts
) -> list[Rendering]:
    """All of the conversation with weight 1, but for turns that state another weight."""
    messages, where = chat.messages, chat.where
    if not messages:
        raise InputError(f"{where}: no messages, so nothing to train.")
    end = len(messages) - 1
    answered = messages[end]["role"] == "assistant" and end > 0
    text, _ = chat.turn(end, weights[end]) if answered else (chat.text(end + 1), None)
    check_prompt_is_whole(messages, text, where)
    chat.check_tools(end + 1, text)
    counts.thoughts_left_out += thoughts_left_out(messages, text)
    counts.thoughts_never_opened += thoughts_never_opened(messages, text)
    spans = []
    for k, weight in enumerate(weights):
        if weight != 1 or k in details:
            as_sampled, span = chat.turn(k, weight)
            if weight > 0:
                as_sampled, span = _with_details((as_sampled, span), details, chat)
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


def _fewest_texts(waiting: list[tuple[str, Span]]) -> list[tuple[str, list[Span]]]:
    """Take the last turn's text for all turns that it leaves as they were sampled; so on with the others."""
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
