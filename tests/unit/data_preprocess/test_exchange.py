"""Final answers are found where solutions put them."""

from __future__ import annotations

import pytest

from data_preprocess.exchange import Exchange, UnusableRowError, after_hashes, json_text, last_boxed, text, to_row


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $x = \boxed{42}$.", "42"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$, for {all} x", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),  # an escaped brace opens no group
        (r"\boxed{a \\}", r"a \\"),  # an escaped backslash escapes nothing
        (r"\boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"$\boxed 9$ metres", "9"),
        ("\\boxed{\n  3 + 4\n}", "3 + 4"),
        (r"\boxedtext{5}", None),
        ("no box", None),
    ],
)
def test_the_last_box(solution, answer):
    assert last_boxed(solution) == answer


@pytest.mark.parametrize("solution", [r"\boxed{1} and \boxed{2", r"\boxed{}", r"\boxed{ }", r"\boxed", r"\boxed{1\}"])
def test_a_box_that_is_empty_or_cut_off_is_no_answer(solution):
    with pytest.raises(UnusableRowError, match=r"the last \\boxed is empty or not closed: found '\\\\boxed"):
        last_boxed(solution)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("a\n#### 42", "42"),
        ("#### 1\n#### -1,234,567.5 ", "-1234567.5"),
        ("#### (1, 2)", "(1, 2)"),
        ("#### 1,23", "1,23"),  # no thousands
        ("#### 1,2345", "1,2345"),
        ("####42", None),
        ("42", None),
    ],
)
def test_what_follows_the_last_hashes(solution, answer):
    assert after_hashes(solution) == answer


def test_nothing_after_the_hashes_is_no_answer():
    with pytest.raises(UnusableRowError, match="no final answer after '#### '"):
        after_hashes("1\n####  ")


def test_the_messages_are_the_prompt_and_the_reply():
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    exchange = Exchange(turns[:2], turns[2], question="q", answer="a", ability="chat", ground_truth="a")
    row = to_row(exchange, data_source="d", split="train", index=3)
    assert (row["prompt"], row["messages"]) == (turns[:2], turns)


def test_text_is_text_that_can_be_written():
    assert text({"a": " x "}, "a") == " x "
    assert (
        text({"a": None}, "a", optional=True)
        == text({}, "a", optional=True)
        == text({"a": ""}, "a", optional=True)
        == ""
    )
    for row, message in (
        ({"b": 1}, r"no column 'a': found \['b'\]"),
        ({"a": 3}, "column 'a' is not text: found 3"),
        ({"a": "\n"}, "column 'a' is empty"),
        ({"a": "x\ud83d"}, r"half of a surrogate pair, which is no character: found '\\ud83d'"),
    ):
        with pytest.raises(UnusableRowError, match=message):
            text(row, "a")
    with pytest.raises(UnusableRowError, match="column 'a' is not text"):
        text({"a": 3}, "a", optional=True)


def test_json_keeps_characters_and_nulls():
    assert json_text([{"a": "ü", "b": None}, {"b": 1}]) == '[{"a": "ü", "b": null}, {"b": 1}]'
