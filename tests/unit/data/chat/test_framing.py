"""Bos once, at the beginning; an end once, at the end: for every template of ours and every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from sft.data.chat.documents import encode_documents
from sft.data.chat.encode import encode
from sft.data.chat.framing import beginning_and_end, check_bos_once, check_bos_written, with_bos
from sft.data.chat.templates import NAMES, add_missing_tokens, find_template
from sft.data.types import Document
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import assistant, user

BOS, EOS = "<s>", "<|endoftext|>"


def tokenizer_with(bos: str | None = BOS, *, adds: bool = True, ends: bool = False, own: str | None = None) -> Any:
    """The tiny tokenizer with a bos; adds: to every plain text, with an eos behind it if it `ends`."""
    tokenizer = tiny_tokenizer(own)
    tokenizer.add_tokens([BOS, "<end_of_turn>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = bos, EOS
    if adds:
        frame = f"{bos} $A {EOS}" if ends else f"{bos} $A"
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, EOS)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=frame, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("made", "begins"),
    [
        ({}, True),
        ({"ends": True}, True),
        ({"adds": False}, False),
        ({"adds": False, "own": "{{ bos_token }}{{ messages[0].content }}"}, True),  # which ours takes the place of
        ({"bos": None, "adds": False}, False),
    ],
)
def test_a_shipped_template_begins_with_bos_where_the_model_knows_its_texts_so(name, made, begins):
    tokenizer = tokenizer_with(**made)
    template = tokenizer.chat_template = with_bos(find_template(name), tokenizer)
    add_missing_tokens(tokenizer, template)
    (sample,) = encode([user("a"), assistant("b")], tokenizer)
    text = tokenizer.decode(sample.input_ids)
    assert text.count(BOS) == int(text.startswith(BOS)) == int(begins)
    assert sample.loss_weights[0] == 0
    check_bos_once(tokenizer, template, {})


def test_chatml_begins_with_its_own_tag_where_that_is_bos():
    tokenizer = tokenizer_with("<|im_start|>")
    assert with_bos(find_template("chatml"), tokenizer) == find_template("chatml")
    assert with_bos(find_template("alpaca"), tokenizer) == "{{- bos_token }}" + find_template("alpaca")


def test_chatml_with_bos_is_given_the_tokens_that_it_needs():
    tokenizer = tokenizer_with()
    backend = tokenizer.backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    tokenizer._tokenizer = Tokenizer.from_str(backend)
    template = with_bos(find_template("chatml"), tokenizer)
    assert list(add_missing_tokens(tokenizer, template)) == ["<|im_start|>"]


def test_a_template_of_the_users_without_the_bos_that_the_tokenizer_adds_is_an_error_with_a_way_out():
    tokenizer = tokenizer_with()
    with pytest.raises(InputError, match=r"writes no <s> at the beginning.*begin with \{\{- bos_token \}\}.*no bos"):
        check_bos_written(tokenizer, CHATML, {})
    for template in ("{{- bos_token }}" + CHATML, "{#- No BOS -#}" + CHATML, "{{ messages[7].content }}"):
        check_bos_written(tokenizer, template, {})
    check_bos_written(tokenizer_with(adds=False), CHATML, {})


def test_bos_that_is_the_tag_of_every_turn_may_stand_before_the_first_one():
    check_bos_once(tokenizer_with("<|im_start|>"), "{{ bos_token }}" + CHATML, {})


def test_a_template_that_writes_bos_twice_is_an_error():
    with pytest.raises(InputError, match="begins with 2 <s>, of which the model knows one"):
        check_bos_once(tokenizer_with(), "{{ bos_token }}<s>" + CHATML, {})


@pytest.mark.parametrize(
    ("made", "template", "said"),
    [
        (
            {},
            "{{ bos_token }}" + CHATML,
            "bos <s>: added to plain text, written in chats; a turn ends with <|im_end|> = 2",
        ),
        ({}, CHATML, "bos <s>: added to plain text, missing in chats"),
        ({"adds": False}, "{{ bos_token }}<s>" + CHATML, "bos <s>: not added to plain text, doubled in chats"),
        (
            {"bos": None, "adds": False},
            CHATML,
            "no bos; a turn ends with <|im_end|> = 2, which is trained; plain",
        ),
        ({}, "{{ messages[7].content }}", "not known in chats; the chat template shows no end of a turn"),
    ],
)
def test_one_sentence_says_what_begins_and_what_ends(made, template, said):
    sentence = beginning_and_end(tokenizer_with(**made), template, {})
    assert said in sentence and sentence.endswith("plain text ends with eos <|endoftext|>")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", "<s>a b<|endoftext|>"),
        ("<s>a b", "<s>a b<|endoftext|>"),
        ("<s>a b<|endoftext|>", "<s>a b<|endoftext|>"),
        ("a b<|im_end|>\n", "<s>a b<|im_end|>\n"),
        ("<s>a<end_of_turn>\nb<end_of_turn>\n", "<s>a<end_of_turn>\nb<end_of_turn>\n"),
        ("a <s> b", "<s>a <s> b<|endoftext|>"),
    ],
)
def test_a_text_that_was_rendered_before_begins_and_ends_once(text, expected, ends):
    tokenizer = tokenizer_with(ends=ends)
    ((sample,),) = encode_documents([Document(text, "file:1")], tokenizer, 1000)
    assert tokenizer.decode(sample.input_ids) == expected
    assert sample.loss_weights.tolist() == [0.0] + [1.0] * (len(sample) - 1)
