"""Rows of other trainers' documentation: each is read as its trainer reads it, or refused with its reason."""

import json

import pytest

from sft.data.chat.encode import encode_batch
from sft.data.rows.formats import to_conversation
from sft.data.rows.recognise import recognise
from sft.errors import InputError
from tests.assets import tiny_tokenizer
from tests.rows import columns

SYSTEM, ASKED, SAID = "Be brief.", "1 + 1?", "2"
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
WITH_SYSTEM = [{"role": "system", "content": SYSTEM}, *CHAT]
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALL_TEXT = json.dumps(CALL["function"])
DETAIL = {"begin_offset": 0, "end_offset": 0, "train": True}
CALLED = [CHAT[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, CHAT[1]]

READ = {
    "TRL language modeling": ({"text": "Seven is a prime."}, None),
    "TRL prompt-completion": ({"prompt": ASKED, "completion": SAID}, CHAT),
    "TRL conversational prompt-completion": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT),
    "TRL tools": ({"messages": CHAT, "tools": json.dumps([{"type": "function", "function": FUNCTION}])}, CHAT),
    "TRL template switches": ({"prompt": CHAT[:1], "completion": CHAT[1:], "chat_template_kwargs": {"a": 1}}, CHAT),
    "axolotl chat_template": ({"messages": CHAT}, CHAT),
    "axolotl alpaca_w_system": ({"instruction": ASKED, "input": "", "output": SAID, "system": SYSTEM}, WITH_SYSTEM),
    "axolotl completion": ({"text": "Seven is a prime."}, None),
    "axolotl turn detail": (
        {"messages": [CHAT[0], {**CHAT[1], "train_detail": [DETAIL]}]},
        [CHAT[0], {**CHAT[1], "train_detail": [DETAIL]}],
    ),
    "axolotl load_camel_ai": ({"instruction": ASKED, "output": SAID, "text": "all"}, CHAT),
    "LLaMA-Factory alpaca": (
        {"instruction": ASKED, "input": "", "output": SAID, "system": SYSTEM, "history": [["Hi.", "Hello."]]},
        [WITH_SYSTEM[0], *EARLIER, *CHAT],
    ),
    "LLaMA-Factory sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": ASKED},
                {"from": "function_call", "value": CALL_TEXT},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": SAID},
            ],
            "system": SYSTEM,
            "tools": json.dumps([FUNCTION]),
        },
        [WITH_SYSTEM[0], *CALLED],
    ),
    "LLaMA-Factory openai": ({"messages": WITH_SYSTEM}, WITH_SYSTEM),
    "LLaMA-Factory pretraining": ({"text": "document"}, None),
    "torchtune instruct": ({"input": ASKED, "output": SAID}, CHAT),
    "torchtune chat": ({"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]}, CHAT),
    "torchtune openai": ({"messages": CHAT}, CHAT),
    "ms-swift messages": ({"messages": WITH_SYSTEM}, WITH_SYSTEM),
    "ms-swift sharegpt": ({"system": SYSTEM, "conversation": CHAT}, WITH_SYSTEM),
    "ms-swift query-response": (
        {"system": SYSTEM, "history": [["Hi.", "Hello."]], "query": ASKED, "response": SAID},
        [WITH_SYSTEM[0], *EARLIER, *CHAT],
    ),
    "ms-swift alpaca": ({"system": SYSTEM, "instruction": ASKED, "input": "", "output": SAID}, WITH_SYSTEM),
    "ms-swift agent": (
        {
            "tools": json.dumps([{"type": "function", "function": FUNCTION}]),
            "messages": [
                CHAT[0],
                {"role": "tool_call", "content": CALL_TEXT},
                {"role": "tool_response", "content": "2"},
                CHAT[1],
            ],
        },
        CALLED,
    ),
    "ms-swift parallel calls": (
        {"messages": [CHAT[0], *[{"role": "tool_call", "content": CALL_TEXT}] * 2, {"role": "tool", "content": "2"}]},
        [CHAT[0], {"role": "assistant", "tool_calls": [CALL, CALL]}, CALLED[2]],
    ),
    "OpenAI fine-tuning": ({"messages": [CHAT[0], {**CHAT[1], "weight": 1}]}, [CHAT[0], {**CHAT[1], "weight": 1}]),
    "OpenAI tools": (
        {
            "messages": [
                CHAT[0],
                {"role": "assistant", "tool_calls": [{"id": "c1", **CALL}]},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
            ],
            "parallel_tool_calls": False,
            "tools": [{"type": "function", "function": FUNCTION}],
        },
        [
            CHAT[0],
            {"role": "assistant", "tool_calls": [{"id": "c1", **CALL}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
    ),
    "OpenAI functions": (
        {
            "messages": [CHAT[0], {"role": "assistant", "function_call": CALL["function"]}],
            "functions": [FUNCTION],
        },
        CALLED[:2],
    ),
    "OpenAI developer": (
        {"messages": [{"role": "developer", "content": SYSTEM}, *CHAT]},
        [{"role": "developer", "content": SYSTEM}, *CHAT],
    ),
    "verl multiturn": ({"messages": CHAT, "tools": None, "enable_thinking": False}, CHAT),
    "verl GSM8K": ({"extra_info": {"question": ASKED, "answer": SAID}, "prompt": CHAT[:1], "ability": "math"}, CHAT),
    "Nemotron v1": (
        {
            **{"input": CHAT[:1], "output": SAID, "category": "math", "license": "cc", "reasoning": "off"},
            **{"generator": "m", "used_in_training": "yes", "version": "v1", "system_prompt": SYSTEM},
        },
        WITH_SYSTEM,
    ),
    "Nemotron v2": (
        {"uuid": "u", "license": "cc", "generator": "m", "category": "chat", "reasoning": "on", "messages": CHAT},
        CHAT,
    ),
    "Tulu 3": ({"id": "a", "messages": CHAT, "source": "ai2", "prompt": ASKED, "constraints": []}, CHAT),
    "OpenThoughts": (
        {"system": SYSTEM, "conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": SAID}]},
        WITH_SYSTEM,
    ),
    "UltraChat": ({"prompt": ASKED, "prompt_id": "a", "messages": CHAT}, CHAT),
    "Dolly": ({"instruction": ASKED, "context": "", "response": SAID, "category": "qa"}, CHAT),
    "OpenOrca": ({"id": "a", "system_prompt": SYSTEM, "question": ASKED, "response": SAID}, WITH_SYSTEM),
    "MetaMath": ({"type": "a", "query": ASKED, "original_question": "b", "response": SAID}, CHAT),
    "Magpie": (
        {"uuid": "a", "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}], "score": 1},
        CHAT,
    ),
    "SlimOrca": (
        {
            "conversations": [
                {"from": "system", "value": SYSTEM, "weight": None},
                {"from": "human", "value": ASKED, "weight": 0.0},
                {"from": "gpt", "value": SAID, "weight": 1.0},
            ]
        },
        [WITH_SYSTEM[0] | {"weight": None}, CHAT[0] | {"weight": 0.0}, CHAT[1] | {"weight": 1.0}],
    ),
    "Open-Platypus": ({"input": "", "output": SAID, "instruction": ASKED, "data_source": "a"}, CHAT),
    "Python alpaca": (
        {
            "instruction": ASKED,
            "input": "",
            "output": SAID,
            "prompt": f"### Do:\n{ASKED}\n### Output:\n{SAID}",
        },
        CHAT,
    ),
    "OpenR1-Math": (
        {
            **{"problem": ASKED, "solution": "b", "answer": SAID, "source": "a", "uuid": "u", "generations": ["a"]},
            **{"is_reasoning_complete": [True], "correctness_math_verify": [True], "messages": CHAT},
        },
        CHAT,
    ),
    "NuminaMath-CoT": ({"source": "a", "problem": ASKED, "solution": SAID, "messages": CHAT}, CHAT),
    "AM-DeepSeek-R1": (
        {"messages": [CHAT[0], {**CHAT[1], "info": {"think_content": "a"}}]},
        [CHAT[0], {**CHAT[1], "info": {"think_content": "a"}}],
    ),
    "s1K": (
        {"question": ASKED, "solution": SAID, "thinking_trajectories": ["Add."], "cot_type": "math", "cot": None},
        [CHAT[0], {**CHAT[1], "reasoning_content": "Add."}],
    ),
    "LIMO": ({"question": ASKED, "solution": SAID, "answer": "b"}, CHAT),
    "WildChat": (
        {
            **{"conversation_hash": "a", "model": "m", "timestamp": None, "turn": 1, "toxic": False, "redacted": False},
            **{"conversation": CHAT, "openai_moderation": [{"flagged": False}]},
        },
        CHAT,
    ),
    "smoltalk": ({"messages": CHAT, "source": "a"}, CHAT),
    "Infinity-Instruct": (
        {
            "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}],
            **{"label": {"ability_en": ["a"]}, "langdetect": "en", "source": "b"},
        },
        CHAT,
    ),
}
NEEDS_A_KEY = {
    "verl GSM8K": {"prompt_key": "extra_info", "response_key": "extra_info"},
    "s1K": {"reasoning_key": "thinking_trajectories", "response_key": "solution"},
    "LIMO": {"response_key": "solution"},
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read(name):
    cells, messages = READ[name]
    settled = recognise([("f:1", cells)], columns(**NEEDS_A_KEY.get(name, {})), "f")
    if messages is None:
        assert settled.format == "text"
        return
    conversation = to_conversation(("f:1", cells), settled, {})
    assert conversation.messages == messages
    if "tools" in cells or "functions" in cells:
        assert bool(conversation.tools) == bool(cells.get("tools") or cells.get("functions"))


REFUSED = {
    "TRL preference": ({"prompt": ASKED, "chosen": SAID, "rejected": "3"}, "data.response_key=chosen"),
    "TRL implicit preference": ({"chosen": CHAT, "rejected": CHAT}, "data.multiturn.messages_key=chosen"),
    "TRL unpaired preference": ({"prompt": ASKED, "completion": SAID, "label": True}, "good and bad replies"),
    "TRL vision": ({"messages": CHAT, "images": ["a.png"]}, "pictures"),
    "axolotl input_output": ({"segments": [{"label": True, "text": "a"}]}, "no such columns"),
    "LLaMA-Factory DPO": (
        {"instruction": ASKED, "input": "", "chosen": SAID, "rejected": "3"},
        "data.prompt_key=instruction data.response_key=chosen",
    ),
    "LLaMA-Factory DPO sharegpt": (
        {"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt"}, "rejected": {"from": "gpt"}},
        "a preference",
    ),
    "LLaMA-Factory KTO": ({"instruction": ASKED, "input": "", "output": SAID, "kto_tag": True}, "'kto_tag' looks like"),
    "LLaMA-Factory multimodal": ({"messages": CHAT, "images": ["a.png"]}, "pictures, sound or video"),
    "ms-swift RLHF": ({"messages": CHAT, "rejected_response": "3"}, "a preference"),
    "ms-swift KTO": ({"messages": CHAT, "label": False}, "'label' looks like a preference"),
    "ms-swift multimodal": ({"messages": CHAT, "audios": ["a.wav"]}, "pictures, sound or video"),
    "OpenAI DPO": (
        {"input": {"messages": CHAT[:1]}, "preferred_output": CHAT[1:], "non_preferred_output": CHAT[1:]},
        "no such columns",
    ),
    "NeMo": ({"mask": "User", "system": "", "conversations": [{"from": "User", "value": "a"}]}, "'mask' looks like"),
    "LIMO, its answers": ({"question": ASKED, "solution": SAID, "answer": "b"}, "data.response_key=solution"),
    "s1K, its thoughts": ({"question": ASKED, "solution": SAID, "thinking_trajectories": ["a"]}, "columns.reasoning="),
    "Hermes function calling": (
        {
            "conversations": [
                {"from": "system", "value": "You call <tools>[]</tools>."},
                {"from": "human", "value": ASKED},
                {"from": "gpt", "value": SAID},
            ],
            "tools": json.dumps([FUNCTION]),
        },
        "the system message lists the tools",
    ),
    "SmolTalk 2": (
        {"messages": CHAT, "chat_template_kwargs": {"custom_instructions": SYSTEM, "python_tools": []}},
        "'custom_instructions' looks like a system prompt",
    ),
    "xlam": ({"id": 0, "query": ASKED, "answers": "[]", "tools": json.dumps([FUNCTION])}, "no such columns"),
    "OASST": ({"message_id": "a", "parent_id": None, "text": ASKED, "role": "prompter"}, "single messages"),
    "LIMA": ({"conversations": [ASKED, SAID]}, "a list of texts"),
    "LLaVA": (
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": SAID}]},
        "pictures, sound or video",
    ),
    "Firefly": ({"conversation": [{"human": ASKED, "assistant": SAID}]}, "has no role; found ['assistant', 'human']"),
    "Anthropic tool use": (
        {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "tool_use", "name": "a", "input": {}}]}]},
        "write calls as tool_calls",
    ),
    "ms-swift GRPO pairs": ({"messages": CHAT, "rejected_messages": CHAT}, "a preference"),
    "multiple choice": ({"question": ASKED, "answer": SAID, "choices": ["1", "2"]}, "data.columns.context=choices"),
    "pretokenised": ({"messages": CHAT, "loss_mask": [0, 1]}, "a mask or a weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_reason(name):
    cells, reason = REFUSED[name]
    with pytest.raises(InputError) as caught:
        settled = recognise([("f:1", cells)], columns(), "f")
        encode_batch([to_conversation(("f:1", cells), settled, {})], tiny_tokenizer())
    assert reason in str(caught.value)
