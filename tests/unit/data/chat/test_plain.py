"""The short way through plain conversations gives what the long way gives, at every template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.chat import render as rendering
from sft.data.chat import turns
from sft.data.chat.apply import apply
from sft.data.chat.plain import is_plain
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import assistant, every_family, hard_texts, user


def both_ways(tokenizer, messages, **supervision):
    """What `render` returns or says, by the short way (where it may) and by the long way."""

    def told():
        try:
            return rendering.render(rendering.Conversation(messages), tokenizer, rendering.Supervision(**supervision))
        except InputError as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        short = told()
        patch.setattr(turns, "is_plain", lambda messages: False)
        return short, told()


exchanges = st.lists(st.tuples(hard_texts, hard_texts, st.sampled_from([None, 0, 0.5])), min_size=2, max_size=4)


@every_family
@settings(max_examples=60, deadline=None, derandomize=True)
@given(system=st.one_of(st.none(), st.just(""), hard_texts), exchanges=exchanges)
def test_the_short_way_is_the_long_way(family, system, exchanges):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, said, weight in exchanges:
        messages += [user(asked), assistant(said, **{} if weight is None else {"weight": weight})]
    short, long = both_ways(family.tokenizer(), messages)
    assert short == long


@every_family
def test_any_number_of_turns_takes_three_renderings_where_turns_stay_as_they_were(family, monkeypatch):
    messages = [message for k in range(6) for message in (user(f"question {k}"), assistant(f"answer {k}"))]
    conversation = rendering.Conversation(messages, None, dict(family.options))
    rendering.render(conversation, family.tokenizer())  # learns what the template writes
    rendered = []
    monkeypatch.setattr(turns, "apply", lambda *given: rendered.append(given) or apply(*given))
    rendering.render(conversation, family.tokenizer())
    rewrites = not family.keeps_history or family.name.startswith("glm")  # whose stop is the tag of the next turn
    assert len(rendered) == (12 if rewrites else 3)


def test_a_template_that_strips_words_is_taken_the_long_way_for_rows_that_show_it():
    tokenizer = tiny_tokenizer(CHATML.replace("message.content +", "message.content | trim +"))
    messages = [user("a"), assistant("b"), user(" c"), assistant("d\n"), user("e"), assistant("f")]
    short, long = both_ways(tokenizer, messages)
    assert short == long and [len(one.spans) for one in short] == [3]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("content", "content | replace('cat', 'dog' if not loop.last else 'cat')", id="rewrites a word"),
        pytest.param(
            "role", "role + ('!' if loop.index0 == 2 and messages | length < 5 else '')", id="marks short ones"
        ),
    ],
)
def test_a_template_that_rewrites_what_few_rows_show_is_taken_the_long_way(old, new):
    tokenizer = tiny_tokenizer(CHATML.replace(f"message.{old}", f"(message.{new})"))
    messages = [message for k in range(3) for message in (user(f"a{k}"), assistant(f"a cat {k}"))]
    short, long = both_ways(tokenizer, messages)
    assert short == long and len(short) > 1


def test_what_is_not_plain_goes_the_long_way():
    pair = [user("a"), assistant("b")]
    assert is_plain([*pair, *pair]) and is_plain([{"role": "system", "content": ""}, *pair])
    for messages in (
        [*pair, *pair[:1]],
        [*pair, user("a"), *pair],
        [*pair[:1], assistant("b", reasoning_content="c")],
        [*pair[:1], assistant("<think>c</think>b")],
        [*pair, {"role": "system", "content": "s"}, *pair],
        [{"role": "assistant", "content": "b"}],
    ):
        assert not is_plain(messages)
