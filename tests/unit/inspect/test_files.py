"""What is written: JSONL that equals encode(), and a page that is whole, escaped and alone."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sft.data import encode
from sft.inspect.page import cards, write_page
from sft.inspect.tokens import SeenSample, Token
from tests.assets import tiny_tokenizer
from tests.rows import STRANGE_ROWS

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Counts elements, and fails where one is not closed by its own tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.titles, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text += data


def test_lines_are_what_encode_says(inspect, tmp_path):
    code, out, _ = inspect(f"+inspect.out={tmp_path / 'out.jsonl'}", "+inspect.written=-1", "data.max_length=500")
    assert code == 0 and "5 of 5 samples as JSONL" in out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [f"train.jsonl:{n}" for n in range(1, 6)]
    tokenizer = tiny_tokenizer()
    for line, row in zip(lines, STRANGE_ROWS, strict=True):
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        (sample,) = encode(messages, tokenizer)
        assert line["input_ids"] == sample.input_ids.tolist()
        assert line["loss_weights"] == sample.loss_weights.tolist()
        assert len(line["tokens"]) == len(line["input_ids"])
        assert "".join(line["tokens"]) == tokenizer.decode(sample.input_ids, skip_special_tokens=False)


def test_only_so_many_samples_are_written(inspect, tmp_path):
    inspect(f"+inspect.out={tmp_path / 'out.jsonl'}", "+inspect.written=2", "+inspect.samples=0")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def text(page_file):
    return page_file.read_text()


def test_the_page_needs_nothing_beside_itself(text):
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bhref=", text)


def test_what_stands_in_the_data_stays_text(text):
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 1, "our own"
    assert "Write <script>alert(1)</script> & say why." in page.text
    assert 'It is "code" 😀.' in page.text


def test_a_token_that_is_markup_by_itself_stays_text(tmp_path):
    """Some vocabularies hold "<script>" whole."""
    sample = SeenSample("<b>.jsonl:1", 0, [Token(7, "<script>", 1.0, False), Token(8, '"&lt;', 0.0, True)])
    numbers, title = ["<i>train</i>: 1 row"], "<u>rows</u>"
    write_page(tmp_path / "page.html", [sample], title=title, numbers=numbers, histograms={"<s>": np.array([2])})
    page = Page((tmp_path / "page.html").read_text())
    assert [tag for tag, _ in page.elements if tag in ("script", "b", "u", "s", "i")] == ["i", "i", "script"]
    assert '<script>"&lt;' in page.text and "<b>.jsonl:1" in page.text and "<i>train</i>1 row" in page.text


def test_what_trains_is_highlighted_and_says_its_id_and_weight(text):
    tokens = [attrs for tag, attrs in Page(text).elements if tag == "i"]
    tokenizer = tiny_tokenizer()
    samples = [
        encode([{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}], tokenizer)[
            0
        ]
        for r in STRANGE_ROWS
    ]
    expected = [(i, w) for s in samples for i, w in zip(s.input_ids.tolist(), s.loss_weights.tolist(), strict=True)]
    assert [attrs["title"] for attrs in tokens] == [f"{i} · weight {w:g}" for i, w in expected]
    assert ["t" in attrs.get("class", "").split() for attrs in tokens] == [w > 0 for _, w in expected]


def test_the_page_has_numbers_drawings_and_a_filter(text):
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 2 and "5 rows -> 5 samples" in page.text
    assert ("input", "filter") in [(tag, attrs.get("id")) for tag, attrs in page.elements]
    assert len([tag for tag in tags if tag == "tr"]) == 1 + 5
    assert "prefers-color-scheme: dark" in text


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_read(tmp_path):
    from sft.config import ConfigError
    from sft.inspect.options import take_options

    with pytest.raises(ConfigError, match=r"inspect\.out=.*must be a file in a directory that exists"):
        take_options([f"+inspect.out={tmp_path / 'none' / 'out.jsonl'}"])
    with pytest.raises(ConfigError, match=r"inspect\.html"):
        take_options([f"+inspect.html={tmp_path}"])


def test_numbers_are_cards_by_what_they_are_about():
    lines = [
        "train: 9 rows",
        "train: 19.7% of 1,024 tokens",
        "memory: an estimate",
        "  24.5 MB per rank: weights",
        "alone",
    ]
    assert cards(lines) == {
        "train": ["9 rows", "19.7% of 1,024 tokens"],
        "memory": ["an estimate", "24.5 MB per rank: weights", "alone"],
    }


def test_a_page_has_a_card_for_each_with_its_numbers_in_bold(tmp_path):
    lines = ["train: 19.7% of 1,024 tokens, f0fb12, max_length=8, bf16 <b>", "plan: 4.00 epochs"]
    write_page(tmp_path / "page.html", [], title="a", numbers=lines, histograms={})
    page = (tmp_path / "page.html").read_text()
    told = "<p><strong>19.7%</strong> of <strong>1,024</strong> tokens, f0fb12, max_length=8, bf16 &lt;b&gt;</p>"
    assert (
        f"<article><h3>train</h3>{told}</article>\n<article><h3>plan</h3><p><strong>4.00</strong> epochs</p></article>"
        in page
    )
