"""Characters of a reply that are trained, and characters that are not: by ranges, and by the weights of parts."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sft.data.chat.encode import MaskError, encode, encode_batch
from sft.data.types import ConfigMistake, Conversation
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import FAMILIES, THINKING, user

HEAD, TAIL = "The largest number", " is 42, and that is all of it."
SAID = HEAD + TAIL


def reply(content=SAID, **more):
    return {"role": "assistant", "content": content, **more}


def ranges(*of):
    return [dict(zip(("begin_offset", "end_offset", "train"), one, strict=True)) for one in of]


def weights(message, template=CHATML, tokenizer=None, **more):
    """Return [(text, weight)] of the runs of equal weight, from the first trained token of the only sample on."""
    tokenizer = tokenizer or tiny_tokenizer(template)
    (sample,) = encode([user("Which?"), message], tokenizer, **more)
    runs = []
    for token_id, weight in zip(sample.input_ids.tolist(), sample.loss_weights.tolist(), strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(token_id)
        else:
            runs.append(([token_id], weight))
    return [(tokenizer.decode(ids), weight) for ids, weight in runs][1:]


END = ("\n", 0)


def test_a_range_is_left_out_and_its_last_character_is_included():
    untrained = ranges((0, len(HEAD) - 1, False))
    expected = [(TAIL + "<|im_end|>", 1), END]
    assert weights(reply(train_detail=untrained)) == weights(reply(training_detail=untrained)) == expected
    between = ranges((len(HEAD), len(HEAD) + 2, False), (0, 2, True))
    assert weights(reply(train_detail=between)) == [
        (HEAD, 1),
        (" is", 0),
        (TAIL[3:] + "<|im_end|>", 1),
        END,
    ]
    assert weights(reply(train_detail=[])) == weights(reply()) == [(SAID + "<|im_end|>", 1), END]


def test_a_part_has_the_weight_that_it_states_times_that_of_the_message():
    parts = [{"type": "text", "text": HEAD, "weight": 0.5}, {"type": "text", "text": TAIL}]
    assert weights(reply(parts)) == [(HEAD, 0.5), (TAIL + "<|im_end|>", 1), END]
    assert weights(reply(parts, weight=3)) == [(HEAD, 1.5), (TAIL + "<|im_end|>", 3), END]
    parts[0] = {"type": "text", "text": HEAD, "train": False}
    assert weights(reply(parts)) == [(TAIL + "<|im_end|>", 1), END]


def test_a_token_with_an_untrained_character_is_untrained_and_the_stop_goes_with_the_last():
    (sample,) = encode([user("Which?"), reply(train_detail=ranges((5, 5, False)))], tiny_tokenizer())
    tokenizer = tiny_tokenizer()
    left_out = [i for i, w in zip(sample.input_ids, sample.loss_weights, strict=True) if w == 0][-2:]
    assert "a" in tokenizer.decode(left_out[:1]) and len(tokenizer.decode(left_out[:1])) > 1
    assert weights(reply(train_detail=ranges((len(SAID) - 1, len(SAID) - 1, False))))[-1] == (".<|im_end|>\n", 0)


def test_a_reply_of_which_nothing_is_trained_is_untrained():
    messages = [user("Which?"), reply(train_detail=ranges((0, len(SAID) - 1, False)))]
    assert encode(messages, tiny_tokenizer()) == []
    (sample,) = encode([*messages, user("Why?"), reply("So.")], tiny_tokenizer())
    assert tiny_tokenizer().decode(sample.input_ids[sample.loss_weights > 0]) == "So.<|im_end|>"


def test_characters_are_those_of_the_content_wherever_a_template_puts_it():
    told = reply("  é " + SAID, reasoning_content=SAID, train_detail=ranges((0, 3 + len(HEAD), False)))
    (first, *rest) = weights(told, THINKING)
    assert first[1] == 1 and SAID in first[0] and [weight for _, weight in rest] == [0, 1, 0]
    assert rest[1][0] == TAIL + "<|im_end|>"
    for family in FAMILIES:
        tokenizer = family.tokenizer()
        (sample,) = encode(
            [user("Which?"), reply(train_detail=ranges((0, len(HEAD) - 1, False)))],
            tokenizer,
            **dict(family.options),
        )
        trained = tokenizer.decode(sample.input_ids[sample.loss_weights > 0])
        assert HEAD not in trained and TAIL.strip() in trained, family.name


def test_several_modes_and_turns():
    messages = [user("Which?"), reply(train_detail=ranges((0, 17, False))), user("Why?"), reply("So.")]
    tokenizer = tiny_tokenizer()
    (sample,) = encode(messages, tokenizer)
    assert tokenizer.decode(sample.input_ids[sample.loss_weights > 0]) == f"{TAIL}<|im_end|>So.<|im_end|>"
    (sample,) = encode(messages, tokenizer, train_on="all")
    assert tokenizer.decode(sample.input_ids[sample.loss_weights == 0]) == HEAD
    (sample,) = encode(messages, tokenizer, train_on="last_assistant")
    assert tokenizer.decode(sample.input_ids[sample.loss_weights > 0]) == "So.<|im_end|>"
    with pytest.raises(InputError, match=r"states which characters are trained, and data.train_on=custom"):
        encode(messages, tokenizer, train_on="custom")


def test_behind_a_prefill():
    given = Conversation(
        [user("Which?"), reply(train_detail=ranges((len(HEAD), len(HEAD) + 2, False)))], given=1, prefill="The"
    )
    tokenizer = tiny_tokenizer()
    ((sample,),) = encode_batch([given], tokenizer)
    trained = tokenizer.decode(sample.input_ids[sample.loss_weights > 0])
    assert trained == HEAD.removeprefix("The") + TAIL.removeprefix(" is") + "<|im_end|>"


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        (reply(train_detail=ranges((0, len(SAID), False))), InputError, rf"characters from 0 to {len(SAID) - 1}"),
        (reply(train_detail=ranges((3, 2, False))), InputError, r"train_detail\[0\] is"),
        (reply(train_detail=[{"begin_offset": 0, "end_offset": 1}]), InputError, "train: true or false"),
        (reply(train_detail=ranges((0, 4, False), (4, 5, True))), InputError, r"train_detail\[1\] says train=True"),
        (reply(train_detail=ranges((0, 4, True)), train=False), InputError, "whose own weight is 0"),
        (reply(train_detail=ranges((0, 1, True)), training_detail=ranges((0, 1, True))), InputError, "keep one"),
        (reply([{"type": "text", "text": "a", "weight": -1}]), InputError, r"content\[0\].weight must be"),
        (
            reply([{"type": "thinking", "thinking": "a", "train": False}, {"type": "text", "text": "b"}]),
            InputError,
            "weighs a thought",
        ),
        ({**user("a"), "train_detail": ranges((0, 0, True))}, ConfigMistake, "of the role 'user', expected the assist"),
        ({**user(""), "content": [{"type": "text", "text": "a", "weight": 1}]}, ConfigMistake, r"content\[0\] weighs"),
    ],
)
def test_what_is_no_weight_of_characters(message, error, told):
    messages = [user("Which?"), message, reply()] if message["role"] == "user" else [user("Which?"), message]
    with pytest.raises(error, match=told):
        encode(messages, tiny_tokenizer())


def test_a_reply_with_something_behind_its_content_is_refused():
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    template = CHATML.replace("message.content + ", "message.content + (message.tool_calls | string or '') + ")
    with pytest.raises(MaskError, match="does not end the reply with its content"):
        encode([user("Which?"), reply(train_detail=ranges((0, 1, False)), tool_calls=[call])], tiny_tokenizer(template))


def sentencepiece():
    """A tokenizer in the way of Llama 2: a space is ▁, and what is no piece becomes bytes."""
    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyzTW", "▁number", "▁is"]
    backend = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML)


def test_tokenizers_whose_tokens_are_no_bytes():
    detail = ranges((0, len(HEAD) - 1, False))
    assert weights(reply(train_detail=detail), tokenizer=sentencepiece())[0] == (TAIL + "<|im_end|>", 1)
    (sample,) = encode([user("Which?"), reply("aéb", train_detail=ranges((1, 1, False)))], sentencepiece())
    assert np.diff(np.flatnonzero(sample.loss_weights)).tolist() == [3, 1]  # both bytes of é
