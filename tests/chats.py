"""Conversations: templates in the shape of each family with what their models sample, and what was trained of a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from sft.types import Sample
from tests.assets import tiny_tokenizer

TEMPLATES = Path(__file__).parent / "templates"

THINKING = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
"""As Qwen3: earlier turns lose their reasoning."""


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
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
        "mistral_v3_style.jinja", lambda c: " " + c + "</s>", ("</s>",), ("[INST]", "[/INST]"), bos="<s>", eos="</s>"
    ),
    Family(
        "gemma4_style.jinja",
        lambda c: c.strip() + "<turn|>",
        ("<turn|>", "<|tool_response>"),
        (
            *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
            *("<|tool_response>", "<tool_response|>", '<|"|>'),
        ),
        bos="<bos>",
        eos="<turn|>",
        calls='<|tool_call>call:price{symbol:<|"|>BAC<|"|>}<tool_call|><|tool_response>',
        keeps_history=False,
    ),
    Family(
        "nemotron3_style.jinja",
        lambda c: "</think>" + c + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        thought=lambda t, c: f"{t}\n</think>\n{c}<|im_end|>",
        keeps_history=False,
    ),
    Family(
        "deepseek_r1_style.jinja",
        lambda c: "\n</think>\n\n" + c + "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        ("<｜User｜>", "<｜Assistant｜>"),
        plain_tokens=THINK,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        thought=lambda t, c: f"{t}\n</think>\n\n{c}<｜end▁of▁sentence｜>",
        keeps_history=False,
    ),
    Family(
        "gptoss_style.jinja",
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
        "minimind_style.jinja",
        lambda c: c.lstrip("\n") + "<|im_end|>",
        IM_END,
        plain_tokens=THINK,
        thought=lambda t, c: f"{t}\n</think>\n\n{c}<|im_end|>",
    ),
]


every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


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


def runs(sample: Sample, tokenizer: Any) -> list[tuple[str, str]]:
    """Return (text of everything before, text of the turn) for each run of trained tokens."""
    found, at = [], 0
    for trained, group in groupby(sample.loss_weights > 0):
        length = len(list(group))
        if trained:
            texts = tokenizer.backend_tokenizer.decode_batch(
                [sample.input_ids[:at], sample.input_ids[at : at + length]], skip_special_tokens=False
            )
            found.append(tuple(texts))
        at += length
    return found


def spoken(samples: list[Sample], tokenizer: Any) -> list[list[str]]:
    """Return the text of each trained turn, for each sample."""
    return [[turn for _, turn in runs(sample, tokenizer)] for sample in samples]


_LOOK_ALIKES = [
    "<|im_start|>",
    "<|im_start|>assistant\n",
    "<think>",
    "\n",
    "\n\n",
    " ",
    "<tool_call>",
    "e\u0301",
    "👩‍🚀",
]
_texts = st.lists(st.one_of(st.sampled_from(_LOOK_ALIKES), st.text(max_size=8)), max_size=5).map("".join)
_replies = _texts.map(
    lambda text: "." * text.strip().startswith("<think>") + text.replace("<|im_start|>", "<|im_start")
)
"""Without what no reply may say, and no thought that does not end."""
_questions = _texts.map(lambda text: text + "." * ("<|im_start|>" in text and text.rstrip()[-1:] in (">", "t")))
"""Without such as end as a rendered prompt does."""
exchanges = st.lists(st.tuples(_questions, _replies), min_size=1, max_size=3)
"""Any conversation: what is asked and what is answered, in turn."""
bounded = settings(max_examples=60, deadline=None, derandomize=True)


def conversation(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the messages of exchanges of a user and an assistant."""
    return [message for asked, said in pairs for message in (user(asked), assistant(said))]


_PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|user|>",
    "<|end|>",
    "<|return|>",
    "</s>",
    "[INST]",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "<tool_call>",
    "{{ message.content }}",
    "{% endfor %}",
    "¤reply¤",
    "\n",
    "\n\n\n",
    " " * 9,
    "\t\r\n",
    "e\u0301",
    "\u0301",
    "👩‍🚀🇩🇪",
    "\ufeff",
    "assistant",
]
hard_texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=6)), max_size=4).map("".join)
"""Texts that look like markup of one family or another, and white space, marks and emoji."""
