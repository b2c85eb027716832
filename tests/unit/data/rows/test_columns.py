"""Every column is read, or harmless, or stops the run with the way out; a column that is named is never guessed."""

import json

import pytest

from sft.data.rows.formats import to_conversation, to_document
from sft.data.rows.recognise import recognise
from sft.data.rows.verdict import verdict
from sft.data.types import ConfigMistake, RowError
from sft.errors import InputError
from tests.assets import write_jsonl
from tests.rows import ROW, columns

QUESTION, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
CHAT = {"messages": [QUESTION, ANSWER]}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
ROWS = {
    "messages": CHAT,
    "sharegpt": {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    "prompt_response": ROW,
    "alpaca": {"instruction": "1 + 1?", "output": "2"},
    "dolly": {"instruction": "1 + 1?", "response": "2"},
    "openorca": {"system_prompt": "", "question": "1 + 1?", "response": "2"},
}


def converted(cells, **changes):
    return to_conversation(("f:1", cells), recognise([("f:1", cells)], columns(**changes), "f"), {})


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_all_formats_read_system_history_tools_and_weight(row):
    more = {"system_message": "Be brief.", "history": [["Hi.", "Hello."]], "weight": 0.5}
    functions = {"functions": [{"name": "f", "parameters": {}}]}
    conversation = converted({**row, **more, **functions})
    assert conversation.messages == [SYSTEM, *EARLIER, QUESTION, ANSWER]
    assert conversation.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert (conversation.weight, conversation.given) == (0.5, 0)
    named = {"rules": "Be brief.", "turns": EARLIER, "api": [{"name": "f"}], "how_much": 2}
    keys = {"system_key": "rules", "history_key": "turns", "tools_key": "api", "weight_key": "how_much"}
    conversation = converted({**row, **named}, **keys)
    assert conversation.messages == [SYSTEM, *EARLIER, QUESTION, ANSWER]
    assert (conversation.tools, conversation.weight) == ([{"name": "f"}], 2.0)


@pytest.mark.parametrize(
    ("more", "kind", "way_out"),
    [
        ({"personaSystem": "Be brief."}, "a system prompt", "data.columns.system=personaSystem"),
        ({"available_tools": [{"name": "f"}]}, "tools", "data.columns.tools=available_tools"),
        ({"chat_history": [["a", "b"]]}, "earlier turns", "data.columns.history=chat_history"),
        ({"loss_mask": [0, 1]}, "a mask or a weight", "Leave them out"),
        ({"train": False}, "a mask or a weight", "data.columns.weight=train"),
        ({"rationale": "Hm."}, "reasoning", "data.columns.reasoning=rationale"),
        ({"images": ["a.png"]}, "pictures, sound or video", "Leave them out"),
        ({"kto_tag": False}, "a preference", "Leave them out"),
        ({"chosen": "a", "rejected": "b"}, "a preference", "data.ignore_columns=[chosen,rejected]"),
        ({"documents": ["a"]}, "documents", "data.columns.context=documents"),
        ({"apis": [{"name": "f", "parameters": {}}]}, "tools", "data.columns.tools=apis"),
        ({"schemata": [{"name": "f", "parameters": {}}]}, "tools", "data.columns.tools=schemata"),
        ({"conversations": [ANSWER]}, "another conversation", "data.columns.messages=conversations"),
        ({"deleted": True}, "a sign that it is to be left out", "Leave them out"),
        ({"mask_history": True}, "a mask or a weight", "Leave them out"),
        ({"metadata": {"train": False}}, "a mask or a weight", "mean something: 'metadata'"),
        ({"reasoning_effort": "high"}, "a switch of the chat template", "'high'). Leave them out"),
        ({"use_thinking": True}, "a switch of the chat template", "data.columns.enable_thinking=use_thinking"),
        ({"documents": [{"title": "a", "text": "b"}]}, "documents", "Leave them out"),
    ],
)
def test_a_column_that_means_something_stops_the_run(more, kind, way_out):
    for row in (CHAT, ROW):
        with pytest.raises(ConfigMistake) as caught:
            converted({**row, **more})
        told = str(caught.value)
        assert kind in told and way_out in told and f"data.ignore_columns=[{','.join(more)}]" in told
        assert converted({**row, **more}, ignored=tuple(more)).messages[-1] == ANSWER
        assert converted({**row, **dict.fromkeys(more)}).messages[-1] == ANSWER  # null in every row


def test_a_column_that_shows_in_a_later_row_stops_the_run_and_drop_does_not_excuse_it(open_rows_of):
    rows = [ROW] * 300
    for bad_rows in ("error", "drop"):
        with pytest.raises(InputError, match=r"rows.jsonl:301 has columns that nobody reads .*'images'"):
            open_rows_of([*rows, {**ROW, "images": ["a.png"]}], bad_rows=bad_rows)
    assert open_rows_of([*rows, {**ROW, "answer": ""}], bad_rows="drop").facts.counts.bad_rows == 1


def test_drop_is_not_offered_for_what_it_does_not_excuse(open_rows_of):
    mistake, bad = {**ROW, "images": ["a.png"]}, {**ROW, "answer": ""}
    for rows, tail in (
        ([bad], "Mend them, or set data.bad_rows=drop to leave such rows out."),
        ([mistake], "Mend the configuration as it says there: data.bad_rows=drop leaves out bad rows, not this."),
        ([mistake, bad], "Mend the configuration as it says there: data.bad_rows=drop leaves out the other rows."),
    ):
        with pytest.raises(InputError) as caught:
            open_rows_of([*[ROW] * 100, *rows])
        assert str(caught.value).endswith(tail)


@pytest.fixture
def open_rows_of(tmp_path, open_file):
    return lambda rows, **more: open_file(write_jsonl(tmp_path / "rows.jsonl", rows), **more)


def test_plain_text_has_the_same_rule():
    cells = {"text": "a", "weight": 2, "title": "b"}
    settled = recognise([("f:1", cells)], columns(), "f")
    assert to_document(("f:1", cells), settled).weight == 2
    with pytest.raises(ConfigMistake, match="'audio' looks like"):
        to_document(("f:1", {**cells, "audio": "a.wav"}), settled)


def test_a_text_with_its_answer_beside_it_is_no_plain_text():
    cells = {"text": "1 + 1?", "answer": "2"}
    with pytest.raises(ConfigMistake, match=r"'answer' looks like another .*prompt_key=text data.response_key=answer"):
        recognise([("f:1", cells)], columns(), "f")
    assert converted(cells, prompt_key="text").messages == [QUESTION, ANSWER]
    assert recognise([("f:1", cells)], columns(format="text"), "f").ignored == ("answer",)
    for more in ({"text": "1 + 1? 2"}, {"answer": 2}, {"answer": ""}):
        assert recognise([("f:1", {**cells, **more})], columns(), "f").format == "text"


def test_whoever_asks_for_the_chosen_has_answered_for_the_rejected():
    pairs = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}
    assert converted(pairs, prompt_key="prompt", response_key="chosen").messages == [QUESTION, ANSWER]


