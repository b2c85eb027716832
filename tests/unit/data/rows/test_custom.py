"""data.custom_cls: a class of the user's gives conversations or samples, and every bad item is named."""

import textwrap

import numpy as np
import pytest

from sft.config import load_config
from sft.data import encode
from sft.data.dataset import Wanted, open_dataset
from sft.data.rows.entries import parts_of_files
from sft.errors import InputError
from tests.assets import tiny_model_dir, tiny_tokenizer, write_jsonl

MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def rows_of(tmp_path):
    """Opens a data set whose class, written into a file of its own, has `body` as its __getitem__."""
    write_jsonl(tmp_path / "train.jsonl", [{"q": "1 + 1?", "a": "2"}, {"q": "2 + 2?", "a": "4"}])

    def rows_of(body, *, setup="", length="len(self.rows)", name="Mine", overrides=(), max_samples=-1):
        setup, body = textwrap.dedent(setup), textwrap.dedent(body)
        (tmp_path / "mine.py").write_text(
            f"import glob, json\n{setup}\n"
            "class Mine:\n"
            "    def __init__(self, parquet_files, tokenizer, config):\n"
            "        self.tokenizer, self.config = tokenizer, config\n"
            "        self.rows = [json.loads(l) for p in parquet_files for f in glob.glob(p) for l in open(f)]\n"
            f"    def __len__(self):\n        return {length}\n"
            "    def __getitem__(self, index):\n"
            "        row = self.rows[index]\n"
            f"{textwrap.indent(body, ' ' * 8)}\n"
        )
        if not (tmp_path / "model").exists():
            tiny_model_dir(tmp_path / "model")
        config = load_config(
            [
                f"model.partial_pretrain={tmp_path / 'model'}",
                f"data.train_files={tmp_path / 'train.jsonl'}",
                "data.val_files=null",
                f"data.cache_dir={tmp_path / 'cache'}",
                f"data.custom_cls.path={tmp_path / 'mine.py'}",
                f"data.custom_cls.name={name}",
                *overrides,
            ]
        )
        rows_of.said = []
        return open_dataset(
            config.data,
            Wanted(config.data.train_files, max_samples),
            max_tokens=None,
            packed=True,
            tokenizer=tiny_tokenizer(),
            build_here=True,
            say=rows_of.said.append,
        )

    return rows_of


def test_messages_go_through_the_proven_masks(rows_of):
    dataset = rows_of('return {"messages": [{"role": "user", "content": row["q"]}, '
                      '{"role": "assistant", "content": row["a"]}]}')  # fmt: skip
    (expected,) = encode(MESSAGES, tiny_tokenizer())
    assert np.array_equal(dataset.samples[0].input_ids, expected.input_ids)
    assert np.array_equal(dataset.samples[0].loss_weights, expected.loss_weights)
    assert len(dataset) == 2 and dataset.samples.where(1) == "Mine[1]"


@pytest.mark.parametrize(
    "trained",
    [
        "'loss_weights': [0, 0, 1, 0.5]",
        "'labels': [-100, -100, 7, 8], 'loss_weights': None",
        "'loss_mask': [0, 1, 1, 0]",
        "'loss_mask': np.array([0, 1, 1, 0]), 'position_ids': [0, 1, 2, 3]",
        "'labels': torch.tensor([-100, -100, 7, 8])",
    ],
)
def test_ids_with_what_is_trained_in_three_conventions(rows_of, trained):
    ids = "torch.tensor([5, 6, 7, 8])" if "torch" in trained else "[5, 6, 7, 8]"
    dataset = rows_of(f"return {{'input_ids': {ids}, {trained}}}", setup="import torch, numpy as np")
    sample = dataset.samples[0]
    assert sample.input_ids.tolist() == [5, 6, 7, 8]
    assert sample.loss_weights.tolist() == ([0, 0, 1, 0.5] if "0.5" in trained else [0, 0, 1, 1])
    batch = next(dataset.batches(np.array([0]), dp_size=1, dp_rank=0))
    assert batch.labels[0, :4].tolist() == [-100, 7, 8, -100], "the prediction of token t + 1 counts at position t"


