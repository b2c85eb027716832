"""Messages in a chat template -> text, within a limit of time and length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sft.data.chat.limits import MAX_EXPONENT, check_length, limit_behind, limited, line_of_power
from sft.errors import InputError, said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EndlessTemplateError(InputError):
    """Say that a template takes too much time or memory. No other row is tried with it: each would take as long."""


def chat_template(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None = None) -> str:
    """Return the tokenizer's template for conversations with or without tools. Raises InputError if it has none."""
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template; set data.chat_template (jinja text, file or name), "
            "or set model.partial_pretrain to an Instruct model."
        )
    return tokenizer.get_chat_template(tools=tools)


def apply(
    tokenizer: Any,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: Mapping[str, Any],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    """Return the text of the messages. Raises InputError naming `where` for whatever the template raises.

    EndlessTemplateError for a template that takes more time or memory than any conversation needs.
    """
    if line := line_of_power(template):
        raise EndlessTemplateError(
            f"the chat template raises to a power in its line {line}, which could take hours and cannot be broken off; "
            f"the limit is ** {MAX_EXPONENT}. Write it in another way, or set data.chat_template to another one."
        )
    if wants_parts(tokenizer, template):
        messages = [_in_parts(message) for message in messages]
    return _rendered(tokenizer, template, messages, tools, options, where, add_generation_prompt)


def _rendered(
    tokenizer: Any,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: Mapping[str, Any],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    try:
        with limited():
            text = tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **options,
            )
        check_length(text).encode()  # a lone surrogate would fail later, among the texts of other rows
    except Exception as error:  # a template is a program of its own: whatever it raises is about this row
        if limit := limit_behind(error):
            raise EndlessTemplateError(
                f"{where}: the chat template does not come to an end with this conversation: {limit}. Look for a loop "
                "in it, or set data.chat_template to another one."
            ) from error
        raise InputError(f"{where}: the chat template cannot render this conversation: {said(error)}") from error
    return text


@lru_cache(maxsize=64)
def wants_parts(tokenizer: Any, template: str) -> bool:
    """Return True if the template shows a content only as a list of parts, as those of vision models may (SmolVLM)."""
    if not re.search(r"\.type\b|['\"]type['\"]", template):
        return False
    question, reply = "¤question¤", "¤reply¤"
    told = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]

    def shown(messages: list[dict[str, Any]]) -> bool:
        try:
            text = _rendered(tokenizer, template, messages, None, {}, "probe of the chat template")
        except InputError:
            return False
        return question in text and reply in text

    return not shown(told) and shown([_in_parts(message) for message in told])


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message.get("content", "")}]}
