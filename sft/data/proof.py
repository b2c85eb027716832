"""Proofs about a rendered text: nothing of a message is lost, nothing but known markup is added.

Templates ignore keys that they do not know. Without these checks a plain ChatML template would train "call the tool"
as silence, and a thinking row without its thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sft.data.messages import REASONING_KEYS
from sft.data.template import TurnShape, TurnShapes, shared, short
from sft.errors import InputError


class MaskError(InputError):
    """What is to be trained cannot be proven equal to what the model would sample."""

    def __init__(self, where: str, turn: int, problem: str, *, expected: str, found: str, way_out: str):
        # What both share would fill the 80 characters shown, and hide the difference.
        same = max(0, shared(expected, found) - 20)
        super().__init__(
            f"{where}: messages[{turn}]: {problem}: "
            f"expected {short(expected[same:])}, found {short(found[same:])}. {way_out}"
        )


def check_reply_is_whole(
    message: dict[str, Any], spoken: str, shape: TurnShape, shapes: TurnShapes, turn: int, where: str
) -> None:
    """`spoken` is the message and its stop token, in this template's markup. Raises MaskError."""
    body = spoken.removesuffix(shape.stop)
    for stop in {shapes.words.stop, shapes.calls.stop}:
        if stop in body:
            raise MaskError(
                where,
                turn,
                "the reply contains the token that ends a turn, beyond which no model speaks",
                expected=body[: body.index(stop)],
                found=body,
                way_out=f"Take {stop!r} out of the row, or spell it in another way.",
            )
    missing = _lost_call(message, body) if message.get("tool_calls") else _lost_words(message, body, shape)
    if missing is not None:
        raise MaskError(
            where,
            turn,
            "the chat template drops or rewrites part of the message",
            expected=missing,
            found=spoken,
            way_out="Set data.chat_template to one that renders this part, or take the part out of the rows.",
        )


def _lost_words(message: dict[str, Any], body: str, shape: TurnShape) -> str | None:
    """What `body` lacks of a reply of words; None if it is the content (and reasoning) in the template's markup."""
    content, end = message["content"], shape.before_stop
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
    if reasoning is None and _consists_of(body, shape.lead, content, end):
        return None
    if shape.thought is not None:
        opening, between = shape.thought
        if reasoning is not None and _consists_of(body, opening, reasoning, between, content, end):
            return None
        thought, closed, said = content.rpartition("</think>")
        thought = thought.strip().removeprefix("<think>")
        if closed and reasoning is None and _consists_of(body, opening, thought, between, said, end):
            return None
    # An empty thought says as much as none.
    if reasoning is not None and not reasoning.strip() and _consists_of(body, shape.lead, content, end):
        return None
    parts = [reasoning or "", *re.split("</?think>", content), content]
    return next((part.strip() for part in parts if part.strip() not in body), content.strip())


def _lost_call(message: dict[str, Any], body: str) -> str | None:
    """What `body` lacks of a reply that calls tools: each template spells calls in its own way."""
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), "")
    calls = [call.get("function", call) for call in message["tool_calls"]]
    names = [name for call in calls for name in (call["name"], *(call.get("arguments") or ()))]
    parts = [reasoning, *re.split("</?think>", message.get("content", "")), *names]
    return next((part.strip() for part in parts if part.strip() not in body), None)


def _consists_of(text: str, *parts: str) -> bool:
    """Whether the parts, one after the other, are all of the text: templates strip and add spaces and newlines."""
    at = 0
    for part in parts:
        part = part.strip()
        while at < len(text) and text[at].isspace() and not text.startswith(part, at):
            at += 1
        if not text.startswith(part, at):
            return False
        at += len(part)
    return not text[at:].strip()


def check_prompt_is_whole(messages: Sequence[dict[str, Any]], prompt: str, where: str) -> None:
    """Every message but the assistant's is in the prompt. Raises InputError."""
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            continue  # thinking templates shorten earlier turns; each is checked where it is trained
        said = message["content"].strip()
        as_json = json.dumps(said, ensure_ascii=False)[1:-1]  # Llama 3 prints tool results as JSON strings
        if said not in prompt and as_json not in prompt:
            raise InputError(
                f"{where}: the chat template drops or rewrites messages[{k}] ({message['role']}): {short(said)} is "
                "not in the prompt. Set data.chat_template to one that knows the role, or change the rows."
            )


def check_content_is_kept(content: str, before: str, text: str, turn: int, where: str) -> None:
    """The template adds one message to the text `before` it, with its content exactly once. Raises MaskError."""
    if content and text.startswith(before) and text[len(before) :].count(content) == 1:
        return
    raise MaskError(
        where,
        turn,
        "its own weight has no place, since the chat template does not show where its content stands",
        expected=before + content,
        found=text,
        way_out="Take the weight out of the message, or set data.chat_template to one that renders it as it is.",
    )
