"""Conversations of every shape become messages of one shape."""

from __future__ import annotations

import json

import pytest

from data_preprocess.chat import conversation
from data_preprocess.exchange import UnusableRowError

USER = {"role": "user", "content": "1 + 1?"}
REPLY = {"role": "assistant", "content": "2"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}


def messages_of(messages, **row):
    exchange = conversation(messages, row)
    return [*exchange.prompt, exchange.reply]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, REPLY],
        json.dumps([USER, REPLY]),
        [{**USER, "tool_calls": None, "name": None}, {**REPLY, "tool_calls": []}],  # as Arrow gives them
        [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}],
        [{"from": "user", "value": "1 + 1?"}, {"from": "assistant", "value": "2"}],
        [{"from": "human", "value": "1 + 1?"}, {"from": "model", "value": "2"}],
        [{"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]}, REPLY],
    ],
)
def test_shapes_of_conversations(messages):
    assert messages_of(messages) == [USER, REPLY]


def test_a_thought_among_the_parts_of_a_content_is_not_taken_for_words():
    parts = [{"type": "reasoning", "text": "Fingers ..."}, {"type": "text", "text": "2"}]
    with pytest.raises(UnusableRowError, match="not text alone"):
        messages_of([USER, {**REPLY, "content": parts}])
    assert messages_of([USER, {**REPLY, "content": parts[1:]}])[-1]["content"] == "2"


def test_the_prompt_is_all_before_the_last_reply():
    again = {"role": "user", "content": "And 2 + 2?"}
    exchange = conversation([USER, REPLY, again, {"role": "assistant", "content": "4"}, USER, USER], {})
    assert exchange.prompt == [USER, REPLY, again]
    assert (exchange.question, exchange.answer) == ("And 2 + 2?", "4")
    assert (exchange.style, exchange.ground_truth) == ("model", "4")
    assert exchange.notes == ["messages after the last reply are cut"]
    assert conversation([USER, REPLY], {}).notes == []
    compared = conversation([USER, REPLY], {}, ground_truth="two")
    assert (compared.style, compared.ground_truth, compared.answer) == ("rule", "two", "2")


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        json.dumps([CALL]),
        [{"id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}],
        [{"id": "c1", "name": "add", "arguments": '{"a": 1, "b": 1}'}],
    ],
)
def test_tool_calls_keep_their_arguments_as_json(calls):
    said = messages_of([USER, {"role": "assistant", "tool_calls": calls}])
    assert said == [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]


def test_a_reply_of_tool_calls_alone_is_its_own_answer():
    result = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    exchange = conversation([USER, call], {})
    assert json.loads(exchange.answer) == [CALL["function"]]
    assert messages_of([USER, call, result, REPLY]) == [USER, call, result, REPLY]
    without = {"role": "assistant", "tool_calls": [{"name": "now"}]}
    assert messages_of([USER, without])[1]["tool_calls"][0] == {
        "id": None,
        "type": "function",
        "function": {"name": "now", "arguments": "{}"},
    }


def test_sharegpt_tool_calls():
    said = messages_of(
        [
            {"from": "human", "value": "1 + 1?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 1}}'},
            {"from": "function_response", "value": "2"},
            {"from": "gpt", "value": "2"},
        ]
    )
    assert said == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": None}]},
        {"role": "tool", "content": "2"},
        REPLY,
    ]


@pytest.mark.parametrize("more", [{"train": False}, {"weight": 0}])
def test_a_reply_that_is_not_trained_may_be_empty_or_stand_first(more):
    untrained = {**REPLY, "content": "", **more}
    messages = [untrained, USER, untrained, USER, REPLY]
    assert messages_of(messages) == messages


def test_reasoning_names_and_weights_stay():
    reply = {**REPLY, "reasoning_content": "easy", "weight": 1, "train": True}
    asked = {**USER, "name": "b", "loss_weight": 0.5, "trainable": False}
    assert messages_of([asked, reply]) == [asked, reply]
    exchange = conversation([{**USER, "mood": "good"}, {**REPLY, "mood": "bad"}], {})
    assert exchange.notes == ["the key 'mood' of messages is left out"]


