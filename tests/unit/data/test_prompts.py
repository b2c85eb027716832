"""The prompt of a row is what the model was trained to answer: its tokens stand before the trained ones."""

import numpy as np
import pytest

from sft.data.chat.encode import encode_batch
from sft.data.prompts import Prompt, prompt_of, those_that_fit
from sft.data.types import Conversation, Document, Supervision
from sft.errors import InputError
from sft.types import Sample
from tests.assets import CHATML, tiny_tokenizer

MOODY = "{{- mood | default('') }}" + CHATML
USER, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2."}
SILENCE = ANSWER | {"content": " "}


def ask(item, tokenizer=None):
    return prompt_of(item, tokenizer or tiny_tokenizer(), Supervision(), where="val.jsonl:3")


def test_the_tokens_of_the_prompt_stand_before_the_last_answer():
    tokenizer = tiny_tokenizer()
    conversation = Conversation([USER, ANSWER, {"role": "user", "content": "and\n\n"}, ANSWER], where="val.jsonl:3")
    prompt = ask(conversation, tokenizer)
    (sample,) = encode_batch([conversation], tokenizer)[0]
    assert sample.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids
    trained = np.flatnonzero(sample.loss_weights)
    assert len(prompt.input_ids) in trained and len(prompt.input_ids) - 1 not in trained
    assert prompt.text.endswith("<|im_start|>assistant\n") and "It is 2." in prompt.text
    assert (prompt.expected, prompt.where) == ("It is 2.", "val.jsonl:3")


def test_the_rows_own_template_options_count():
    cheerful = Conversation([USER, ANSWER], template_options={"mood": "Cheer! "}, where="val.jsonl:3")
    assert ask(cheerful, tiny_tokenizer(MOODY)).text.startswith("Cheer! <|im_start|>user")


def test_what_stands_behind_the_last_answer_is_not_asked():
    later = Conversation([USER, ANSWER, {"role": "user", "content": "thanks"}], where="val.jsonl:3")
    assert "thanks" not in ask(later).text


def test_of_words_and_calls_both_are_expected():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calls = (
        "{%- if message.tool_calls %}{{- '<call>' + message.tool_calls[0].function | tojson + '</call>' }}{%- endif %}"
    )
    template = CHATML.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' + message.content }}" + calls + "{{- '<|im_end|>\\n' }}",
    )
    assert calls in template
    spoken = Conversation([USER, ANSWER | {"tool_calls": [call]}], where="val.jsonl:3")
    expected = ask(spoken, tiny_tokenizer(template)).expected
    assert expected.startswith("It is 2.<call>") and expected.endswith("</call>") and '"add"' in expected


def test_a_sample_of_the_users_own_class_is_asked_up_to_its_last_trained_stretch():
    tokenizer = tiny_tokenizer()
    ids = np.array(tokenizer("a b c d e f")["input_ids"], np.int32)
    weights = np.zeros(len(ids), np.float32)
    weights[[1, 3, 4]] = 1
    prompt = ask(Sample(ids, weights), tokenizer)
    assert prompt.input_ids == ids[:3].tolist() and prompt.expected == tokenizer.decode(ids[3:5])


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (Conversation([USER], where="val.jsonl:3"), r"val.jsonl:3: no answer to compare with; .*\(roles: user\)"),
        (Conversation([ANSWER], where="val.jsonl:3"), "val.jsonl:3: no answer to compare with"),
        (
            Conversation([USER, SILENCE], where="val.jsonl:3"),
            r"val.jsonl:3: messages\[1\] .* is empty",
        ),
        (Document("text", "val.jsonl:3"), "val.jsonl:3: plain text asks nothing"),
        (Sample(np.ones(3, np.int32), np.ones(3, np.float32)), "val.jsonl:3: no token stands before"),
    ],
)
def test_a_row_without_question_or_answer_is_named(item, told):
    with pytest.raises(InputError, match=told):
        ask(item)


def test_a_prompt_longer_than_any_sample_of_training_is_left_out_and_named():
    prompts = [Prompt(f"val.jsonl:{n}", "val", "?", [7] * n, "!") for n in (8, 9, 3)]
    too_long = []
    assert [len(prompt.input_ids) for prompt in those_that_fit(prompts, 8, too_long)] == [8, 3]
    assert too_long == ["val.jsonl:9: a prompt of 9 tokens, longer than data.max_length=8."]
