"""Messages as people write them: synonyms are read, what nobody reads is refused, what is no JSON is named."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pytest

from sft.data.chat.calls import clean_tools
from sft.data.chat.encode import encode, encode_batch
from sft.data.chat.messages import clean_messages, is_silent
from sft.data.chat.values import plain
from sft.data.types import ConfigMistake, Conversation, Supervision
from sft.errors import InputError
from tests.assets import tiny_tokenizer

USER = {"role": "user", "content": "a"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def reply(**more):
    return {"role": "assistant", "content": "b", **more}


def cleaned(message):
    return clean_messages([USER, message], "row")[1]


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"train_spans": [[0, 3]]}, "a mask or a weight"),
        ({"lossMask": 0}, "a mask or a weight"),
        ({"is_masked": True}, "a mask or a weight"),
        ({"images": ["a.png"]}, "pictures, sound or video"),
        ({"rejected": "c"}, "a preference"),
        ({"tool_schemas": [{"name": "f"}]}, "tools"),
        ({"function_call": {"name": "f"}}, "tools"),
        ({"system_prompt": "Be brief."}, "a system prompt"),
        ({"chainOfThought": "Hm."}, "reasoning"),
        ({"prefix": True}, "the beginning of a reply"),
        ({"channel": "analysis"}, "who speaks to whom"),
        ({"value": "other words"}, "words of the message"),
    ],
)
def test_a_key_that_means_something_and_is_not_read_is_refused(more, kind):
    with pytest.raises(ConfigMistake, match=r"row: messages\[1\] has keys that nobody reads") as caught:
        cleaned(reply(**more))
    assert kind in str(caught.value) and f"data.ignore_message_keys=[{next(iter(more))}]" in str(caught.value)


def test_what_says_nothing_or_is_read_by_the_template_passes():
    empty = {"images": [], "train_spans": None, "function_call": None, "tool_schemas": "", "prefix": False}
    harmless = {"id": 7, "timestamp": "now", "name": "Ann", "value": "b", "eot": True}
    assert cleaned(reply(**empty, **harmless)).keys() >= {"role", "content", "id"}
    template = "{% if message.channel %}{{ message['channel'] }}{% endif %}"
    assert clean_messages([USER, reply(channel="final")], "row", template)[1]["channel"] == "final"
    with pytest.raises(ConfigMistake, match="pictures"):  # a template that shows them does not make us read them
        clean_messages([USER, reply(images=["a.png"])], "row", "{{ message.images }}")


@pytest.mark.parametrize(
    "thought",
    [
        {"thought": "Hm."},
        {"thoughts": ["Hm."]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}], "reasoning": "Hm."},
        {"content": [{"type": "thinking", "content": "Hm."}, {"type": "text", "text": "b"}]},
    ],
)
def test_reasoning_has_many_names(thought):
    message = cleaned(reply(**thought))
    assert (message.get("reasoning_content") or message["reasoning"], message["content"]) == ("Hm.", "b")
    assert message.keys() <= {"role", "content", "reasoning_content", "reasoning"}


def test_reasoning_that_is_no_text_or_said_twice_is_an_error():
    with pytest.raises(InputError, match=r"reasoning_details \(assistant\) must be"):
        cleaned(reply(reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}]))
    with pytest.raises(InputError, match="more than once, and differently: thought and thinking"):
        cleaned(reply(thought="a", thinking="b"))


def test_a_thought_between_tags_and_in_a_key_is_one():
    message = cleaned(reply(content="<think>\nHm.\n</think>\n\nb", reasoning_content="Hm."))
    assert (message["content"], message["reasoning_content"]) == ("b", "Hm.")
    assert cleaned(reply(content="<think>Hm.</think>b"))["content"] == "<think>Hm.</think>b"  # for the template
    with pytest.raises(InputError, match="differently: <think> in its content and thinking"):
        cleaned(reply(content="<think>So.</think>b", thinking="Hm."))


def test_a_thought_that_does_not_end_was_cut_off():
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match=r"messages\[1\] opens a thought that does not end \('<think>Hm"):
        encode([USER, reply(content="<think>Hm")], tokenizer)
    for said in (reply(content="Write <think> first."), reply(content="<think>Hm</think>b")):
        assert encode([USER, said], tokenizer)
    assert encode([USER, reply(content="<think>Hm", train=False), USER, reply()], tokenizer)


def test_only_the_assistant_thinks():
    for key in ("reasoning_content", "thinking"):
        with pytest.raises(InputError, match=rf"messages\[0\].{key} \(user\) is a thought"):
            clean_messages([{**USER, key: "Hm."}, reply()], "row")
        assert clean_messages([{**USER, key: ""}, reply()], "row")[0]["content"] == "a"


@pytest.mark.parametrize("key", ["text", "content", "value", "input_text"])
def test_the_text_of_a_part_has_many_names(key):
    assert cleaned(reply(content=[{"type": "text", key: "four"}]))["content"] == "four"


@pytest.mark.parametrize(
    "part", [{"type": "text", "body": "a"}, {"type": "text", "text": "a", "value": "b"}, {"type": "image"}]
)
def test_parts_without_words_are_refused(part):
    with pytest.raises(InputError, match="content must be text"):
        cleaned(reply(content=[part]))


def test_a_mask_of_a_part_that_nobody_reads_is_refused():
    with pytest.raises(ConfigMistake, match=r"messages\[1\].content\[0\]: 'loss_weights' looks like a mask"):
        cleaned(reply(content=[{"type": "text", "text": "a", "loss_weights": [0]}]))


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        CALL,
        json.dumps([CALL]),
        [json.dumps(CALL)],
        [{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}],
        [{"type": "function", "function": {"name": "add", "kwargs": {"a": 1}}}],
        [{"type": "function", "function": {"name": "add", "params": '{"a": 1}'}}],
        [{"type": "function", "function": json.dumps({"name": "add", "arguments": '{"a": 1}'})}],
        np.array([CALL], dtype=object),
    ],
)
def test_tool_calls_as_files_write_them(calls):
    assert cleaned({"role": "assistant", "tool_calls": calls})["tool_calls"] == [CALL]


def test_calls_that_lose_something_are_errors():
    for call, message in (
        ({"function": {"name": "f", "arguments": {}, "result": "4"}}, "'result', which no chat template reads"),
        ({"function": {"name": "f", "arguments": {}, "parameters": {}}}, "states its arguments by arguments and"),
        ({"function": {"name": "f", "values": {"a": 1}}}, "'values', which no chat template reads"),
        ({"function": {"name": " ", "arguments": {}}}, "must name a function"),
    ):
        with pytest.raises(InputError, match=message):
            cleaned({"role": "assistant", "tool_calls": [call]})
    extra = {**CALL, "extra_content": {"signature": "a"}}
    assert cleaned({"role": "assistant", "tool_calls": [extra]})["tool_calls"] == [extra]
    assert "tool_calls" not in cleaned(reply(tool_calls=[]))
    with pytest.raises(InputError, match="only the assistant does"):
        clean_messages([{**USER, "tool_calls": [CALL]}], "row")


@pytest.mark.parametrize(
    "tools",
    [
        [SCHEMA],
        SCHEMA,
        json.dumps([SCHEMA]),
        json.dumps(SCHEMA),
        [json.dumps(SCHEMA)],
        [{"type": "function", "function": {"name": "add", "parameters": '{"type": "object"}'}}],
        np.array([SCHEMA], dtype=object),
    ],
)
def test_tools_as_files_write_them(tools):
    assert clean_tools(tools, "row") == [SCHEMA]


@pytest.mark.parametrize(
    "tools", [{"add": {"name": "add"}}, [{"description": "Adds.", "parameters": {}}], [{"type": "function"}]]
)
def test_tools_that_nobody_can_call_are_errors(tools):
    with pytest.raises(InputError, match=r"row: tools\[0\] has no name; found \["):
        clean_tools(tools, "row")
    assert clean_tools([{"type": "web_search"}], "row") == [{"type": "web_search"}]


def test_the_words_of_a_result_under_another_key_are_not_lost():
    for key in ("output", "result"):
        with pytest.raises(ConfigMistake, match=f"'{key}' looks like words of the message") as caught:
            clean_messages([USER, {"role": "tool", "content": "", key: "4"}], "row")
        assert "data.message_keys" not in str(caught.value)  # of all messages


def test_who_speaks_in_a_key_that_nobody_reads_is_not_silent():
    for more in ({"tool_call": CALL}, {"text": "b"}, {"rationale": "b"}):
        assert not is_silent({"role": "assistant", "content": "", **more})
    assert is_silent({"role": "assistant", "content": "", "score": 1, "tool_call": None})


def test_no_tools_are_no_tools():
    assert [clean_tools(tools, "row") for tools in (None, [], "", "[]", "null", "{}")] == [None] * 6


def test_values_of_arrow_numpy_and_pandas_become_those_of_json():
    values = {
        "array": np.array([[1, 2], [3, 4]]),
        "texts": np.array(["a", "b"], dtype=object),
        "number": np.float32(0.5),
        "yes": np.bool_(True),
        "day": datetime.date(2024, 5, 1),
        "time": datetime.datetime(2024, 5, 1, 12, 30),
        "nanoseconds": np.datetime64("2024-05-01T12:30:00.000000001"),
        "price": Decimal("9.90"),
        "whole": Decimal(7),
        "tuple": (1, (2,)),
    }
    assert plain(values) == {
        "array": [[1, 2], [3, 4]],
        "texts": ["a", "b"],
        "number": 0.5,
        "yes": True,
        "day": "2024-05-01",
        "time": "2024-05-01T12:30:00",
        "nanoseconds": "2024-05-01T12:30:00.000000001",
        "price": 9.9,
        "whole": 7,
        "tuple": [1, [2]],
    }
    assert json.loads(json.dumps(plain(values))) == plain(values)


@pytest.mark.parametrize("value", [b"bytes", float("nan"), {1}, object(), datetime.timedelta(1)])
def test_what_json_cannot_say_is_refused_with_its_path(value):
    schema = {"name": "f", "parameters": {"properties": {"day": {"default": [value]}}}}
    with pytest.raises(InputError, match=r"row: tools\[0\].parameters.properties.day.default\[0\] is "):
        clean_tools([schema], "row")
    with pytest.raises(InputError, match=r"row: messages\[1\].extra.a is .*which JSON cannot say"):
        cleaned(reply(extra={"a": value}))


@pytest.mark.parametrize(
    "flag", [{"loss": False}, {"training": False}, {"loss_mask": 0}, {"masked": True}, {"loss_scale": 0.0}, {"loss": 0}]
)
def test_an_untrained_turn_has_many_names(flag):
    tokenizer = tiny_tokenizer()
    messages = [USER, reply(**flag), USER, {"role": "assistant", "content": "d"}]
    expected = encode([USER, reply(train=False), *messages[2:]], tokenizer)[0]
    (sample,) = encode(messages, tokenizer)
    assert sample.loss_weights.tolist() == expected.loss_weights.tolist() and (sample.loss_weights == 0).sum() > 5


def test_a_recorded_loss_is_no_flag():
    with pytest.raises(InputError, match=r"loss must be true or false, found 2.31"):
        encode([USER, reply(loss=2.31)], tiny_tokenizer())


def trained(conversation, train_on="assistant"):
    tokenizer = tiny_tokenizer()
    (samples,) = encode_batch([conversation], tokenizer, Supervision(train_on))
    return [tokenizer.decode(sample.input_ids[sample.loss_weights > 0]) for sample in samples]


def test_what_the_prompt_gives_is_history():
    messages = [USER, reply(content="given"), USER, reply(content="new")]
    assert trained(Conversation(messages, given=3)) == ["new<|im_end|>"]
    assert trained(Conversation(messages)) == ["given<|im_end|>new<|im_end|>"]


def test_a_prefill_is_not_trained():
    messages = [USER, reply(content="The sum is four.")]
    assert trained(Conversation(messages, given=1, prefill="The sum is")) == [" four.<|im_end|>"]
    with pytest.raises(InputError, match="does not show the beginning of the reply"):
        trained(Conversation([USER, reply()], given=1, prefill="other"))


def test_custom_trains_several_roles():
    messages = [{**USER, "content": "Apple?", "train": True}, reply(content="Fruit.", train=True)]
    assert trained(Conversation(messages), "custom") == ["Apple?Fruit.<|im_end|>"]


def test_the_weight_of_a_row_multiplies_those_of_its_messages():
    tokenizer = tiny_tokenizer()
    messages = [USER, reply(weight=0.5), USER, reply()]
    plain_row, half, none = encode_batch(
        [Conversation(messages, weight=weight) for weight in (1.0, 0.5, 0.0)], tokenizer
    )
    assert none == []
    assert half[0].loss_weights.tolist() == (plain_row[0].loss_weights / 2).tolist()
    assert {0.25, 0.5} == set(half[0].loss_weights[half[0].loss_weights > 0].tolist())