def test_the_rest_of_the_row_stays():
    tools = [{"name": "add", "parameters": {"b": "ü"}}]
    row = {"tools": tools, "enable_thinking": False, "chat_template_kwargs": {"x": 1}, "other": 1}
    assert conversation([USER, REPLY], row).columns == {
        "tools": '[{"name": "add", "parameters": {"b": "ü"}}]',
        "enable_thinking": False,
        "chat_template_kwargs": '{"x": 1}',
    }
    as_text = '[{"name":  "add"}]'  # its own spaces
    assert conversation([USER, REPLY], {"tools": as_text}).columns == {"tools": as_text}
    assert conversation([USER, REPLY], {"tools": [], "enable_thinking": None}).columns == {}
    system = {"role": "system", "content": "Be brief."}
    assert messages_of([USER, REPLY], system="Be brief.") == [system, USER, REPLY]
    assert messages_of([system, USER, REPLY], system="Be brief.") == [system, USER, REPLY]
    assert messages_of([USER, REPLY], system=" ") == [USER, REPLY]


@pytest.mark.parametrize(
    ("messages", "row", "message"),
    [
        (None, {}, "no list of messages: found None"),
        ([], {}, r"no list of messages: found \[\]"),
        ("hello", {}, "no list of messages: found 'hello'"),
        (["hello"], {}, r"a message is no object: messages\[0\] is 'hello'"),
        ([USER], {}, "no reply to anything: found the roles user"),
        ([REPLY, USER], {}, "no reply to anything: found the roles assistant, user"),
        ([USER, {"role": "assistant", "content": " "}], {}, "the last reply is empty"),
        ([USER, {"role": "assistant"}], {}, r"a message has no content: messages\[1\] is"),
        ([{"role": "user", "content": None, "tool_calls": [CALL]}, REPLY], {}, "a message has no content"),
        ([{"role": "boss", "content": "a"}, REPLY], {}, r"no role we know: messages\[0\] has 'boss'"),
        ([{"from": "human", "value": 3}, REPLY], {}, r"the content of a message is of the wrong kind: .* is 3"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], {}, "is not text alone"),
        ([{**USER, "content": "\ud83d"}, REPLY], {}, "half of a surrogate pair"),
        (
            [USER, {**REPLY, "weight": "1"}],
            {},
            r"the weight of a message is of the wrong kind: messages\[1\].weight is '1'",
        ),
        ([USER, {**REPLY, "tool_calls": [{"id": "1"}]}], {}, "a tool call names no function"),
        ([USER, {**REPLY, "tool_calls": [{"name": "f", "arguments": "[1]"}]}], {}, "arguments are no object"),
        ([USER, {**REPLY, "tool_calls": [{"function": "f"}]}], {}, "a tool call names no function"),
        ([USER, {**REPLY, "tool_calls": 3}], {}, "a tool call names no function"),
        ([{"from": ["human"], "value": "a"}, REPLY], {}, r"from nobody we know: messages\[0\] is from \['human'\]"),
        ([{"from": "developer", "value": "a"}, REPLY], {}, "from nobody we know"),
        ([{"role": "system", "content": "a"}, USER, REPLY], {"system": "b"}, "a column and another in the messages"),
        ([REPLY, USER, REPLY], {}, "the assistant speaks first, to no prompt"),
        ([USER, {**REPLY, "content": ""}, USER, REPLY], {}, r"a reply is empty: messages\[1\]"),
        ([{"from": "function_call", "value": "add"}, REPLY], {}, "a tool call names no function"),
        ([USER, REPLY], {"enable_thinking": "false"}, "enable_thinking is no boolean: it is 'false'"),
        ([USER, REPLY], {"tools": "add"}, "tools is no JSON list: it is 'add'"),
    ],
)
def test_conversations_that_are_none(messages, row, message):
    with pytest.raises(UnusableRowError, match=message):
        conversation(messages, row)
