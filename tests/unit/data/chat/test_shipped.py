"""The templates that come with the trainer, by name."""

import pytest

from sft.data.chat.encode import encode, stop_token_ids
from sft.data.chat.templates import NAMES, add_missing_tokens, check_default, find_template, named_templates
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import assistant, spoken, user


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"),
        ("instruction_response", "### Instruction:\na\n\n### Response:\nb<|endoftext|>\n\n"),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\na\n\n### Response:\nb<|endoftext|>\n\n",
        ),
    ],
)
def test_each_shipped_template_by_its_name(name, text):
    tokenizer = tiny_tokenizer(find_template(name))
    tokenizer.eos_token = "<|endoftext|>"
    samples = encode([user("a"), assistant("b")], tokenizer)
    stop = "<|im_end|>" if name == "chatml" else "<|endoftext|>"
    assert tokenizer.decode(samples[0].input_ids) == text
    assert spoken(samples, tokenizer) == [["b" + stop]]
    assert stop_token_ids(tokenizer) == [tokenizer.convert_tokens_to_ids(stop)]
    turns = [user("a"), assistant("\n\nb "), user("c"), assistant("d")]
    assert spoken(encode(turns, tokenizer), tokenizer) == [["\n\nb " + stop, "d" + stop]]
    assert spoken(encode([{"role": "system", "content": "S"}, *turns], tokenizer), tokenizer)
    assert name in NAMES


def test_text_and_file_are_taken_as_they_are(tmp_path):
    (tmp_path / "own.jinja").write_text(CHATML)
    assert find_template(CHATML) == CHATML
    assert find_template(str(tmp_path / "own.jinja")) == CHATML


@pytest.mark.parametrize(
    ("given", "guess"),
    [("chatlm", r"did you mean chatml\? Names: alpaca, "), ("missing.jinja", "the names are alpaca, ")],
)
def test_an_unknown_name_lists_the_names(given, guess):
    with pytest.raises(InputError, match=f"data.chat_template='{given}' is neither .*{guess}.*instruction_response"):
        find_template(given)


def test_chatml_gives_a_tokenizer_the_tokens_it_lacks():
    tokenizer = tiny_tokenizer(None)
    assert add_missing_tokens(tokenizer, find_template("chatml")) == {}
    from tokenizers import Tokenizer

    bare = tiny_tokenizer(find_template("chatml"))
    backend = bare.backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    bare._tokenizer = Tokenizer.from_str(backend)
    size = len(bare)
    assert add_missing_tokens(bare, find_template("alpaca")) == {}
    assert add_missing_tokens(bare, find_template("chatml")) == {"<|im_start|>": size}
    assert spoken(encode([user("a"), assistant("b")], bare), bare) == [["b<|im_end|>"]]


def test_templates_by_name_are_chosen_by_name_where_none_is_the_default():
    tokenizer = tiny_tokenizer({"rag": "{{ 'rag' }}", "tool_use": "{{ 'tools' }}"})
    with pytest.raises(InputError, match=r"for rag, tool_use, and none called default; .*data.chat_template=rag"):
        check_default(tokenizer)
    assert find_template("tool_use", named_templates(tokenizer)) == "{{ 'tools' }}"
    with pytest.raises(InputError, match=r"did you mean tool_use\?.*alpaca.*rag, tool_use"):
        find_template("tool_user", named_templates(tokenizer))
    check_default(tiny_tokenizer({"default": CHATML, "rag": CHATML}))
    check_default(tiny_tokenizer())
    check_default(tiny_tokenizer(None))
