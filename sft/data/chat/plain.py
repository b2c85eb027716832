"""Plain conversations: three renderings place any number of replies, where `render` needs two for each.

Plain are messages of role and content alone, user and assistant in turn, perhaps a system message before them. Where
the template, on a probe, leaves every turn as it was sampled, the text of such a conversation must be

    prompt of the first reply, (reply, stop, what stands around the user's words, with them in it) ..., reply, stop

character by character. Anything else, down to a space that the template strips, is left to the long way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sft.data.chat.apply import apply
from sft.data.chat.template import TurnShape
from sft.errors import InputError

Around = tuple[str, str]
"""What a template writes between a reply with its stop and the next reply: before the user's words, and after them."""

PROBE = ("¤first¤", "¤one¤", "¤second¤", "¤two¤", "¤third¤", "¤three¤")


def places_of_replies(
    messages: Sequence[Mapping[str, Any]], text: str, first_prompt: str, shape: TurnShape, around: Around
) -> dict[int, tuple[int, int]] | None:
    """Find where every reply stands in `text`, its stop token included: {k: characters [start, end) of messages[k]}.

    None where the text is not made as `shape` and `around` say.

    messages: plain ones, the last the assistant's; text: their rendering; first_prompt: that of the first reply.
    """
    if not text.startswith(first_prompt):
        return None
    first = first_reply(messages)
    places, at = {}, len(first_prompt)
    for k in range(first, len(messages), 2):
        body = shape.lead + messages[k]["content"] + shape.before_stop
        if k > first:
            question = around[0] + messages[k - 1]["content"] + around[1]
            if not text.startswith(question, at):
                return None
            at += len(question)
        if shape.stop in body or not text.startswith(body + shape.stop, at):
            return None
        places[k] = at, at + len(body) + len(shape.stop)
        at = places[k][1]
    return places


def is_plain(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if user and assistant speak in turn, the assistant last, and there are only words, no thoughts."""
    roles = [message["role"] for message in messages][first_reply(messages) - 1 :]
    return roles == ["user", "assistant"] * (len(roles) // 2) and all(
        message.keys() == {"role", "content"} and "think>" not in message["content"] for message in messages
    )


def first_reply(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the first reply of a plain conversation."""
    return 2 if messages[0]["role"] == "system" else 1


def around_questions(tokenizer: Any, template: str, options: Mapping[str, Any], shape: TurnShape) -> Around | None:
    """Return what stands around the user's words from the second turn on; None if the template changes turns later."""
    return None if shape.is_next_tag else _learn(tokenizer, template, json.dumps(options, sort_keys=True), shape)


@lru_cache(maxsize=64)
def _learn(tokenizer: Any, template: str, options_json: str, shape: TurnShape) -> Around | None:
    options = json.loads(options_json)
    roles = ("user", "assistant") * (len(PROBE) // 2)
    messages = [{"role": role, "content": words} for role, words in zip(roles, PROBE, strict=True)]

    def probe(end: int, prompt: bool = False) -> str:
        where = "probe of the chat template"
        return apply(tokenizer, template, messages[:end], None, options, where, add_generation_prompt=prompt)

    try:
        text, first_prompt = probe(len(messages)), probe(1, prompt=True)
        opening, _, rest = text[text.index(PROBE[1]) :].partition(PROBE[2])
        around = opening.removeprefix(PROBE[1] + shape.before_stop + shape.stop), rest[: rest.find(PROBE[3])]
        around = around[0], around[1].removesuffix(shape.lead)
        places = places_of_replies(messages, text, first_prompt, shape, around)
        as_sampled = places is not None and all(
            probe(k, prompt=True) == text[:start] and probe(k + 1) == text[:end] + shape.after_stop
            for k, (start, end) in places.items()
        )
    except (InputError, ValueError):  # it refuses such a conversation, or shows not all of it
        return None
    return around if as_sampled else None