def test_the_verdict_lists_the_keys_of_messages_that_nobody_reads():
    turns = [
        QUESTION,
        {**ANSWER, "score": 1, "mood": "glad", "empty": "", "why": "a", "train": True, "phase": "a", "hidden": False},
    ]
    settled = recognise([("f:1", {"messages": turns})], columns(ignored_message_keys=("why",)), "f")
    told = verdict([("f:1", {"messages": turns})], settled, "f", keys_read=frozenset({"mood"}))
    assert told == "f: messages (columns messages; not read of messages: score, why (ignored), phase, hidden)"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    settled = recognise([("f:1", {"conversations": turns})], columns(), "f")
    assert verdict([("f:1", {"conversations": turns})], settled, "f") == "f: sharegpt (columns conversations)"


def test_a_prompt_may_be_the_json_text_of_messages():
    for prompt in (json.dumps([QUESTION]), [json.dumps(QUESTION)]):
        cells = {"prompt": prompt, "response": "2"}
        assert converted(cells).messages == [QUESTION, ANSWER]
    cells = {"prompt": json.dumps([QUESTION]), "response": json.dumps([ANSWER])}
    settled = recognise([("f:1", cells)], columns(), "f")
    assert "; messages out of the JSON text of prompt; messages out of the JSON text of response" in verdict(
        [("f:1", cells)], settled, "f"
    )
    for text in ("[]", "[1]", '[{"role": "user"}]', '{"role": "user", "content": "a"}'):
        assert converted({"prompt": text, "response": "2"}).messages[0]["content"] == text


