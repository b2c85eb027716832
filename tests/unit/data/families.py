"""Chat templates in the shape of each family, written by us, with what their models sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.assets import tiny_tokenizer

TEMPLATES = Path(__file__).parent / "templates"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@dataclass(frozen=True)
class Family:
    """A template, the tokens it needs, and in our words what is sampled for a plain reply."""

    file: str
    said: Callable[[str], str]  # content of a reply -> all that the model samples for it
    stops: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    plain_tokens: tuple[str, ...] = ()  # added, but not special
    eat_space: bool = False  # tokens take the white space behind them into themselves (rstrip)
    bos: str | None = None
    eos: str = "<|im_end|>"
    options: tuple[tuple[str, Any], ...] = ()
    thought: Callable[[str, str], str] | None = None  # (reasoning, content) -> what is sampled
    calls: str | None = None  # what is sampled for CALL
    keeps_history: bool = True  # of replies without reasoning
    takes_system: bool = True

    @property
    def name(self) -> str:
        return (
            self.file.split(".")[0]
            + "".join(f"-{key}={value}" for key, value in self.options)
            + "-rstrip" * self.eat_space
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return _tokenizer(self)


CALL = {"type": "function", "function": {"name": "price", "arguments": {"symbol": "BAC"}}}
TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]

IM_END = ("<|im_end|>",)
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")

FAMILIES = [
    Family("chatml.jinja", lambda c: c + "<|im_end|>", IM_END),
    Family(
        "qwen3_style.jinja",
        lambda c: "<think>\n\n</think>\n\n" + c.lstrip("\n") + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        thought=lambda t, c: f"<think>\n{t}\n</think>\n\n{c}<|im_end|>",
        calls='<think>\n\n</think>\n\n\n<tool_call>\n{"name": "price", "arguments": {"symbol": "BAC"}}\n</tool_call>'
        "<|im_end|>",
        keeps_history=False,
    ),
    Family(
        "qwen3_style.jinja",
        lambda c: c.lstrip("\n") + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        options=(("enable_thinking", False),),
        keeps_history=False,
    ),
    Family(
        "qwen35_style.jinja",
        lambda c: "\n</think>\n\n" + c.strip() + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        thought=lambda t, c: f"{t}\n</think>\n\n{c}<|im_end|>",
        keeps_history=False,
    ),
    Family(
        "qwen35_style.jinja",
        lambda c: c.strip() + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        options=(("enable_thinking", False),),
        keeps_history=False,
    ),
    Family(
        "llama3_style.jinja",
        lambda c: c.strip() + "<|eot_id|>",
        ("<|eot_id|>", "<|eom_id|>"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        calls='<|python_tag|>{"name": "price", "parameters": {"symbol": "BAC"}}<|eom_id|>',
    ),
    Family(
        "gemma_style.jinja",
        lambda c: c.strip() + "<end_of_turn>",
        ("<end_of_turn>",),
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        takes_system=False,
    ),
    Family(
        "gemma3_style.jinja",
        lambda c: c.strip() + "<end_of_turn>",
        ("<end_of_turn>",),
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
    ),
    Family("mistral_style.jinja", lambda c: " " + c + "</s>", ("</s>",), ("[INST]", "[/INST]"), bos="<s>", eos="</s>"),
    Family(
        "phi3_style.jinja",
        lambda c: c + "<|end|>",
        ("<|end|>",),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    Family(
        "phi3_style.jinja",
        lambda c: c + "<|end|>",
        ("<|end|>",),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        eat_space=True,
    ),
    Family("phi4_style.jinja", lambda c: c + "<|im_end|>", IM_END, ("<|im_sep|>",), eos="<|endoftext|>"),
    Family(
        "deepseek_style.jinja",
        lambda c: c + "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        ("<｜User｜>", "<｜Assistant｜>"),
        plain_tokens=THINK,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        thought=lambda t, c: f"<think>\n{t}\n</think>\n\n{c}<｜end▁of▁sentence｜>",
    ),
    Family(
        "glm_style.jinja",
        lambda c: "\n<think></think>" + ("\n" + c.strip() if c.strip() else "") + "<|user|>",
        ("<|user|>", "<|observation|>"),
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        plain_tokens=THINK,
        eos="<|endoftext|>",
        thought=lambda t, c: f"\n<think>{t}</think>\n{c}<|user|>",
        calls="\n<think></think>\n<tool_call>price\n<arg_key>symbol</arg_key>\n<arg_value>BAC</arg_value>\n"
        "</tool_call><|observation|>",
    ),
    Family(
        "glm_style.jinja",
        lambda c: ("\n" + c.strip() if c.strip() else "") + "<|user|>",
        ("<|user|>", "<|observation|>"),
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        plain_tokens=THINK,
        eos="<|endoftext|>",
        options=(("enable_thinking", False),),
    ),
    Family(
        "harmony_style.jinja",
        lambda c: "<|channel|>final<|message|>" + c + "<|return|>",
        ("<|return|>", "<|call|>"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
        thought=lambda t, c: (
            f"<|channel|>analysis<|message|>{t}<|end|><|start|>assistant<|channel|>final<|message|>{c}<|return|>"
        ),
        calls=' to=functions.price<|channel|>commentary json<|message|>{"symbol": "BAC"}<|call|>',
        keeps_history=False,
    ),
    Family(
        "cohere_style.jinja",
        lambda c: "<|START_RESPONSE|>" + c + "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        ("<|END_OF_TURN_TOKEN|>",),
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        "minimind_style.jinja",
        lambda c: c.lstrip("\n") + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        thought=lambda t, c: f"{t}\n</think>\n\n{c}<|im_end|>",
    ),
]


@cache
def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer((TEMPLATES / family.file).read_text())
    tokens = [AddedToken(token, special=True, rstrip=family.eat_space) for token in family.tokens]
    tokenizer.add_tokens([*tokens, *filter(None, [family.bos]), family.eos], special_tokens=True)
    tokenizer.add_tokens(list(family.plain_tokens))
    tokenizer.eos_token = family.eos
    if family.bos:
        tokenizer.bos_token = family.bos
    return tokenizer


def with_template(tokenizer: Any, config_file: Path) -> Any:
    """The tokenizer with the template of a real tokenizer_config.json."""
    tokenizer.chat_template = json.loads(config_file.read_text())["chat_template"]
    return tokenizer
