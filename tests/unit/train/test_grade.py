"""Which answers count as right."""

import pytest

from sft.errors import InputError
from sft.train.grade import contains, final_answer, grader_of, is_right, normal, rouge


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


@pytest.mark.parametrize(
    ("answer", "expected", "there"),
    [
        ("So she has 1,000 apples.", "long\n#### 1000", True),
        ("It is $42.00, I think", "#### 42", True),
        ("It is 142 or 421, perhaps 4.2", "#### 42", False),
        ("The capital is  Paris.", "Paris", True),
        ("Parisian", "Paris", False),
        ("<think>Paris?</think> Rome", "Paris", False),
        ("anything", "#### ", False),
    ],
)
def test_an_answer_contains_the_expected_one_as_words_or_as_a_number(answer, expected, there):
    assert contains(answer, expected) is there


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the cat sat", "The cat sat.", 1.0),
        ("police kill the gunman", "police killed the gunman", 0.75),  # Lin 2004: 3 of 4 and 4 words
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("nothing", "police killed the gunman", 0.0),
        ("", "police", 0.0),
        ("<think>police</think> the", "the police", 2 * 1 / 3),
        ("\u732b\u304c\u597d\u304d", "\u732b\u304c\u5acc\u3044", 0.5),  # no blanks between words
    ],
)
def test_rouge_is_the_f_measure_of_the_longest_common_subsequence(answer, expected, score):
    assert rouge(answer, expected) == pytest.approx(score)


def test_a_function_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def shorter(answer, expected):\n    return len(answer) < len(expected)\n")
    grader = grader_of(f"{file}:shorter")
    assert grader.name == "shorter" and grader.scores([("a", "bb"), ("bb", "a")]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1", "has no function f"),
        ("import no_such_package", "fails .ModuleNotFoundError"),
        ("def f(answer, expected): return 'good'", "failed with ValueError.*must return a number"),
        ("def f(answer): return 1", "failed with TypeError"),
        ("def f(answer, expected): return float('nan')", "returned nan; expected a finite number"),
    ],
)
def test_a_function_that_cannot_grade_is_refused_at_the_start(code, said, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError, match=rf"trainer.generate_metric=.*mine.py:f.*{said}"):
        grader_of(f"{tmp_path / 'mine.py'}:f")
