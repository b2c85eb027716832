"""Which answers count as right."""

import pytest

from sft.evaluate.grade import final_answer, is_right, normal


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("6 x 7 = 42\n#### 42", "She has 42.\n#### 42"),
        ("#### 1,000", "#### 1000"),
        ("#### $1,000.00", "#### 1000"),
        ("#### 42.", "#### 42"),
        ("#### 42.0 ", "#### 42"),
        ("#### -3", "#### -3.0"),
        ("#### 50%", "#### 50"),
        ("#### 1\n#### 2", "#### 2"),
        ("#### 42\nThat is all.", "#### 42"),
        (r"So \boxed{\frac{1}{2}}.", r"\boxed{\frac{1}{2}}"),
        (r"\boxed{1,234}", "#### 1234"),
        ("<think>\n#### 1\n</think>\n\n#### 2", "#### 2"),
        ("four  hundred\n", "four hundred"),
        ("12", "12.0"),
        ("$5", "5"),
        ("0.50", ".5"),
        ("$ 5", "5 %"),
        ("-$5", r"\$ -5"),
        ("007", "+7"),
        (r"#### \boxed{5}", "#### 5"),
        (r"#### $\boxed{5}$", "#### 5"),
        ("#### **5**", "#### 5"),
        (r"#### **\boxed{1,000}**", "#### 1000"),
    ],
)
def test_right(answer, expected):
    assert is_right(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("#### 43", "#### 42"),
        ("The answer is 42.", "#### 42x"),
        ("", "#### 42"),
        ("#### 1000,5", "#### 1000.5"),
        ("Four hundred", "four hundred"),
        ("#### ", "#### 0"),
        ("#### -3", "#### 3"),
        ("$", "."),
        ("<think>\n#### 2", "#### 3"),
        ("3 4", "34"),
        ("#### - 3 4", "#### -34"),
        ("1" * 30 + "2", "1" * 30 + "3"),
        ("0." + "1" * 30 + "2", "0." + "1" * 30 + "3"),
        (r"\boxed{4} #### 5", "4"),
    ],
)
def test_wrong(answer, expected):
    assert not is_right(answer, expected)


def test_one_spelling():
    assert normal("1,000,000.50") == "1000000.5" and normal("1e5") == "1e5" and normal("-0.0") == "0"
    assert normal("1,00") == "1,00", "no number of thousands"
    assert final_answer(r"\boxed{a{b}c} d") == "a{b}c" and final_answer(r"\boxed{open") == "open"