def test_rows_of_several_splits_in_one_file_are_told_apart():
    rows = [("f:1", {**ROW, "split": "train"}), ("f:2", {**ROW, "split": "test"})]
    with pytest.raises(
        InputError, match=r"f:1: rows of several splits .*'split' \(test, train\).*ignore_columns=\[split"
    ):
        recognise(rows, columns(), "f")
    assert recognise(rows, columns(ignored=("split",)), "f").format == "prompt_response"
    assert recognise(rows[1:], columns(), "f").format == "prompt_response"  # a file of validation


def test_template_variables_of_a_row_may_be_nothing():
    for nothing in ("null", "", "{}", {}, None):
        assert converted({**CHAT, "chat_template_kwargs": nothing}).template_options == {}


def test_the_verdict_says_what_was_read_as_what():
    cells = {**ROW, "system_prompt": "a", "id": 1, "images": [], "label": True}
    settled = recognise([("f:1", cells)], columns(ignored=("label",)), "f")
    assert verdict([("f:1", cells)], settled, "f") == (
        "f: prompt_response (columns question, answer, system_prompt; system from system_prompt; ignored: label; "
        "not read: id, images (empty))"
    )


@pytest.mark.parametrize(
    ("cells", "changes", "fragments"),
    [
        ({**ROW, "response": "c"}, {"response_key": "sumary"}, ["data.response_key=sumary names no column of f"]),
        (ROW, {"prompt_key": "qestion"}, ["data.prompt_key=qestion names", "did you mean question?"]),
        ({**ROW, **CHAT}, {"messages_key": "mesages"}, ["messages_key=mesages names", "did you mean messages?"]),
        ({**ROW, "text": "a"}, {"text_key": "txt"}, ["data.text_key=txt names", "did you mean text?"]),
        (
            {**CHAT, "text": "a"},
            {"prompt_key": "q", "response_key": "a"},
            ["data.prompt_key=q and data.response_key=a"],
        ),
        (
            CHAT,
            {"prompt_key": "q", "format": "prompt_response"},
            ["data.format=prompt_response, but data.prompt_key=q"],
        ),
    ],
)
def test_a_named_column_that_is_not_there_is_not_replaced_by_a_guess(cells, changes, fragments):
    with pytest.raises(InputError) as caught:
        recognise([("f:1", cells)], columns(**changes), "f")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_a_named_column_wins_over_every_other_format():
    many = {**ROW, **CHAT, "chat": [QUESTION, {**ANSWER, "content": "two"}], "body": "words", "why": "because"}
    assert converted(many, messages_key="chat").messages[-1]["content"] == "two"
    assert recognise([("f:1", many)], columns(text_key="body"), "f").format == "text"
    settled = recognise([("f:1", many)], columns(response_key="why"), "f")
    assert (settled.format, settled.prompt_key, settled.response_key) == ("prompt_response", "question", "why")
    assert converted({"query": "1 + 1?", "reply": "2"}, response_key="reply").messages == [QUESTION, ANSWER]


def test_named_dict_keys_lead_somewhere():
    with pytest.raises(ConfigMistake, match=r"data.response_dict_keys=\['final'\] leads into answer, which holds str"):
        converted(ROW, response_dict_keys=("final",))


def test_the_assistants_words_in_the_prompt_are_given():
    prompt = [QUESTION, ANSWER, QUESTION]
    conversation = converted({"prompt": prompt, "completion": [ANSWER]})
    assert (conversation.messages, conversation.given) == ([*prompt, ANSWER], 3)
    assert converted({"prompt": prompt, "completion": "2", "system": "Be brief."}).given == 4
    prefix = {"role": "assistant", "content": "The sum", "prefix": True}
    for completion in (" is 2.", [{"role": "assistant", "content": " is 2."}]):
        conversation = converted({"prompt": [QUESTION, prefix], "completion": completion})
        assert conversation.messages == [QUESTION, {"role": "assistant", "content": "The sum is 2."}]
        assert (conversation.given, conversation.prefill) == (1, "The sum")
    with pytest.raises(RowError, match="the prompt ends with a message of the assistant's"):
        converted({"prompt": [QUESTION, prefix], "completion": [QUESTION]})


