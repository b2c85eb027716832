"""The numbers of a data set against numbers counted by hand, on rows made for them."""

import numpy as np
import pytest

from sft.config import load_config
from sft.data.audit import audit, kept, overlap, summary
from sft.data.cache.store import Block
from sft.data.chat.encode import stop_token_ids
from sft.data.dataset import Wanted, open_dataset
from tests.assets import tiny_model_dir, tiny_tokenizer, write_jsonl

TOKENIZER = tiny_tokenizer()
STOPS = stop_token_ids(TOKENIZER)
PLAIN = {"question": "1 + 1?", "answer": "2"}
LONG = {"question": "Which?", "answer": "the apples " * 30}
FAR = {"question": "the pears " * 40, "answer": "no"}  # its answer lies beyond a window of 60 tokens
SPELLS = {"question": "What is <|im_start|>?", "answer": "A tag."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def opened(tmp_path, model):
    """opened(rows, "data.max_length=60"): the data set of these rows."""

    def opened(rows, *overrides, name="rows"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        base = [f"model.partial_pretrain={model}", f"data.train_files={path}", "data.val_files=null"]
        config = load_config([*base, f"data.cache_dir={tmp_path / 'cache'}", *overrides]).data
        return open_dataset(
            config,
            Wanted((str(path),)),
            max_tokens=None,
            packed=True,
            tokenizer=TOKENIZER,
            build_here=True,
            say=lambda line: None,
        )

    return opened


def test_plain_rows_have_nothing_to_tell(opened):
    numbers = audit(opened([PLAIN, {"question": "1 + 2?", "answer": "3"}]), STOPS)
    assert (numbers.rows, len(numbers.lengths), numbers.trained_turns) == (2, 2, 2)
    assert numbers.dropped_rows == numbers.dropped_samples == {}
    for found in (
        numbers.truncated, numbers.typed_special_tokens, numbers.duplicates, numbers.without_stop,
        numbers.little_supervised,
    ):  # fmt: skip
        assert (found.count, found.first) == (0, ())
    answer = TOKENIZER("2<|im_end|>", add_special_tokens=False)["input_ids"]
    assert numbers.supervised_tokens.tolist() == [len(answer)] * 2
    assert len(summary(numbers, "train")) == 2


def test_rows_and_samples_that_do_not_train_are_counted_by_cause(opened):
    rows = [PLAIN, {"question": "?", "answer": ""}, LONG, FAR]
    data = opened(rows, "data.bad_rows=drop", "data.max_length=60", "data.truncation=right")
    numbers = audit(data, STOPS)
    assert (numbers.rows, len(numbers.lengths)) == (4, 2)
    (bad,) = numbers.dropped_rows.values()
    assert (bad.count, bad.first[0].partition(" ")[0].rstrip(":")) == (1, "rows.jsonl:2")
    (emptied,) = numbers.dropped_samples.values()
    assert (emptied.count, emptied.first) == (1, ("rows.jsonl:4",))
    assert (numbers.truncated.count, numbers.truncated.first) == (1, ("rows.jsonl:3",))
    assert numbers.lengths.tolist()[1] == 60
    assert (
        kept(numbers) == "4 rows -> 2 samples; dropped: 1 rows (cannot be used), 1 samples (nothing to train once "
        "truncated); 1 truncated"
    )


def test_what_is_dropped_as_too_long_is_named(opened):
    numbers = audit(opened([PLAIN, LONG, FAR], "data.max_length=60", "data.truncation=drop"), STOPS)
    assert numbers.dropped_samples["too long"].count == 2
    assert numbers.dropped_samples["too long"].first == ("rows.jsonl:2", "rows.jsonl:3")
    assert len(numbers.lengths) == 1 and numbers.truncated.count == 0


def test_rows_without_anything_to_train(opened):
    numbers = audit(
        opened([{"text": "One."}, {"text": " "}, {"text": ""}], "data.format=text"), [TOKENIZER.eos_token_id]
    )
    assert numbers.dropped_rows["nothing to train"].count == 2
    assert numbers.dropped_rows["nothing to train"].first == ("rows.jsonl:2", "rows.jsonl:3")


def test_a_turn_that_is_cut_does_not_stop(opened):
    numbers = audit(opened([PLAIN, LONG], "data.max_length=60", "data.truncation=right"), STOPS)
    assert (numbers.trained_turns, numbers.without_stop.count) == (2, 1)
    assert numbers.without_stop.first == ("rows.jsonl:2",)
    assert "1 of 2 trained turns end with a stop token" in summary(numbers, "train")[1]


def test_the_first_token_of_a_window_is_not_trained(opened):
    """Nothing stands before it: collate shifts it away. The last of the 60 is the newline behind the stop."""
    numbers = audit(opened([LONG], "data.max_length=60", "data.truncation=left"), STOPS)
    assert numbers.supervised_tokens.tolist() == [58]


def test_every_turn_of_a_conversation_is_looked_at(opened):
    turns = [{"role": role, "content": "Why?"} for role in ("user", "assistant", "user", "assistant")]
    numbers = audit(opened([{"messages": turns}], "data.multiturn.enable=true"), STOPS)
    assert (numbers.trained_turns, numbers.without_stop.count) == (2, 0)


def test_another_stop_token_is_no_stop(opened):
    numbers = audit(opened([PLAIN]), [TOKENIZER.convert_tokens_to_ids("<|endoftext|>")])
    assert (numbers.trained_turns, numbers.without_stop.count) == (1, 1)


def test_equal_samples_are_found_and_paired(opened):
    other = {"question": "1 + 1?", "answer": "two"}
    numbers = audit(opened([PLAIN, other, PLAIN, PLAIN, other]), STOPS)
    assert numbers.duplicates.count == 3
    assert numbers.duplicates.first == (
        "rows.jsonl:3 = rows.jsonl:1", "rows.jsonl:4 = rows.jsonl:1", "rows.jsonl:5 = rows.jsonl:2",
    )  # fmt: skip


def test_samples_of_val_that_are_in_train(opened):
    other = {"question": "1 + 1?", "answer": "two"}
    train, val = opened([PLAIN, LONG]), opened([other, LONG, PLAIN, FAR], name="val")
    assert overlap(val, train).count == 2
    assert overlap(val, train).first == ("val.jsonl:2 = rows.jsonl:2", "val.jsonl:3 = rows.jsonl:1")
    assert overlap(opened([other], name="other"), train).count == 0


def test_special_tokens_typed_by_others_than_the_assistant(opened):
    parts = [{"type": "text", "text": "Say <|endoftext|>"}]
    rows = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "No."}]}
        for content in ("plain < | im_end | >", SPELLS["question"], parts)
    ]
    says = {"role": "assistant", "content": "It is <|endoftext|>.", "train": False}
    rows.append({"messages": [*rows[0]["messages"], says, *rows[0]["messages"]]})
    numbers = audit(opened(rows, "data.multiturn.enable=true"), STOPS)
    assert numbers.typed_special_tokens.count == 2
    assert numbers.typed_special_tokens.first == ("rows.jsonl:2", "rows.jsonl:3")


