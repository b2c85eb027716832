"""What is trained in a row, and how much: the modes of data.train_on, and the weights that messages state."""

from itertools import pairwise

import numpy as np
import pytest

from sft.data.cache.tokenise import Recipe, encode_items
from sft.data.chat.encode import MaskError, encode, encode_batch
from sft.data.types import Conversation, RowCounts, Supervision
from sft.errors import InputError
from tests.assets import tiny_tokenizer
from tests.chats import THINKING, assistant, spoken, user

STOP = "<|im_end|>"
ROW = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]


@pytest.fixture(scope="module")
def chatml():
    return tiny_tokenizer()


def weighted(messages, tokenizer, **more):
    """(text, weight) of each run of tokens with the same weight above 0."""
    (sample,) = encode(messages, tokenizer, **more)
    edges = np.flatnonzero(np.diff(sample.loss_weights, prepend=-1, append=-1))
    found = []
    for start, end in pairwise(edges):
        if weight := float(sample.loss_weights[start]):
            found.append((tokenizer.decode(sample.input_ids[start:end]), weight))
    return found


def test_assistant_trains_every_reply(chatml):
    assert weighted(ROW, chatml) == [("b" + STOP, 1), ("d" + STOP, 1)]


def test_last_assistant_trains_the_last_reply(chatml):
    assert weighted(ROW, chatml, train_on="last_assistant") == [("d" + STOP, 1)]


def test_last_assistant_takes_a_history_that_could_not_be_trained(chatml):
    messages = [assistant("Hi!"), user("a"), assistant(""), user("c"), assistant("d")]
    items = [Conversation(messages)]
    (((sample,)),) = encode_items(items, Recipe(chatml, {}, Supervision("last_assistant")), 100, RowCounts())
    assert spoken([sample], chatml) == [["d" + STOP]]
    for wrong in (messages, messages[1:]):
        with pytest.raises(InputError, match=r"speaks first|is empty"):
            encode_items([Conversation(wrong)], Recipe(chatml, {}, Supervision()), 100, RowCounts())


def test_all_trains_the_whole_text_the_last_question_too(chatml):
    text = chatml.apply_chat_template(ROW, tokenize=False)
    assert weighted(ROW, chatml, train_on="all") == [(text, 1)]


def test_all_needs_no_reply(chatml):
    assert weighted([user("a")], chatml, train_on="all") == [("<|im_start|>user\na<|im_end|>\n", 1)]


def test_custom_trains_what_asks_for_it(chatml):
    messages = [user("a"), assistant("b"), user("c"), assistant("d", train=True)]
    assert weighted(messages, chatml, train_on="custom") == [("d" + STOP, 1)]


@pytest.mark.parametrize("flag", [{"train": False}, {"trainable": False}, {"weight": 0}, {"loss_weight": 0.0}])
@pytest.mark.parametrize("train_on", ["assistant", "custom"])
def test_an_untrained_turn_stays_in_the_history(chatml, flag, train_on):
    messages = [user("a"), assistant("b", **flag), user("c"), assistant("d", weight=1)]
    assert weighted(messages, chatml, train_on=train_on) == [("d" + STOP, 1)]
    (sample,) = encode(messages, chatml, train_on=train_on)
    assert chatml.decode(sample.input_ids) == chatml.apply_chat_template([*ROW[:3], assistant("d")], tokenize=False)


@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "custom"])
def test_a_stated_weight_beats_the_mode(chatml, train_on):
    messages = [user("a"), assistant("b", weight=0.25), user("c"), assistant("d", loss_weight=2)]
    assert weighted(messages, chatml, train_on=train_on) == [("b" + STOP, 0.25), ("d" + STOP, 2)]


def test_a_stated_weight_beats_all(chatml):
    messages = [user("a"), assistant("b", train=False), user("c")]
    assert weighted(messages, chatml, train_on="all") == [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", 1),
        ("\n<|im_start|>user\nc<|im_end|>\n", 1),
    ]


def test_all_cannot_weigh_a_turn_that_is_rewritten_later():
    messages = [user("a"), assistant("b", reasoning_content="t", train=False), user("c"), assistant("d")]
    with pytest.raises(MaskError, match=r"messages\[1\]: the chat template rewrites this turn later"):
        encode(messages, tiny_tokenizer(THINKING), train_on="all")


