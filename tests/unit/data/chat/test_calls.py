"""Tools and their calls, as Hermes' rows have them: what the template writes is not written twice."""

import pytest

from sft.data.chat.calls import clean_tools, refuse_tools_twice
from sft.data.chat.messages import clean_messages
from sft.data.types import ConfigMistake

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
TEMPLATE = "{{ '<tool_response>' + message.content + '</tool_response>' }}"


def said_by_tool(content, template=TEMPLATE):
    return clean_messages([{"role": "tool", "content": content}], "f:1", template)[0]["content"]


def test_a_result_that_is_wrapped_already_is_wrapped_once():
    assert said_by_tool("<tool_response>\n{}\n</tool_response>") == "{}"
    assert said_by_tool("a <tool_response> b") == "a <tool_response> b"
    assert said_by_tool("<tool_response>a</tool_response><tool_response>b</tool_response>").startswith(
        "<tool_response>"
    )
    assert (
        said_by_tool("<tool_response>a</tool_response>", "{{ message.content }}") == "<tool_response>a</tool_response>"
    )


@pytest.mark.parametrize("system", ["You call <tools>[]</tools>.", 'Tools: {"name": "add", "parameters": {}}'])
def test_tools_in_the_system_message_and_in_a_column_are_refused(system):
    messages = [{"role": "system", "content": system}]
    with pytest.raises(ConfigMistake, match=r"f:1: the system message lists the tools.*data.ignore_columns=\[tools\]"):
        refuse_tools_twice(messages, TOOLS, "f:1")
    refuse_tools_twice(messages, None, "f:1")
    refuse_tools_twice([{"role": "user", "content": system}], TOOLS, "f:1")
    refuse_tools_twice([{"role": "system", "content": "You may add."}], TOOLS, "f:1")


def test_schemas_in_text_are_opened():
    assert clean_tools('[{"name": "f", "parameters": "{}"}]', "f:1") == [{"name": "f", "parameters": {}}]