def test_a_sample_of_which_almost_nothing_trains(opened):
    odd = {"question": "the apples " * 80, "answer": "7"}
    numbers = audit(opened([PLAIN, odd, {"question": "1 + 2?", "answer": "3"}]), STOPS)
    assert (numbers.little_supervised.count, numbers.little_supervised.first) == (1, ("rows.jsonl:2",))


def test_at_the_start_of_a_run_only_so_many_tokens_are_read(opened):
    rows = [{"question": f"{n}?", "answer": "yes"} for n in range(700)]  # three blocks of the cache
    data = opened(rows)
    everything, beginning = audit(data, STOPS), audit(data, STOPS, most_tokens=1)
    assert (everything.looked_at, beginning.looked_at) == (700, 256)
    assert beginning.supervised_tokens.tolist() == everything.supervised_tokens[:256].tolist()
    assert "(of the first 256 samples)" in summary(beginning, "train")[1]


@pytest.mark.parametrize("truncation", ["left", "right", "drop"])
def test_blocks_are_the_samples(opened, truncation):
    rows = [PLAIN, LONG, SPELLS, FAR, LONG, PLAIN] * 80
    data = opened(rows, "data.max_length=60", f"data.truncation={truncation}").samples
    blocks: list[Block] = list(data.blocks())
    assert len(blocks) == 2
    assert np.concatenate([block.lengths for block in blocks]).tolist() == data.lengths.tolist()
    for name in ("input_ids", "loss_weights"):
        flat = np.concatenate([getattr(block, name) for block in blocks])
        assert flat.tolist() == np.concatenate([getattr(data[i], name) for i in range(len(data))]).tolist()