def test_custom_trains_the_content_of_other_roles(chatml):
    messages = [{"role": "system", "content": "Be brief.", "train": True}, user("a"), assistant("b"), user("c" * 9)]
    messages[-1]["weight"] = 0.5
    assert weighted(messages, chatml, train_on="custom") == [("Be brief.", 1), ("c" * 9, 0.5)]


def test_custom_content_that_cannot_be_found_is_an_error(chatml):
    with pytest.raises(MaskError, match=r"messages\[0\]: its own weight has no place"):
        encode([{**user("user"), "train": True}, assistant("b")], chatml, train_on="custom")


def test_weights_are_not_shown_to_the_template():
    tokenizer = tiny_tokenizer("{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>\n{% endfor %}"
                               "{% if add_generation_prompt %}<|im_start|>{% endif %}")  # fmt: skip
    messages = [user("a"), assistant("b", train=True, trainable=True, weight=1, loss_weight=1)]
    (sample,) = encode(messages, tokenizer)
    assert tokenizer.decode(sample.input_ids) == tokenizer.apply_chat_template(
        [user("a"), assistant("b")], tokenize=False
    )


def test_null_is_no_weight(chatml):
    messages = [user("a"), assistant("b", train=None, weight=None)]
    assert weighted(messages, chatml) == [("b" + STOP, 1)]
    assert encode(messages, chatml, train_on="custom") == []


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"weight": -1}, r"weight must be a finite number of at least 0, found -1"),
        ({"weight": float("nan")}, r"weight must be a finite number of at least 0, found nan"),
        ({"loss_weight": float("inf")}, r"loss_weight must be a finite number of at least 0, found inf"),
        ({"weight": 1e39}, r"weight must be a finite number of at least 0, found 1e\+39"),
        ({"weight": 1e-50}, r"weight must be a finite number of at least 0, found 1e-50"),
        ({"weight": 10**400}, r"weight must be a finite number of at least 0, found 1000"),
        ({"weight": "1"}, r"weight must be a finite number of at least 0, found '1'"),
        ({"weight": True}, r"weight must be .* found True; true and false go into `train`"),
        ({"train": 1}, r"train must be true or false, found 1; numbers go into `weight`"),
        ({"trainable": "yes"}, r"trainable must be true or false, found 'yes'"),
        ({"train": False, "weight": 1}, r"differently: train=False, weight=1; keep one"),
        ({"weight": 0.5, "loss_weight": 0.25}, r"differently: weight=0.5, loss_weight=0.25; keep one"),
    ],
)
def test_a_weight_that_is_none_names_its_message(chatml, stated, message):
    row = Conversation([user("a"), assistant("b", **stated)], where="train.jsonl:7")
    with pytest.raises(InputError, match=rf"^train.jsonl:7: messages\[1\].*{message}"):
        encode_batch([row], chatml)


@pytest.mark.parametrize(("train_on", "weight"), [("assistant", 1), ("last_assistant", 0.5), ("all", 0)])
def test_other_roles_have_a_weight_of_their_own_in_custom_only(chatml, train_on, weight):
    with pytest.raises(InputError, match=r"messages\[0\] \(user\) carries the loss weight.*data.train_on=custom"):
        encode([{**user("a"), "weight": weight}, assistant("b")], chatml, train_on=train_on)


def test_a_weight_that_says_what_the_mode_does_is_welcome(chatml):
    assert weighted([{**user("a"), "weight": 0}, assistant("b")], chatml) == [("b" + STOP, 1)]


def test_rows_without_anything_to_train_have_no_samples(chatml):
    rows = [Conversation([user("a"), assistant("b", train=keep)]) for keep in (True, False, False)]
    assert [len(samples) for samples in encode_batch(rows, chatml, Supervision())] == [1, 0, 0]


def test_unrolling_is_counted_and_so_is_what_it_repeats():
    tokenizer = tiny_tokenizer(THINKING)
    messages = [user("a"), assistant("b", reasoning_content="1"), user("c"), assistant("d")]
    counts = RowCounts()
    ((first, _),) = encode_batch([Conversation(messages)], tokenizer, Supervision(), counts)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    repeated = len(tokenizer.encode(prompt, add_special_tokens=False))
    assert counts == RowCounts(unrolled_rows=1, unrolled_samples=2, repeated_tokens=repeated)
    assert len(first) > repeated
    counts = RowCounts()
    ((sample,),) = encode_batch([Conversation(messages)], tokenizer, Supervision(thinking_history="last"), counts)
    assert spoken([sample], tokenizer) == [["<think>\n\n</think>\n\nd" + STOP]]
    assert counts == RowCounts(turns_left_out=1)
