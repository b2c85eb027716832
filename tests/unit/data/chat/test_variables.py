"""Variables that a template does not read, and markup that is no token, are said."""

import pytest

from sft.data.chat.variables import message_keys, refuse_unread, remarks, unread, variables
from sft.data.types import ConfigMistake
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import FAMILIES

THINKS = CHATML + "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}"


def test_the_variables_are_those_that_the_template_looks_up():
    assert variables(tiny_tokenizer(THINKS)) == {"messages", "add_generation_prompt", "enable_thinking"}
    date = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d') %}{%- endif %}{{ date_string }}"
    )
    assert variables(tiny_tokenizer("{%- generation %}" + date + "{% endgeneration -%}")) == {
        "date_string",
        "strftime_now",
    }
    several = tiny_tokenizer(CHATML)
    several.chat_template = {"default": CHATML, "tool_use": THINKS + "{{- tools | tojson }}"}
    assert variables(several) == {"messages", "add_generation_prompt", "enable_thinking", "tools"}


@pytest.mark.parametrize("template", [None, "{% if"])
def test_of_a_template_that_cannot_be_read_nothing_is_said(template):
    tokenizer = tiny_tokenizer(template)
    assert variables(tokenizer) is None
    assert list(remarks(tokenizer, {"enable_thinking": False})) == []


def test_a_variable_that_nothing_reads_is_said_with_what_may_be_meant():
    assert list(remarks(tiny_tokenizer(THINKS), {"enable_thinking": False})) == []
    start = "the chat template does not read {} of data.apply_chat_template_kwargs, which so changes nothing; "
    assert list(remarks(tiny_tokenizer(THINKS), {"enable_thinkin": False, "place": 1})) == [
        start.format("enable_thinkin") + "did you mean enable_thinking?",
        start.format("place") + "it reads enable_thinking",
    ]
    assert list(remarks(tiny_tokenizer(), {"message": 1})) == [
        start.format("message") + "it has no variables of its own"
    ]
    assert list(unread(["a"], None, "x")) == []


def test_markup_that_is_no_token_is_said():
    other = CHATML.replace("<|im_start|>", "<|turn_start|>").replace("<|im_end|>\\n", "<|turn_end|><|im_end|>\\n")
    (line,) = remarks(tiny_tokenizer(other), {})
    assert line.startswith(
        "the chat template writes <|turn_start|>, <|turn_end|>, of which the tokenizer makes several"
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_of_a_template_with_its_own_tokenizer_nothing_is_said(family):
    assert list(remarks(family.tokenizer(), dict(family.options))) == []


def test_a_variable_that_is_a_prompt_and_that_nothing_reads_is_refused():
    """The rows of SmolTalk 2 keep their system prompt and tools there."""
    switches = {"enable_thinking": False, "reasoning_effort": "low", "custom_instructions": "", "python_tools": []}
    refuse_unread(switches, THINKS, "f:1")
    for more in ({"custom_instructions": "Be brief."}, {"python_tools": ["def f(): ..."]}, {"documents": [{"a": "b"}]}):
        with pytest.raises(ConfigMistake, match=f"f:1: the chat template does not read .*{next(iter(more))!r}"):
            refuse_unread({**switches, **more}, THINKS, "f:1")
    refuse_unread({"custom_instructions": "Be brief."}, "{{ custom_instructions }}", "f:1")


def test_the_keys_of_messages_that_a_template_looks_up():
    assert {"role", "content"} <= message_keys(tiny_tokenizer(CHATML))
    assert "mood" in message_keys(tiny_tokenizer(CHATML + "{{ messages[0].mood }}"))
    assert message_keys(tiny_tokenizer(None)) == frozenset()
