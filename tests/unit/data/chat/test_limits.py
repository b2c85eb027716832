"""A chat template is a program: one that does not end, or writes without measure, is said with its row, soon."""

import time

import pytest

from sft.data.cache.workers import map_in_order
from sft.data.chat import limits
from sft.data.chat.apply import EndlessTemplateError, apply
from sft.data.chat.encode import encode_batch
from sft.data.chat.limits import TemplateLimitError, limited
from sft.data.types import Conversation
from sft.errors import InputError
from tests.assets import CHATML, tiny_tokenizer
from tests.chats import assistant, user

MESSAGES = [user("Natalia sold clips."), assistant("72.")]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(limits, "TICK_S", 0.05)
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 1_000_000)


def tokenizer_with(markup):
    """Where the first question is Natalia's, as a template may stumble over one row."""
    markup = "{% if messages|length > 1 and 'Natalia' in messages[0].content %}" + markup + "{% endif %}"
    return tiny_tokenizer(markup + CHATML)


@pytest.mark.parametrize(
    ("markup", "told"),
    [
        (LOOP.replace("BODY", ""), "has not ended after"),
        (LOOP.replace("BODY", "xxxx"), "has not ended after"),
        ("{{ 'x' * 2000000 }}", "wrote 2,0"),
    ],
    ids=["loops", "loops and writes", "writes at once"],
)
def test_an_endless_template_ends_with_the_row(soon, markup, told):
    started = time.process_time()
    with pytest.raises(
        EndlessTemplateError, match=r"rows\.jsonl:7: the chat template does not come to an end.*" + told
    ):
        encode_batch([Conversation(MESSAGES, where="rows.jsonl:7")], tokenizer_with(markup))
    assert time.process_time() - started < 10


@pytest.mark.parametrize("markup", ["\n{{ 9 ** 9 ** 9 }}", "\n{% if 3 ** (messages|length * 10000000) %}{% endif %}"])
def test_a_power_that_no_signal_would_end_is_refused_before_it_is_computed(markup):
    with pytest.raises(EndlessTemplateError, match=r"raises to a power in its line 2, .* the limit is \*\* 3"):
        encode_batch([Conversation(MESSAGES, where="rows.jsonl:7")], tokenizer_with(markup))


def test_small_powers_are_computed():
    assert "81 -8" in encode_text("{{ 9 ** 2 }} {{ (-2) ** 3 }}")


def encode_text(markup):
    return apply(tokenizer_with(markup), tokenizer_with(markup).chat_template, MESSAGES, None, {}, "rows.jsonl:1")


def test_a_limit_behind_an_error_of_jinja_is_still_said():
    class Hiding:
        """As Jinja, which looks for the line of a template where the interrupted instruction has none."""

        def apply_chat_template(self, *_, **__):
            try:
                raise TemplateLimitError("it has not ended after 5.1 s")
            except TemplateLimitError:
                raise TypeError("'<=' not supported")  # noqa: B904

    with pytest.raises(EndlessTemplateError, match=r"rows\.jsonl:1: .* does not come to an end.* after 5\.1 s"):
        apply(Hiding(), CHATML, MESSAGES, None, {}, "rows.jsonl:1")


def test_memory_is_limited_as_well(soon, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SECONDS", 60)
    monkeypatch.setattr(limits, "MAX_BYTES", 50_000_000)
    with pytest.raises(TemplateLimitError, match="GB of memory"), limited():
        kept = []
        while True:
            kept.append(bytearray(100_000))


def test_nothing_is_left_of_the_limit(soon):
    with limited():
        pass
    started = time.process_time()
    while time.process_time() - started < 0.5:
        pass


def test_an_exception_without_text_is_shown_by_its_type():
    class Silent:
        def apply_chat_template(self, *_, **__):
            raise AssertionError

    with pytest.raises(InputError, match=r"rows\.jsonl:1: .* cannot render this conversation: AssertionError"):
        apply(Silent(), CHATML, MESSAGES, None, {}, "rows.jsonl:1")


def test_a_process_that_tokenises_passes_the_message_on():
    def refuse(number):
        raise EndlessTemplateError(f"row {number}")

    with pytest.raises(EndlessTemplateError, match=r"row \d"):
        list(map_in_order(refuse, range(4), 2))
