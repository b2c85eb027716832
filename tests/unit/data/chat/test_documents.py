"""Plain text: every token is trained, exactly once, and the text ends with eos."""

from itertools import pairwise

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from sft.data.cache.store import SampleStore
from sft.data.chat.documents import encode_documents
from sft.data.types import Document
from sft.errors import InputError
from tests.assets import tiny_tokenizer, write_jsonl

TEXT = "She said: there were 1,000 people in the street that day. " * 5


def encode(text, tokenizer=None, max_length=1000):
    return encode_documents([Document(text, "file:1")], tokenizer or tiny_tokenizer(None), max_length)[0]


def test_the_text_then_eos_all_of_it_trained():
    tokenizer = tiny_tokenizer(None)
    (sample,) = encode("one\n\ntwo ", tokenizer)
    assert tokenizer.decode(sample.input_ids) == "one\n\ntwo <|im_end|>"
    assert sample.loss_weights.tolist() == [0.0] + [1.0] * (len(sample) - 1)


@pytest.mark.parametrize("ends_with_eos", [False, True])
def test_the_tokenizers_own_frame_is_kept_and_eos_stands_once(ends_with_eos):
    tokenizer = tiny_tokenizer(None)
    bos, eos = "<|im_start|>", "<|im_end|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}" if ends_with_eos else f"{bos} $A",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, eos)],
    )
    (sample,) = encode("one", tokenizer)
    assert tokenizer.decode(sample.input_ids) == f"{bos}one{eos}"


@pytest.mark.parametrize("max_length", [2, 3, 7, 8, 50])
def test_a_long_text_becomes_several_samples_that_predict_each_token_once(max_length):
    (whole,) = encode(TEXT)
    chunks = encode(TEXT, max_length=max_length)
    assert all(2 <= len(chunk) <= max_length for chunk in chunks)
    predicted = np.concatenate([chunk.input_ids[chunk.loss_weights > 0] for chunk in chunks])
    assert np.array_equal(predicted, whole.input_ids[1:])
    for before, after in pairwise(chunks):
        assert before.input_ids[-1] == after.input_ids[0]


@pytest.mark.parametrize("length_over_a_full_chunk", [0, 1])
def test_a_text_that_just_fills_a_chunk_leaves_no_stub(length_over_a_full_chunk):
    (whole,) = encode(TEXT)
    chunks = encode(TEXT, max_length=len(whole) - length_over_a_full_chunk)
    assert [len(chunk) for chunk in chunks] == ([len(whole)] if not length_over_a_full_chunk else [len(whole) - 1, 2])


def test_a_tokenizer_without_eos_cannot_end_a_text():
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has none"):
        encode("one", tokenizer)


def test_blank_texts_are_left_out_and_counted(tmp_path, open_file):
    rows = [{"text": "one"}, {"text": " \n"}, {"text": ""}, {"text": TEXT}]
    path = write_jsonl(tmp_path / "text.jsonl", rows)
    store = SampleStore([open_file(path, max_length=50)])
    assert [store.where(0), store.where(1)] == ["text.jsonl:1", "text.jsonl:4"]
    assert len(store) == 3 and store.lengths.max() == 50
    assert any("text.jsonl: 2 of 4 rows left out" in line for line in open_file.said)


def test_the_length_of_a_text_sample_is_part_of_its_cache_key_and_of_no_other(tmp_path, open_file):
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": TEXT}])
    assert open_file(text, max_length=50).key != open_file(text, max_length=60).key
    chat = write_jsonl(tmp_path / "chat.jsonl", [{"question": "a", "answer": "b"}])
    assert open_file(chat, max_length=50).key == open_file(chat, max_length=60).key