def test_context_and_reasoning_where_they_are_named():
    cells = {**ROW, "context": "CREATE TABLE t", "rationale": "Add them."}
    conversation = converted(cells, context_key="context", reasoning_key="rationale")
    assert conversation.messages == [
        {"role": "user", "content": "1 + 1?\n\nCREATE TABLE t"},
        {**ANSWER, "reasoning_content": "Add them."},
    ]


def test_tools_inside_a_message_are_those_of_the_conversation():
    tools = [{"name": "f"}]
    conversation = converted({"messages": [{**SYSTEM, "tools": tools}, QUESTION, ANSWER]})
    assert conversation.messages == [SYSTEM, QUESTION, ANSWER] and conversation.tools[0]["function"] == tools[0]
    with pytest.raises(RowError, match="tools both in the column 'tools' and in a message"):
        converted({"messages": [{**SYSTEM, "tools": tools}, QUESTION, ANSWER], "tools": tools})


def test_the_same_system_prompt_twice_is_one():
    cells = {"messages": [SYSTEM, QUESTION, ANSWER], "system": "Be brief."}
    assert converted(cells).messages == cells["messages"]
    with pytest.raises(RowError, match="both in the column 'system' and in the first turn"):
        converted({**cells, "system": "Be long."})
    with pytest.raises(RowError, match="different system prompts"):
        converted({**CHAT, "system": "a", "system_prompt": "b"})


@pytest.mark.parametrize(
    ("more", "way_out"),
    [
        ({"solution": "It is 2."}, "Have them read by data.response_key=solution, or"),
        ({"instruction": "Add."}, "Have them read by data.prompt_key=instruction, or"),
        ({"output": "b", "prompt": "a"}, "Have them read by data.prompt_key=prompt data.response_key=output, or"),
        ({"inputs": "a"}, "data.prompt_key=inputs"),
    ],
)
def test_another_question_or_reply_is_not_left_out_in_silence(more, way_out):
    with pytest.raises(ConfigMistake, match="another question or reply") as caught:
        converted({**ROW, **more})
    assert way_out in str(caught.value)
    assert converted({**ROW, **more}, ignored=tuple(more)).messages == [QUESTION, ANSWER]
    assert converted({"why": "a", "because": "b", **ROW, **more}, prompt_key="why", response_key="because")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**ROW, "A": "1", "B": "2", "C": "3"}, r"'A' looks like documents .*data\.ignore_columns=\[A,B,C\]"),
        ({**ROW, "opa": "one", "opb": "two"}, "'opa' looks like documents"),
        ({**ROW, "option_1": "one", "option_2": "two"}, "'option_1' looks like documents"),
        ({**ROW, "suffix": "return"}, "'suffix' looks like documents"),
        (
            {**CHAT, "metadata": {"system_prompt": "Be brief."}},
            "'metadata' looks like a system prompt .*Leave them out",
        ),
        ({**CHAT, "meta": {"tools": [{"name": "f", "parameters": {}}]}}, "'meta' looks like tools .*Leave them out"),
        (
            {"messages": [SYSTEM, QUESTION], "response": "2"},
            r"'response' looks like another .*data\.prompt_key=messages data\.response_key=response",
        ),
    ],
)
def test_what_the_question_lacks_stops_the_run_wherever_it_stands(row, told):
    with pytest.raises(ConfigMistake, match=told):
        converted(row)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1 or 2?\nA: one\nB: two", "answer": "A", "A": "one", "B": "two"},
        {**ROW, "A": "1"},
        {"messages": [SYSTEM, QUESTION, ANSWER], "metadata": {"system_prompt": "Be brief.", "source": "x"}},
        {**CHAT, "answer": "2"},
    ],
)
def test_what_the_question_has_already_may_stand_there_again(row):
    assert converted(row).messages


