"""Proofs about a rendered text: nothing of a message is lost, nothing but known markup is added.

Templates ignore keys that they do not know. Without these checks a plain ChatML template would train "call the tool"
as silence, and a thinking row without its thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from sft.data.chat.messages import REASONING_KEYS
from sft.data.chat.spelling import find_call, find_in_order
from sft.data.chat.template import TurnShape, TurnShapes, shared, short
from sft.errors import InputError

MOVED = ("system", "developer")
"""Roles whose messages templates gather at the start, or put into the last question (Mistral)."""


class MaskError(InputError):
    """What is to be trained cannot be proven equal to what the model would sample."""

    def __init__(self, where: str, turn: int, problem: str, *, expected: str, found: str, way_out: str):
        # What both share would fill the 80 characters shown, and hide the difference.
        same = max(0, shared(expected, found) - 20)
        super().__init__(
            f"{where}: messages[{turn}]: {problem}: "
            f"expected {short(expected[same:])}, found {short(found[same:])}. {way_out}"
        )


def check_reply_is_speech(message: dict[str, Any], shapes: TurnShapes, turn: int, where: str) -> None:
    """Raise MaskError if a reply spells a token of the template's own markup, which it would be trained to say;
    InputError if it was cut off in a thought, where it would learn to stop.
    """
    content = message.get("content", "").strip()
    if content.startswith("<think>") and "</think>" not in content and "tool_calls" not in message:
        raise InputError(
            f"{where}: messages[{turn}] opens a thought that does not end ({content[-40:]!r}): the reply was cut off, "
            "and the model would learn to stop there. Take the row out, or give the message `train`: false."
        )
    calls = json.dumps(message["tool_calls"], ensure_ascii=False, default=str) if "tool_calls" in message else ""
    for said in (message.get("content", ""), *(message[key] for key in REASONING_KEYS if key in message), calls):
        _refuse_stops(said, shapes, turn, where)
        for token in shapes.control_tokens:
            if token in said:
                _refuse_token(token, "a control token, which it would be trained to say", said, turn, where)


def check_reply_is_whole(
    message: dict[str, Any], spoken: str, shape: TurnShape, shapes: TurnShapes, turn: int, where: str
) -> None:
    """Raise MaskError unless `spoken` is all of the message and its stop token, in the template's markup."""
    body = spoken.removesuffix(shape.stop)
    _refuse_stops(body, shapes, turn, where, by_template=True)
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


def check_stop(reply: str, shape: TurnShape, turn: int, where: str) -> None:
    """Raise MaskError unless `reply` ends with the stop token and the template's own words behind it."""
    ending = shape.stop + shape.after_stop
    if not reply.endswith(ending):
        raise MaskError(
            where,
            turn,
            "the chat template does not end this turn with its stop token",
            expected=ending,
            found=reply[-len(ending) :],
            way_out="Set data.chat_template to one that ends every assistant turn with the same token.",
        )


def _refuse_stops(said: str, shapes: TurnShapes, turn: int, where: str, *, by_template: bool = False) -> None:
    for stop in (shapes.words.stop, shapes.calls.stop):
        if stop in said:
            what = "the token that ends a turn, beyond which no model speaks"
            _refuse_token(stop, what, said, turn, where, by_template=by_template)


def _refuse_token(token: str, what: str, said: str, turn: int, where: str, *, by_template: bool = False) -> NoReturn:
    raise MaskError(
        where,
        turn,
        f"the reply contains {what}",
        expected=said[: said.index(token)],
        found=said,
        way_out=f"The chat template writes {token!r} there; set data.chat_template to one that writes it at the end."
        if by_template
        else f"Take {token!r} out of the row, or spell it in another way.",
    )


def _lost_words(message: dict[str, Any], body: str, shape: TurnShape) -> str | None:
    """Return what `body` lacks of a reply of words; None if it is the content (and reasoning) in markup."""
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
    """Return what `body` lacks of a reply that calls tools. Templates spell calls in their own ways, but one by one."""
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), "")
    said = [part.strip() for part in (reasoning, *re.split("</?think>", message.get("content", "")))]
    missing, at = find_in_order(body, said)
    for call in message["tool_calls"]:
        if missing is None:
            missing, at = find_call(body, call.get("function", call), at)
    return missing


