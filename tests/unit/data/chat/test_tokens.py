"""Counting the bytes of tokens finds what their offsets and decoding find, and does without both."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sft.data.chat import decoding, tokens
from sft.data.chat.encode import encode
from sft.data.chat.render import render
from sft.data.types import Conversation
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import FAMILIES, assistant, bounded, conversation, exchanges, user

UNTAGGED = """\
{%- for message in messages %}
    {{- message.role + ':\\n\\n' + message.content + ('<|im_end|>' if message.role == 'assistant' else '') + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:\\n\\n' }}{% endif %}"""


def both_ways(messages: list[dict[str, Any]], tokenizer: Any, **options: Any) -> tuple[Any, Any]:
    """What the row becomes by bytes, and by offsets: lists of ids and weights, or the error."""

    def encoded() -> Any:
        try:
            samples = encode(messages, tokenizer, **options)
        except InputError as error:
            return str(error)
        return [(sample.input_ids.tolist(), sample.loss_weights.tolist()) for sample in samples]

    by_bytes = encoded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_token_bytes", lambda backend: None)
        return by_bytes, encoded()


def test_any_row_of_any_family_is_the_same_both_ways():
    tokenizers = [(family.tokenizer(), dict(family.options)) for family in FAMILIES] + [(tiny_tokenizer(UNTAGGED), {})]

    @bounded
    @given(exchanges)
    def check(pairs):
        for tokenizer, options in tokenizers:
            by_bytes, by_offsets = both_ways(conversation(pairs), tokenizer, **options)
            assert by_bytes == by_offsets

    check()


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["minimind", "qwen3"])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_any_row_in_real_tokenizers_is_the_same_both_ways(name, normalizer, request):
    tokenizer = request.getfixturevalue(name)
    backend = tokenizer.backend_tokenizer
    before, backend.normalizer = backend.normalizer, normalizer

    @bounded
    @given(exchanges)
    def check(pairs):
        by_bytes, by_offsets = both_ways(conversation(pairs), tokenizer)
        assert by_bytes == by_offsets

    try:
        check()
    finally:
        backend.normalizer = before


def refused(*_: Any) -> Any:
    pytest.fail("the tokens were found in the slower way")


def test_the_bytes_of_plain_rows_are_proof_enough(monkeypatch):
    monkeypatch.setattr(tokens, "_by_offsets", refused)
    for content in ("Yes 👋", "", "été\n", "\ufeff日本語"):
        encode([user("Café?"), assistant(content), user("\n\n"), assistant(" b ")], tiny_tokenizer())


def test_the_offsets_of_plain_rows_are_proven_by_decoding_alone(monkeypatch):
    monkeypatch.setattr(tokens, "_token_bytes", lambda backend: None)
    monkeypatch.setattr(decoding, "_prove", refused)
    encode([user("Café?"), assistant("Yes 👋"), user("b"), assistant("")], tiny_tokenizer())


def test_the_bytes_of_a_token_are_what_it_decodes_to():
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_tokens([AddedToken("<｜tool▁sep｜>", special=True)])
    token_bytes = tokens._token_bytes(backend)
    assert token_bytes is not None
    decoded = [token_bytes[n].decode(errors="replace") for n in range(backend.get_vocab_size())]
    assert decoded == backend.decode_batch([[n] for n in range(backend.get_vocab_size())], skip_special_tokens=False)


def test_tokenizers_whose_tokens_are_not_the_bytes_of_the_text_are_asked_for_offsets():
    eats_spaces = tiny_tokenizer().backend_tokenizer
    eats_spaces.add_special_tokens([AddedToken("<|sep|>", rstrip=True)])
    sentencepiece = Tokenizer(models.BPE())
    sentencepiece.decoder = decoders.Metaspace()
    assert tokens._token_bytes(eats_spaces) is None and tokens._token_bytes(sentencepiece) is None
    assert tokens._token_bytes(tiny_tokenizer().backend_tokenizer) is not None


class Counting:
    """A tokenizer that counts how often each of its methods is called."""

    def __init__(self, backend: Tokenizer):
        self.backend, self.calls = backend, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.backend, name)


@pytest.mark.parametrize("template", [CHATML, UNTAGGED])
def test_the_prompts_of_all_rows_are_tokenised_at_once(template):
    tokenizer = tiny_tokenizer(template)

    def calls(rows: int) -> Counter[str]:
        conversations = [Conversation([user(f"q {n}"), assistant("\na")]) for n in range(rows)]
        counting = Counting(tokenizer.backend_tokenizer)
        tokens.tokens_of([text for one in conversations for text in render(one, tokenizer)], counting)  # type: ignore
        return Counter({name: calls for name, calls in counting.calls.items() if name.startswith("encode")})

    assert calls(2) == calls(9)


@pytest.mark.parametrize("template", [CHATML.replace("\\n'", "\\n\\n'"), UNTAGGED])
def test_prompts_end_as_a_server_tokenises_them_in_every_turn(template):
    tokenizer = tiny_tokenizer(template)
    messages = [user("q"), assistant("\n\nlong"), user("q"), assistant("\n\n\nlonger"), user("q"), assistant("\nend")]
    (sample,) = encode(messages, tokenizer)
    starts = np.flatnonzero(np.diff(sample.loss_weights) > 0) + 1
    for k, start in zip((1, 3, 5), starts, strict=True):
        prompt = tokenizer.apply_chat_template(messages[:k], add_generation_prompt=True, tokenize=False)
        served = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
        assert sample.input_ids[start - 3 : start].tolist() == served[-3:]
        assert tokenizer.decode(sample.input_ids[:start]) == prompt


@cache
def llama2_style(template: str) -> PreTrainedTokenizerFast:
    """Every text begins with a space of the tokenizer's own, and "]{" and its like are one token."""
    crossing = ["]" + character for character in "{($\\</[*"]
    characters = dict.fromkeys("▁[]INSTq/" + "".join(crossing) + "{}()x$frac<a>*Hi")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *crossing]
    vocab = {word: n for n, word in enumerate(words)}
    merges = [(pair[0], pair[1]) for pair in crossing]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize("lead", ["", " "])
@pytest.mark.parametrize(
    "said", ['{"a": 1}', "(x)", "$x$", "\\frac", "<a>", "/x", "[x]", "* x", "Hi", "é", "\nx", " x"]
)
def test_a_reply_right_behind_its_prompt_is_trained_without_the_space_of_a_texts_beginning(lead, said):
    tokenizer = llama2_style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        f"{{% else %}}{{{{ '{lead}' + m.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )
    (sample,) = encode([user("q"), assistant(said), user("q"), assistant(said)], tokenizer)
    turn = f"[INST] q[/INST]{lead}{said}</s>"
    assert tokenizer.decode(sample.input_ids) == f"<s> {turn} {turn}"
    trained = np.flatnonzero(sample.loss_weights)
    replies = np.split(sample.input_ids[trained], np.flatnonzero(np.diff(trained) > 1) + 1)
    assert [tokenizer.decode([tokenizer.bos_token_id, *ids]) for ids in replies] == [f"<s>{lead}{said}</s>"] * 2
