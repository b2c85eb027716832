"""Every family of templates: the tokens of each turn say its content and its stop, nothing else."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.chat.apply import wants_parts
from sft.data.chat.encode import MaskError, encode, encode_batch, stop_token_ids
from sft.data.chat.proof import ASKS_THE_MODEL
from sft.data.types import Conversation, RowCounts, Supervision
from sft.errors import InputError
from tests.assets import CHATML, SPECIAL_TOKENS, tiny_tokenizer
from tests.chats import (
    CALL,
    FAMILIES,
    TEMPLATES,
    TOOLS,
    Family,
    assistant,
    every_family,
    hard_texts,
    runs,
    spoken,
    user,
)

thinking_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.thought], ids=lambda family: family.name
)
calling_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.calls], ids=lambda family: family.name
)


def encoded(family: Family, messages: list[dict[str, Any]], **more: Any):
    return encode(messages, family.tokenizer(), **dict(family.options), **more)


def turns(family: Family, messages: list[dict[str, Any]], **more: Any) -> list[str]:
    """What is trained, turn by turn, over all samples of a row."""
    samples = encoded(family, messages, **more)
    return [turn for sample in spoken(samples, family.tokenizer()) for turn in sample]


@every_family
def test_each_turn_is_its_content_and_its_stop(family):
    messages = [user("Why?"), assistant("So it is 42."), user("And?"), assistant("Then 35.")]
    assert turns(family, messages) == [family.said("So it is 42."), family.said("Then 35.")]
    assert len(encoded(family, messages)) == (1 if family.keeps_history else 2)


@every_family
def test_the_tokens_are_those_of_the_generation_prompt_and_of_the_reply(family):
    tokenizer, options = family.tokenizer(), dict(family.options)
    question, reply = user("Why?"), assistant("So it is 42.")
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=True, **options)[
        "input_ids"
    ]
    sampled = tokenizer.encode(family.said("So it is 42."), add_special_tokens=False)
    (sample,) = encoded(family, [question, reply])
    assert sample.input_ids[: len(prompt) + len(sampled)].tolist() == prompt + sampled
    assert sample.loss_weights.tolist() == [
        float(len(prompt) <= n < len(prompt) + len(sampled)) for n in range(len(sample))
    ]


@every_family
def test_a_later_turn_follows_its_own_generation_prompt(family):
    tokenizer, options = family.tokenizer(), dict(family.options)
    messages = [user("Why?"), assistant("So it is 42."), user("And?"), assistant("Then 35.")]
    prompt = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, **options)["input_ids"]
    before, said = runs(encoded(family, messages)[-1], tokenizer)[-1]
    assert (before, said) == (tokenizer.decode(prompt), family.said("Then 35."))


@every_family
def test_generation_stops_where_training_did(family):
    tokenizer = family.tokenizer()
    ids = stop_token_ids(tokenizer, **dict(family.options))
    assert tuple(tokenizer.convert_ids_to_tokens(ids)) == family.stops


@every_family
def test_a_system_message_comes_first_or_is_a_clean_error(family):
    messages = [{"role": "system", "content": "Be brief."}, user("Why?"), assistant("42.")]
    if family.takes_system:
        assert turns(family, messages) == [family.said("42.")]
        ((before, _),) = runs(encoded(family, messages)[0], family.tokenizer())
        assert "Be brief." in before
    else:
        with pytest.raises(InputError, match="System role not supported"):
            encoded(family, messages)


@thinking_families
def test_reasoning_is_trained_where_it_was_thought(family):
    messages = [
        user("Why?"),
        assistant("b", reasoning_content="first"),
        user("And?"),
        assistant("d", thinking="second"),
    ]
    assert turns(family, messages) == [family.thought("first", "b"), family.thought("second", "d")]


def test_reasoning_reaches_a_template_that_knows_it_by_another_name():
    family = family_named("minimind_style")
    text = (TEMPLATES / family.file).read_text().replace("reasoning_content", "reasoning")
    tokenizer = with_text(family.tokenizer(), text)
    samples = encode([user("a"), assistant("b", reasoning_content="t")], tokenizer)
    assert spoken(samples, tokenizer) == [[family.thought("t", "b")]]


@every_family
def test_reasoning_inside_the_content_is_trained_or_is_an_error(family):
    messages = [user("Why?"), assistant("<think>because</think>b")]
    try:
        (turn,) = turns(family, messages)
    except InputError:
        return
    assert "because" in turn and turn.endswith("b" + turn.rpartition("b")[2])


@calling_families
def test_tool_calls_end_with_their_own_stop(family):
    messages = [
        user("BAC?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "42"},
        assistant("It is 42."),
    ]
    first, second = turns(family, messages)
    assert first == family.calls
    assert second == family.said("It is 42.")


def calling(symbol: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "price", "arguments": {"symbol": symbol}}}


@calling_families
def test_each_of_two_calls_to_one_tool_is_trained_or_the_row_is_an_error(family):
    messages = [user("BAC, IBM?"), assistant("", tool_calls=[calling("BAC"), calling("IBM")])]
    if family.name in ("llama3_style", "harmony_style", "gptoss_style"):
        with pytest.raises(InputError, match=r"only one tool call|drops or rewrites part of the message"):
            encoded(family, messages)
    else:
        (turn,) = turns(family, messages)
        assert turn.index("BAC") < turn.rindex("price") < turn.index("IBM")


CALLED = [user("a"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "42"}, assistant("It is 42.")]


@pytest.mark.parametrize("train_on", ["last_assistant", "all"])
def test_a_call_that_the_template_drops_from_history_is_an_error_though_it_is_not_trained(train_on):
    with pytest.raises(InputError, match=r"drops or rewrites messages\[1\] \(assistant\): 'price'"):
        encoded(family_named("chatml"), CALLED, train_on=train_on)


def test_a_thought_that_the_template_drops_from_history_is_legal_where_it_is_not_trained():
    family = family_named("qwen3_style")
    messages = [user("a"), assistant("<think>1</think>b"), user("c"), assistant("d", reasoning_content="2")]
    assert turns(family, messages, train_on="last_assistant") == [family.thought("2", "d")]
    counts = RowCounts()
    encode_batch([Conversation(messages)], family.tokenizer(), Supervision(train_on="all"), counts)
    assert counts == RowCounts(thoughts_left_out=1)


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("qwen3_style", "Write </think> behind it.", 1),
        ("qwen3_style", "It is 42.</think>\n\n42.", 1),  # where the prompt opened it
        ("qwen3_style", "<think>It is 42.</think>42.", 0),
        ("qwen3_style", "It is 42.", 0),
        ("chatml", "Write </think> behind it.", 0),  # which keeps it: words
    ],
)
@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
def test_a_thought_that_was_never_opened_is_counted_where_the_template_makes_one_of_it(name, said, expected, train_on):
    counts = RowCounts()
    messages = [user("a"), assistant(said)]
    encode_batch([Conversation(messages)], family_named(name).tokenizer(), Supervision(train_on), counts)
    assert counts == RowCounts(thoughts_never_opened=expected)


def test_a_thought_that_was_never_opened_and_is_dropped_from_history_is_counted():
    counts, family = RowCounts(), family_named("qwen3_style")
    messages = [user("a"), assistant("Write </think> behind it."), user("b"), assistant("Yes.")]
    encode_batch([Conversation(messages)], family.tokenizer(), Supervision("last_assistant"), counts)
    assert counts == RowCounts(thoughts_never_opened=1)


@every_family
def test_a_stop_token_inside_a_reply_is_an_error(family):
    for stop in family.stops:
        with pytest.raises(MaskError, match=r"messages\[1\]: the reply contains the token that ends a turn"):
            encoded(family, [user("a"), assistant(f"so {stop} and on")])


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def test_a_second_reply_right_behind_a_stop_is_an_error():
    with pytest.raises(InputError, match=r"messages\[2\] follows another.* Merge the messages"):
        encoded(family_named("deepseek_style"), [user("a"), assistant("b"), assistant("c")])


def test_qwen35_wants_its_system_message_first():
    messages = [user("a"), {"role": "system", "content": "b"}, user("c"), assistant("d")]
    with pytest.raises(InputError, match="System message must be at the beginning"):
        encoded(family_named("qwen35_style"), messages)


@pytest.mark.parametrize("name", ["gemma_style", "gemma3_style", "mistral_style"])
def test_roles_that_do_not_alternate_are_an_error(name):
    with pytest.raises(InputError, match="must alternate"):
        encoded(family_named(name), [user("a"), user("b"), assistant("c")])


def test_mistral_moves_its_system_message_so_each_turn_has_its_own_sample():
    family = family_named("mistral_style")
    messages = [{"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"), assistant("d")]
    first, second = (runs(sample, family.tokenizer()) for sample in encoded(family, messages))
    assert first == [("<s>[INST] S\n\na [/INST]", " b</s>")]
    assert second == [("<s>[INST] a [/INST] b</s>[INST] S\n\nc [/INST]", " d</s>")]


def test_phi3_writes_its_eos_after_the_conversation_and_does_not_train_it():
    family = family_named("phi3_style")
    (sample,) = encoded(family, [user("a"), assistant("b")])
    text = family.tokenizer().decode(sample.input_ids)
    assert text == "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|endoftext|>"
    assert spoken([sample], family.tokenizer()) == [["b<|end|>"]]


def test_tokens_that_eat_the_newline_behind_them_leave_that_of_the_reply():
    family = next(family for family in FAMILIES if family.eat_space)
    tokenizer = family.tokenizer()
    (sample,) = encoded(family, [user("a"), assistant("\n b"), user("c"), assistant("d")])
    assert spoken([sample], tokenizer) == [["\n b<|end|>", "d<|end|>"]]
    prompt = tokenizer.encode("<|user|>\na<|end|>\n<|assistant|>\n", add_special_tokens=False)
    reply = tokenizer.encode("\n b<|end|>", add_special_tokens=False)
    assert sample.input_ids[: len(prompt + reply)].tolist() == prompt + reply


def test_glm_ends_the_last_turn_with_the_tag_that_its_template_leaves_out():
    family = family_named("glm_style")
    (sample,) = encoded(family, [user("a"), assistant("b"), user("c"), assistant("d")])
    assert family.tokenizer().decode(sample.input_ids) == (
        "[gMASK]<sop><|user|>\na<|assistant|>\n<think></think>\nb<|user|>\nc<|assistant|>\n<think></think>\nd<|user|>"
    )


def test_a_tag_that_also_opens_the_assistants_turn_stops_nothing():
    text = (TEMPLATES / "glm_style.jinja").read_text().replace("'<|' + message.role + '|>", "'<|assistant|>")
    family = family_named("glm_style")
    tokenizer = family.tokenizer()
    with pytest.raises(InputError, match="holds no special token"):
        encode([user("a"), assistant("b")], with_text(tokenizer, text))


def with_text(tokenizer: Any, template: str) -> Any:
    other = deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_harmony_history_ends_otherwise_than_it_was_sampled():
    family = family_named("harmony_style")
    messages = [user("a"), assistant("b", thinking="t"), user("c"), assistant("d")]
    _, second = (runs(sample, family.tokenizer()) for sample in encoded(family, messages))
    ((before, _),) = second
    assert before.endswith("<|channel|>final<|message|>b<|end|><|start|>user<|message|>c<|end|><|start|>assistant")


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [("assistant", "model"), ("assistant<think>now", "assistant"), ("assistant<think>", "assistant said")],
)
def test_a_prompt_that_ends_with_another_header_than_the_reply_has_is_an_error(prompt, reply):
    headers = CHATML.replace("assistant", prompt).replace("message.role +", "names.get(message.role, message.role) +")
    tokenizer = tiny_tokenizer(f"{{%- set names = {{'assistant': '{reply}'}} %}}" + headers)
    with pytest.raises(InputError, match="is not what stands before a reply"):
        encode([user("a"), assistant("b")], tokenizer)


# Prompts that are no prefix of the rendered reply: what a server sends, and what is sampled behind it

SYSTEM = {"role": "system", "content": "Be brief."}


def served_and_sampled(name: str, messages: list[dict[str, Any]], *turns: int, **options: Any) -> list[str]:
    """What is sampled for each of `turns`, the last turn of a sample of its own behind the ids that a server sends."""
    tokenizer = family_named(name).tokenizer()
    samples = encode(messages, tokenizer, **options)
    assert len(samples) == len(turns)
    # gpt-oss's template calls it so; transformers 5.17 does not say it under that name yet.
    served = [
        {"thinking": turn["reasoning_content"], **turn} if "reasoning_content" in turn else turn for turn in messages
    ]
    for sample, k in zip(samples, turns, strict=True):
        prompt = tokenizer.apply_chat_template(served[:k], add_generation_prompt=True, tokenize=False, **options)
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        end = np.flatnonzero(sample.loss_weights)[-1] + 1
        assert sample.input_ids[: len(ids)].tolist() == ids
        assert sample.loss_weights[len(ids) : end].all() and not sample.loss_weights[len(ids) - 1]
    return [turn for sample in spoken(samples, tokenizer) for turn in sample]


def test_mistral_has_its_system_text_in_the_last_question_of_every_turn():
    messages = [SYSTEM, user("q"), assistant("{a}"), user("q"), assistant("b"), user("q"), assistant("{a}")]
    assert served_and_sampled("mistral_v3_style", messages, 2, 4, 6) == [" {a}</s>", " b</s>", " {a}</s>"]


def test_mistral_asked_with_nothing_but_the_system_text():
    assert served_and_sampled("mistral_v3_style", [SYSTEM, user(""), assistant("a")], 2) == [" a</s>"]


def test_gemma4_is_asked_with_an_empty_thought():
    messages = [SYSTEM, user("q"), assistant("a"), user("q"), assistant("b")]
    assert served_and_sampled("gemma4_style", messages, 2, 4) == ["a<turn|>", "b<turn|>"]
    assert served_and_sampled("gemma4_style", messages[:3], 2, enable_thinking=True) == ["a<turn|>"]
    with pytest.raises(MaskError, match="drops or rewrites part of the message: expected 'because'"):
        encode([user("q"), assistant("a", reasoning_content="because")], family_named("gemma4_style").tokenizer())


HERMES = (
    "{% for tool in tools %}<tools>{{ tool.function.name }}</tools>\n{% endfor %}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '\n' if message.role == 'tool' and not loop.last }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def test_hermes_template_for_tools_cannot_do_without_them_and_writes_a_newline_behind_an_answered_result():
    tokenizer = with_text(tiny_tokenizer(), HERMES)
    samples = encode(CALLED, tokenizer, tools=TOOLS)
    assert spoken(samples, tokenizer) == [
        ['<tool_call>price{"symbol": "BAC"}</tool_call><|im_end|>', "It is 42.<|im_end|>"]
    ]
    (_, (before, _)) = runs(samples[0], tokenizer)
    assert before.endswith("<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_ends_the_turn_before_a_call_is_said_to_be_at_fault():
    template = HERMES.replace("'<tool_call>' + call", "'<|im_end|><tool_call>' + call")
    with pytest.raises(MaskError, match=r"The chat template writes '<\|im_end\|>' there; set data\.chat_template"):
        encode(CALLED, with_text(tiny_tokenizer(), template), tools=TOOLS)


def test_the_switch_with_which_a_template_shows_the_thought_is_named():
    template = CHATML.replace(
        "message.content", "(message.reasoning_content or '' if thinking else '') + message.content"
    )
    messages = [user("q"), assistant("a", reasoning_content="because ")]
    tokenizer = with_text(tiny_tokenizer(), template)
    with pytest.raises(
        MaskError, match=r"With data\.apply_chat_template_kwargs\.thinking=true the template renders this"
    ):
        encode(messages, tokenizer)
    assert spoken(encode(messages, tokenizer, thinking=True), tokenizer) == [["because a<|im_end|>"]]


def test_nemotron_closes_the_thought_that_its_prompt_opens():
    messages = [SYSTEM, user("q"), assistant("a", reasoning_content="1"), user("q"), assistant("b")]
    assert served_and_sampled("nemotron3_style", messages, 2, 4) == ["1\n</think>\na<|im_end|>", "</think>b<|im_end|>"]
    assert served_and_sampled("nemotron3_style", [*messages[:2], assistant("a")], 2, enable_thinking=False) == [
        "a<|im_end|>"
    ]


@pytest.mark.parametrize(
    ("reply", "sampled"),
    [
        (assistant("a", reasoning_content="1"), "1\n</think>\n\na"),
        (assistant("<think>\n1\n</think>\n\na"), "1\n</think>\n\na"),
        (assistant("<think>1</think>a"), "1\n</think>\n\na"),
        (assistant("1</think>a"), "1\n</think>\n\na"),
        (assistant("a"), "\n</think>\n\na"),
        (assistant("a", reasoning_content=" "), "\n</think>\n\na"),
    ],
)
def test_deepseek_r1_thinks_behind_the_tag_that_its_prompt_opens(reply, sampled):
    stop = "<｜end▁of▁sentence｜>"
    messages = [SYSTEM, user("q"), reply, user("q"), assistant("b", reasoning_content="2")]
    assert served_and_sampled("deepseek_r1_style", messages, 2, 4) == [sampled + stop, "2\n</think>\n\nb" + stop]


def test_gptoss_keeps_its_reasoning_before_a_call_until_the_final_is_there():
    messages = [
        SYSTEM,
        user("BAC?"),
        assistant("", tool_calls=[CALL], reasoning_content="look"),
        {"role": "tool", "content": '{"price": "42"}'},
        assistant("It is 42.", reasoning_content="done"),
        user("BAC?"),
        assistant("42."),
    ]
    family = family_named("gptoss_style")
    samples = encode(messages, family.tokenizer())
    called = "<|channel|>analysis<|message|>look<|end|><|start|>assistant" + str(family.calls)
    final = family.thought("done", "It is 42.")
    assert spoken(samples, family.tokenizer()) == [[called, final], [family.said("42.")]]
    before = family.tokenizer().decode(samples[1].input_ids)
    assert "look" not in before and "done" not in before
    assert served_and_sampled("gptoss_style", messages, 4, 6)[1:] == [final, family.said("42.")]


def test_a_system_text_that_no_turn_of_the_prompt_shows_is_an_error():
    messages = [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")]
    tokenizer = family_named("mistral_v3_style").tokenizer()
    hidden = with_text(
        tokenizer, tokenizer.chat_template.replace("if loop.last and", "if loop.first and loop.last and")
    )
    with pytest.raises(InputError, match=r"drops or rewrites messages\[0\] \(system\)"):
        encode(messages, hidden)


def test_a_template_that_drops_the_thought_inside_the_content_is_an_error():
    with pytest.raises(MaskError, match="drops or rewrites part of the message: expected 'because'"):
        encoded(family_named("deepseek_style"), [user("a"), assistant("<think>because</think>b")])


# data.thinking_history


THOUGHTS = [user("a"), assistant("b", reasoning_content="1"), user("c"), assistant("d", reasoning_content="2")]


def test_last_trains_what_one_text_has_as_it_was_sampled():
    family = family_named("qwen3_style")
    messages = [*THOUGHTS, {"role": "tool", "content": "e"}, assistant("f", reasoning_content="3")]
    assert turns(family, messages, thinking_history="last") == [
        family.thought("2", "d"),
        family.thought("3", "f"),
    ]
    (sample,) = encoded(family, messages, thinking_history="last")
    assert "1" not in family.tokenizer().decode(sample.input_ids)


@pytest.mark.parametrize("name", ["qwen35_style", "glm_style", "minimind_style"])
def test_preserved_trains_all_reasoning_in_one_sample(name):
    family = family_named(name)
    (sample,) = encoded(family, THOUGHTS, thinking_history="preserved")
    assert [turn for _, turn in runs(sample, family.tokenizer())] == [
        family.thought("1", "b"),
        family.thought("2", "d"),
    ]


def test_preserved_is_refused_where_the_template_cannot():
    with pytest.raises(MaskError, match=r"messages\[1\]: data.thinking_history=preserved.*data.thinking_history=auto"):
        encoded(family_named("qwen3_style"), THOUGHTS, thinking_history="preserved")


# Any conversation, at every template

pairs = st.lists(st.tuples(hard_texts, hard_texts), min_size=1, max_size=2)


@every_family
@settings(max_examples=50, deadline=None, derandomize=True)
@given(system=st.one_of(st.none(), st.just(""), hard_texts), exchanges=pairs)
def test_any_conversation_gives_exact_spans_or_a_clean_error(family, system, exchanges):
    messages = [message for asked, said in exchanges for message in (user(asked), assistant(said))]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        found = turns(family, messages)
    except InputError as error:
        # Only what we know to be refused: control tokens, a thought taken apart, a role that the template refuses.
        replies = [said for _, said in exchanges]
        stops = any(stop in said for stop in family.stops for said in replies)
        thoughts = any("think>" in said or "<|channel|>" in said for said in replies)
        special = {*family.tokens, family.bos or family.eos, family.eos, *SPECIAL_TOKENS}
        controls = any(token in said for token in special for said in replies)
        rendered = any(ASKS_THE_MODEL.search(asked.rstrip()) for asked, _ in exchanges)
        assert stops or controls or thoughts or rendered or (system is not None and not family.takes_system), error
        return
    exact = [family.said(said) for _, said in exchanges]
    if not any("</think>" in said for _, said in exchanges):
        assert found == exact
    else:  # the thought was taken out of the content, and stands where the template puts thoughts
        for turn, (_, said) in zip(found, exchanges, strict=True):
            assert turn.endswith(family.stops[0])
            assert all(piece.strip() in turn for piece in said.replace("<think>", "</think>").split("</think>"))


@pytest.mark.parametrize(
    ("eos", "said"),
    [
        ("<|endoftext|>", "<|START_RESPONSE|>b<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("<|END_RESPONSE|>", "<|START_RESPONSE|>b<|END_RESPONSE|>"),
    ],
)
def test_of_two_tokens_that_end_a_turn_the_eos_stops_or_else_the_last(eos, said):
    tokenizer = with_text(family_named("cohere_style").tokenizer(), (TEMPLATES / "cohere_style.jinja").read_text())
    tokenizer.add_tokens(["<|END_OF_TURN_TOKEN|>"], special_tokens=True)
    tokenizer.eos_token = eos
    assert spoken(encode([user("a"), assistant("b")], tokenizer), tokenizer) == [[said]]


def test_a_prompt_is_never_taken_back_to_the_middle_of_a_tag():
    # DeepSeek-V3.1's prompt for plain replies ends with </think>; one that thinks begins with <think> instead.
    text = (TEMPLATES / "deepseek_style.jinja").read_text()
    no_thought = "{%- if not message.reasoning_content %}{{- '</think>' }}{% elif"
    text = text.replace("{%- if message.reasoning_content and", no_thought).replace("'<think>\\n'", "'<think>'")
    tokenizer = with_text(
        family_named("deepseek_style").tokenizer(), text + "{% if add_generation_prompt %}{{- '</think>' }}{% endif %}"
    )
    stop = "<｜end▁of▁sentence｜>"
    assert spoken(encode([user("a"), assistant("b")], tokenizer), tokenizer) == [["b" + stop]]
    thinking = encode([user("a"), assistant("b", reasoning_content="t")], tokenizer)
    assert spoken(thinking, tokenizer) == [["<think>t\n</think>\n\nb" + stop]]


def test_a_template_that_shows_only_parts_is_given_parts():
    tokenizer = tiny_tokenizer((TEMPLATES / "smolvlm_style.jinja").read_text())
    tokenizer.add_special_tokens({"eos_token": "<end_of_utterance>"})
    messages = [user("Why?"), assistant("So it is 42."), user("And?"), assistant("Then 35.")]
    (sample,) = encode(messages, tokenizer)
    assert spoken([sample], tokenizer) == [[" So it is 42.<end_of_utterance>", " Then 35.<end_of_utterance>"]]
    in_parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    text = tokenizer.apply_chat_template(in_parts, tokenize=False)
    assert tokenizer.decode(sample.input_ids) == text and "User: And?<end_of_utterance>" in text
    assert encode(in_parts, tokenizer)[0].input_ids.tolist() == sample.input_ids.tolist()


def test_a_template_that_shows_text_is_given_text():
    either = CHATML.replace("message.content", "(message.content if message.content is string else 'x'.type)")
    for template in (CHATML, either, "{{ messages[0].type }}"):
        assert not wants_parts(tiny_tokenizer(template), template)
    template = (TEMPLATES / "smolvlm_style.jinja").read_text()
    assert wants_parts(tiny_tokenizer(template), template)