def _consists_of(text: str, *parts: str) -> bool:
    """Return True if the text is these parts in order, but for spaces and newlines, which templates strip and add."""
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
    """Raise InputError unless every message is in the prompt, in order; the assistant's thoughts may be left out."""
    at = 0
    for k, message in enumerate(messages):
        role, content = message["role"], message.get("content", "")
        missing, end = find_in_order(prompt, [content.strip()], at if role not in MOVED else 0)
        if missing is not None and role == "assistant":  # templates take the thoughts out of earlier turns
            missing, end = find_in_order(prompt, [content.rpartition("</think>")[2].strip()], at)
        for call in message.get("tool_calls", ()):
            if missing is None:
                missing, end = find_call(prompt, call.get("function", call), end)
        if missing is not None:
            raise InputError(
                f"{where}: the chat template drops or rewrites messages[{k}] ({role}): {short(missing)} is not in the "
                "prompt, or not in its place. Set data.chat_template to one that renders it, or change the rows."
            )
        at = at if role in MOVED else end


ASKS_THE_MODEL = re.compile(
    r"(<\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>\s*model"
    r"|<\|turn>\s*model|<\|start\|>\s*assistant|<\|(assistant|CHATBOT_TOKEN)\|>|<｜Assistant｜>|\[/INST\])"
    r"\s*(<think>\s*(</think>\s*)?)?$"
)
"""How the prompts of well-known templates end."""


def check_prompt_is_rendered_once(asked: dict[str, Any], prompt: str, turn: int, where: str) -> None:
    """Raise InputError for a question that is a whole rendered prompt, behind which the template writes its own end."""
    content = asked.get("content", "").rstrip()
    if (found := ASKS_THE_MODEL.search(content[-120:])) and not prompt.rstrip().endswith(content):
        raise InputError(
            f"{where}: messages[{turn}] ({asked['role']}) ends with {found.group().strip()!r}: it is a prompt that was "
            "rendered before, and the chat template would render it once more. Write the words alone, as question and "
            "answer or as messages; or set data.chat_template to one that writes contents as they are."
        )


def check_tools_are_shown(tools: Sequence[dict[str, Any]], text: str, is_shown: bool, where: str) -> None:
    """Refuse (InputError) a text that does not name every tool.

    is_shown: the template makes something of tools at all.
    """
    schemas = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    names = [str(schema.get("name", "")) for schema in schemas]
    hidden = [name for name in names if name not in text or not is_shown]
    if hidden:
        raise InputError(
            f"{where}: the chat template does not show the row's tools to the model: {short(', '.join(hidden))}. Set "
            "data.chat_template to one that does; or, to train without them, leave them out by "
            "data.ignore_columns=[tools]."
        )


def thoughts_left_out(messages: Sequence[dict[str, Any]], text: str) -> int:
    """Count the assistant's thoughts, in their own field or inside the content, that are not in the text."""
    thoughts = [
        next((message[key] for key in REASONING_KEYS if key in message), "")
        or message.get("content", "").rpartition("</think>")[0].strip().removeprefix("<think>")
        for message in messages
        if message["role"] == "assistant"
    ]
    return sum(find_in_order(text, [thought])[0] is not None for thought in thoughts)


def thoughts_never_opened(messages: Sequence[dict[str, Any]], text: str) -> int:
    """Count the assistant's contents that say </think> without <think>, where the text makes a thought of it.

    Qwen3's template, among others, takes all words before such a tag for reasoning, even those about the tag.
    """
    contents = [message.get("content", "").strip() for message in messages if message["role"] == "assistant"]
    typed = [said for said in contents if "</think>" in said and "<think>" not in said.partition("</think>")[0]]
    places = [text.find(said) for said in typed]
    return sum(at < 0 or text[:at].rstrip().endswith("<think>") for at in places)


def check_content_is_kept(content: str, before: str, text: str, turn: int, where: str) -> None:
    """Check that the template adds one message to the text `before` it, its content exactly once. Raises MaskError."""
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