def test_rows_inside_a_column_and_lists_as_python_prints_them_are_told_the_way_out():
    with pytest.raises(InputError, match="'data' holds a list of rows: write that list alone"):
        converted({"data": [ROW, ROW]})
    with pytest.raises(RowError, match=r"a list as Python prints it; write the column by json\.dumps"):
        converted({"messages": str(CHAT["messages"])})


def test_the_reply_to_messages_is_read_where_it_is_named():
    row = {"messages": [SYSTEM, QUESTION], "response": "2"}
    assert converted(row, prompt_key="messages", response_key="response").messages == [SYSTEM, QUESTION, ANSWER]


def test_a_rendering_or_a_copy_of_the_pair_is_no_other_pair():
    rendered = {"prompt": "Below is a task.\n1 + 1?\nAnswer:", "output": "2", "solution": " "}
    assert converted({**ROW, **rendered}).messages == [QUESTION, ANSWER]
    alpaca = {**ROWS["alpaca"], "prompt": "Below is a task.\n1 + 1?\nAnswer:2"}
    assert converted(alpaca).messages == [QUESTION, ANSWER]


def test_the_prompt_of_rl_data_may_stand_beside_the_messages():
    turns = [QUESTION, ANSWER, QUESTION]
    assert converted({"messages": [*turns, ANSWER], "prompt": turns}).messages == [*turns, ANSWER]


def test_two_columns_of_one_meaning_are_offered_one_key():
    with pytest.raises(ConfigMistake, match=r"Have them read by data.columns.reasoning=cot, or leave") as caught:
        converted({**ROW, "cot": "a", "thoughts": "b"})
    assert "data.ignore_columns=[cot,thoughts]" in str(caught.value)


def test_a_conversation_in_an_unknown_column_is_offered():
    with pytest.raises(InputError, match=r"'dialog' holds a conversation: data.columns.messages=dialog reads it"):
        converted({"dialog": [QUESTION, ANSWER]})


def test_context_and_reasoning_may_be_lists_of_texts():
    cells = {**ROW, "passages": ["One.", "Two."], "trajectories": ["Add them."]}
    conversation = converted(cells, context_key="passages", reasoning_key="trajectories")
    assert conversation.messages[0]["content"] == "1 + 1?\n\nOne.\n\nTwo."
    assert conversation.messages[1]["reasoning_content"] == "Add them."
    with pytest.raises(RowError, match=r"column 'passages' holds list .*expected text or a list of texts"):
        converted({**ROW, "passages": [1]}, context_key="passages")


def test_a_named_weight_may_be_a_flag():
    assert converted({**ROW, "train": False}, weight_key="train").weight == 0
    assert converted({**ROW, "train": True}, weight_key="train").weight == 1
    turns = [QUESTION, {**ANSWER, "is_target": False}]
    conversation = converted({"messages": turns}, message_keys=(("weight", "is_target"),))
    assert conversation.messages == [QUESTION, {**ANSWER, "weight": 0.0}]


@pytest.mark.parametrize("weight", ["much", -1, float("inf"), True])
def test_a_weight_of_a_row_is_a_number(weight):
    with pytest.raises(ConfigMistake, match=r"column 'weight' holds .*data.ignore_columns=\[weight\]"):
        converted({**ROW, "weight": weight})


def test_roles_and_keys_of_ones_own():
    turns = [{"who": "Kunde", "says": "1 + 1?", "mask": 1}, {"who": "bot", "says": "2", "why": "Add."}]
    keys = (("role", "who"), ("content", "says"), ("reasoning_content", "why"))
    roles = (("Kunde", "user"), ("bot", "assistant"))
    changes = {"message_keys": keys, "roles": roles, "ignored_message_keys": ("mask",)}
    assert converted({"messages": turns}, **changes).messages == [QUESTION, {**ANSWER, "reasoning_content": "Add."}]
    with pytest.raises(ConfigMistake, match=r"messages\[0\] has no 'who' \(data.message_keys.role\)"):
        converted({"messages": [{"role": "user", "says": "a"}]}, **changes)