def test_padding_is_removed_and_the_first_token_is_no_target(rows_of):
    dataset = rows_of(
        "return {'input_ids': [0, 5, 6, 7, 0], 'attention_mask': [0, 1, 1, 1, 0], 'labels': [-100, 5, 6, 7, -100]}"
    )
    assert dataset.samples[0].input_ids.tolist() == [5, 6, 7]
    assert dataset.samples[0].target_weights.tolist() == [1, 1]
    assert dataset.supervised_tokens(0) == 2


def test_the_class_gets_what_verl_gives_it(rows_of):
    dataset = rows_of(
        "assert self.config.max_length == self.config['max_length'] == 77\n"
        "assert self.config.multiturn.messages_key == 'messages' and self.config.get('pad_mode', 'x') == 'x'\n"
        "ids = self.tokenizer(row['q'])['input_ids']\n"
        "return {'input_ids': ids, 'loss_weights': [1.0] * len(ids)}",
        overrides=["data.max_length=77"],
    )
    assert tiny_tokenizer().decode(dataset.samples[1].input_ids) == "2 + 2?"


def test_max_samples_and_max_length_are_ours(rows_of):
    body = "return {'input_ids': list(range(10)), 'loss_weights': [1] * 10}"
    assert len(rows_of(body, max_samples=1)) == 1
    with pytest.raises(InputError, match=r"2 of 2 samples are longer.*first: Mine\[0\] \(10 tokens\)"):
        rows_of(body, overrides=["data.max_length=8"])


ID_ITEM = "return {'input_ids': [5, 6, 7], %s}"
BAD = [
    ("return 3", ["Mine[0] is int 3", "expected a dict"]),
    ("return {'text': 'a'}", ["Mine[0] has neither messages nor input_ids", "['text']"]),
    ("return {'messages': []}", ["Mine[0]: column 'messages' holds list []"]),
    ("return {'messages': [{'role': 'critic', 'content': 'a'}]}", ["Mine[0]: messages[0]", "'critic'"]),
    (ID_ITEM % "'a': 1", ["Mine[0] says what is trained by nothing", "loss_weights, labels, loss_mask"]),
    (ID_ITEM % "'labels': [5, 6, 7], 'loss_mask': [1, 1, 0]", ["by labels and loss_mask", "exactly one"]),
    (ID_ITEM % "'loss_weights': [1, 1]", ["Mine[0]: loss_weights has 2 values and input_ids 3"]),
    (ID_ITEM % "'loss_weights': [1, 1, 1], 'attention_mask': [1]", ["attention_mask has 1 values and input_ids 3"]),
    (ID_ITEM % "'loss_weights': [1, -1, 1]", ["negative or not finite"]),
    (ID_ITEM % "'loss_weights': [1, float('nan'), 1]", ["negative or not finite"]),
    (ID_ITEM % "'loss_weights': [1, 0, 0]", ["trains none of its 3 tokens", "first cannot be predicted"]),
    (ID_ITEM % "'loss_weights': 'abc'", ["loss_weights is of shape [] and type <U3", "expected a list of numbers"]),
    (ID_ITEM % "'loss_weights': [[1, 1, 1]]", ["of shape [1, 3]"]),
    (ID_ITEM % "'labels': [6, 7, -100]", ["labels differ from input_ids", "not shifted"]),
    (ID_ITEM % "'loss_mask': [0, 1, 1]", ["loss_mask[-1]=1, expected 0", "call it loss_weights"]),
    ("return {'input_ids': [5, 99999], 'loss_weights': [1, 1]}", ["input_ids hold [99999], expected ids from 0 to"]),
    ("return {'input_ids': [5, -1], 'loss_weights': [1, 1]}", ["input_ids hold [-1]"]),
    ("return {'input_ids': [5.5, 6], 'loss_weights': [1, 1]}", ["input_ids hold float64 numbers"]),
    ("return {'input_ids': [], 'loss_weights': []}", ["Mine[0]: "]),
    ("return {'input_ids': [[5], [6, 7]], 'labels': [5]}", ["input_ids is list [[5], [6, 7]], expected a list of"]),
    ("return row['nope']", ["Mine[0] raised KeyError: 'nope' (mine.py:"]),
]


