"""Marks, weights and bars."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.inspect.bars import Bar, histogram, text_bars
from sft.inspect.show import conversation
from sft.inspect.tokens import SeenSample, Token, token_texts
from tests.assets import tiny_tokenizer


def sample(*tokens):
    return SeenSample(
        "a.jsonl:1", 0, [Token(n, text, weight, text[0] == "<") for n, (text, weight) in enumerate(tokens)]
    )


def test_marks_stand_where_colours_cannot():
    seen = sample(("<s>", 0), ("Hi\n", 0), ("yes", 1), ("</s>", 1), ("\n", 0))
    assert conversation(seen, marks=True, ids=False).plain == "<s>Hi↵\n«yes</s>»↵\n"
    coloured = conversation(seen, marks=False, ids=False)
    assert coloured.plain == "<s>Hi↵\nyes</s>↵\n"
    (start, end) = next((span.start, span.end) for span in coloured.spans if span.style == "green")
    assert coloured.plain[start:end] == "yes"


def test_a_weight_that_is_not_one_is_written():
    seen = sample(("a", 0.5), ("b", 0.5), ("c", 1), ("d", 2))
    assert conversation(seen, marks=True, ids=False).plain == "«0.5:ab»«c»«2:d»"
    assert conversation(seen, marks=False, ids=False).plain == "0.5:abc2:d"


def test_whitespace_that_nobody_sees_is_shown():
    assert conversation(sample(("a\tb\r\n", 0)), marks=True, ids=True).plain == "a⇥b␍↵\n[0]"


def test_what_a_terminal_obeys_is_shown():
    seen = sample(("a\x1b]52;c;eA==\x07", 0), ("\x9b2J\u202e", 1))
    assert conversation(seen, marks=False, ids=False).plain == "a␛]52;c;eA==␇\\u009b2J\\u202e"


@pytest.mark.parametrize("text", ["plain words", "é 😀 日本 👩‍👩‍👧", "<|im_start|>user\n\n x<|im_end|>", "  \n\n\n\n "])
def test_token_texts_join_to_the_text(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_half_a_character_is_shown_as_such():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"][:2]
    assert token_texts(ids, tokenizer)[0] == "\N{REPLACEMENT CHARACTER}"


def test_spaces_of_a_tokenizer_that_hides_the_first_one():
    backend = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_texts([0, 1, 0], tokenizer) == ["one", " two", " one"]


def test_histograms_have_few_round_bars():
    assert histogram(np.array([2, 5, 5, 9])) == [Bar(n, n, c) for n, c in enumerate([1, 0, 0, 2, 0, 0, 0, 1], start=2)]
    assert histogram(np.array([507, 541, 541])) == [
        Bar(505, 509, 1),
        *(Bar(n, n + 4, 0) for n in range(510, 540, 5)),
        Bar(540, 544, 2),
    ]
    bars = histogram(np.array([5, 99, 100, 1023]))
    assert [bar.low for bar in bars] == list(range(0, 1100, 100))
    assert [bar.count for bar in bars] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_bars_of_text_are_in_proportion_and_carry_the_mark():
    lines = text_bars(np.array([1, 1, 1, 1, 12]), mark=(12, "data.max_length=12"))
    assert lines[0].count("█") == 40 and lines[-1].count("█") == 10
    assert lines[-1].endswith("1  <- data.max_length=12")
    assert "longer than any" in text_bars(np.array([1]), mark=(99, "data.max_length=99"))[-1]
    assert text_bars(np.array([1] * 1000 + [9]))[-1].count("█") == 1, "one sample among many is still seen"