@pytest.mark.parametrize(("body", "fragments"), BAD, ids=[body for body, _ in BAD])
def test_bad_items_are_named(rows_of, body, fragments):
    with pytest.raises(InputError) as caught:
        rows_of(body)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setup": "import no_such_module"}, "mine.py cannot be imported: ModuleNotFoundError.*mine.py:2"),
        ({"setup": "1 +"}, "cannot be imported: SyntaxError"),
        ({"name": "Yours"}, r"no such class in .*mine.py; found \['Mine'\]"),
        ({"name": "json"}, "no such class"),
        ({"length": "self.nope"}, r"Mine\(parquet_files=.*AttributeError.*mine.py:"),
    ],
)
def test_classes_that_do_not_work(rows_of, changes, message):
    with pytest.raises(InputError, match=message):
        rows_of("return row", **changes)


def test_kept_tokens_are_served_until_the_class_the_data_or_the_config_changes(rows_of, tmp_path):
    def body(more=""):
        return (
            "ids = self.tokenizer(row['q'])['input_ids']\n"
            f"return {{'input_ids': ids, 'loss_weights': [1] * len(ids)}}{more}"
        )

    def tokenised():
        return any(line.startswith("tokenised") for line in rows_of.said)

    before = rows_of(body())
    assert tokenised()
    same = rows_of(body())
    assert not tokenised() and same.fingerprint == before.fingerprint
    rows_of(body("  # changed"))
    assert tokenised()
    (tmp_path / "helper.py").write_text("A = 1")  # what mine.py may import
    rows_of(body())
    assert tokenised()
    rows_of(body(), overrides=["data.prompt_key=q"])
    assert tokenised()
    write_jsonl(tmp_path / "train.jsonl", [{"q": "3 + 3?", "a": "6"}])
    after = rows_of(body())
    assert tokenised() and after.fingerprint != before.fingerprint
    assert any("rows come from data.custom_cls" in line for line in rows_of.said)


def test_files_of_a_glob_are_watched_and_a_place_without_files_is_said(rows_of, tmp_path):
    def fingerprint(spec):
        body = "return {'input_ids': [5, 6], 'loss_weights': [1, 1]}"
        return rows_of(body, length="1", overrides=[f"data.train_files={spec}"]).fingerprint

    before = fingerprint(f"{tmp_path}/tr*.jsonl")
    write_jsonl(tmp_path / "train.jsonl", [{"q": "3 + 3?", "a": "6"}])
    assert fingerprint(f"{tmp_path}/tr*.jsonl") != before
    assert not any("unnoticed" in line for line in rows_of.said)
    with pytest.raises(InputError, match="IndexError"):  # of the class, which knows paths alone
        fingerprint("some/corpus")
    assert any("Mine: no files at some/corpus; what the class finds there may change" in line for line in rows_of.said)


def test_only_who_tokenises_asks_the_class(rows_of, tmp_path):
    """Other ranks wait for its tokens: a class that takes an hour takes it once per node."""
    rows_of("return {'input_ids': [5, 6], 'loss_weights': [1, 1]}")
    config = load_config(
        [
            f"model.partial_pretrain={tmp_path / 'model'}",
            f"data.train_files={tmp_path / 'train.jsonl'}",
            "data.val_files=null",
            f"data.custom_cls.path={tmp_path / 'mine.py'}",
            "data.custom_cls.name=Mine",
        ]
    ).data
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self, **all):\n        raise AssertionError\n")
    assert config.train_files
    (part,) = parts_of_files(config, config.train_files, tiny_tokenizer(), lambda line: None)
    (source,) = part.sources
    assert source.fingerprint()
    with pytest.raises(InputError, match="AssertionError"):
        list(source.read())
