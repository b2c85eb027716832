"""data.mixture and data.curriculum from files to the samples of an epoch."""

import json

import numpy as np
import pytest

from sft.config import load_config
from sft.data.dataset import Wanted, open_dataset
from sft.data.order.mixture import epoch_order
from sft.data.rows.entries import short_names, unique
from sft.errors import InputError
from tests.assets import CHATML, tiny_model_dir, tiny_tokenizer, write_jsonl


@pytest.fixture
def open_mixture(tmp_path):
    """Opens data.mixture of these sources, with chat.jsonl and text.jsonl beside them; .said is what it says."""
    tiny_model_dir(tmp_path / "model")
    write_jsonl(tmp_path / "chat.jsonl", [{"question": f"{k}?", "answer": f"{k}. " * (k % 7 + 1)} for k in range(40)])
    write_jsonl(tmp_path / "text.jsonl", [{"text": f"Text {k}."} for k in range(10)])

    def open_mixture(*sources, seed=1, curriculum=None, overrides=(), template=CHATML):
        placed = ",".join(as_override({**source, "path": str(tmp_path / source["path"])}) for source in sources)
        config = load_config(
            [
                f"model.partial_pretrain={tmp_path / 'model'}",
                f"data.cache_dir={tmp_path / 'cache'}",
                "data.val_files=null",
                f"data.mixture=[{placed}]",
                *overrides,
            ]
        )
        open_mixture.said = []
        return open_dataset(
            config.data,
            Wanted(config.data.train_files, curriculum=curriculum, seed=seed),
            max_tokens=None,
            packed=True,
            tokenizer=tiny_tokenizer(template),
            build_here=True,
            say=open_mixture.said.append,
        )

    return open_mixture


def as_override(source):
    """{"path": "a", "rows": 3} -> '{path: "a", rows: 3}'"""
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in source.items()) + "}"


def rows_of(dataset):
    return [dataset.samples.where(index) for index in range(len(dataset))]


CHAT = {"path": "chat.jsonl"}
TEXT = {"path": "text.jsonl", "format": "text", "fraction": 0.2}


def test_text_beside_conversations_is_trained_whole(open_mixture):
    dataset = open_mixture(CHAT, TEXT)
    assert dataset.mixture.counts == (40, 10)
    assert list(dataset.mixture.ids) == ["chat", "text"]
    for index in dataset.mixture.ids["text"]:
        assert dataset.samples.where(index).startswith("text.jsonl:")
        assert (dataset.samples[index].loss_weights[1:] == 1).all()
    assert (dataset.samples[0].loss_weights[1:] == 0).any()


def test_text_beside_columns_of_messages(open_mixture, tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "turns.jsonl", [{"messages": turns}])
    dataset = open_mixture({"path": "turns.jsonl"}, {**TEXT, "fraction": 0.5}, overrides=["data.multiturn.enable=true"])
    assert [source.samples for source in dataset.mixture.sources] == [1, 10]


def test_rows_are_drawn_by_seed_without_replacement(open_mixture):
    drawn = rows_of(open_mixture({**CHAT, "rows": 15}))
    assert len(set(drawn)) == 15 and set(drawn) < {f"chat.jsonl:{line}" for line in range(1, 41)}
    assert drawn == rows_of(open_mixture({**CHAT, "rows": 15}, TEXT))[:15]
    assert drawn != rows_of(open_mixture({**CHAT, "rows": 15}, seed=2))
    assert drawn == rows_of(open_mixture({**CHAT, "rows": 15, "seed": 1}, seed=2))
    assert len(rows_of(open_mixture({**CHAT, "rows": 40}))) == 40


def test_rows_are_drawn_from_all_files_of_a_source(open_mixture, tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / "many" / f"{name}.jsonl", [{"question": f"{k}?", "answer": name} for k in range(20)])
    drawn = rows_of(open_mixture({"path": "many", "rows": 20}))
    assert len(set(drawn)) == 20 and {row[0] for row in drawn} == {"a", "b"}


def test_a_column_to_be_ignored_that_is_not_there_is_said(open_mixture):
    open_mixture(CHAT, overrides=["data.ignore_columns=[question_id,answr]"])
    told = "data.ignore_columns: the first rows of no file have question_id, answr; found ['answer', 'question']"
    assert told in open_mixture.said


def test_rows_of_files_of_one_name_are_told_apart(open_mixture, tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / name / "train.jsonl", [{"question": "1?", "answer": "1"}])
    assert rows_of(open_mixture({"path": "a/train.jsonl"}, {"path": "b"})) == ["a/train.jsonl:1", "b/train.jsonl:1"]
    assert any(line.startswith("a/train.jsonl: prompt_response") for line in open_mixture.said)
    with pytest.raises(InputError, match=r"b/train\.jsonl:2: no column 'answer'"):
        write_jsonl(tmp_path / "b" / "train.jsonl", [{"question": "1?", "answer": "1"}, {"question": "2?"}])
        open_mixture({"path": "*/train.jsonl"})


def test_more_rows_than_there_are_is_an_error(open_mixture, tmp_path):
    with pytest.raises(InputError, match=r"41 rows of .*chat.jsonl are asked for, and it holds 40; .* weight"):
        open_mixture({**CHAT, "rows": 41})
    (tmp_path / "blank.jsonl").write_text('{"question": "a", "answer": "b"}\n\n \n{"question": "c", "answer": "d"}')
    assert rows_of(open_mixture({"path": "blank.jsonl", "rows": 2})) == ["blank.jsonl:1", "blank.jsonl:4"]
    with pytest.raises(InputError, match=r"3 rows of .*blank.jsonl are asked for, and it holds 2;"):
        open_mixture({"path": "blank.jsonl", "rows": 3})


def test_a_source_of_which_nothing_is_left_is_an_error(open_mixture, tmp_path):
    write_jsonl(tmp_path / "blank.jsonl", [{"text": " "}])
    with pytest.raises(InputError, match="no sample is left of blank"):
        open_mixture(CHAT, {**TEXT, "path": "blank.jsonl"})


def test_another_mixture_is_another_data_set(open_mixture):
    mixtures = [
        [CHAT, TEXT],
        [CHAT, {**TEXT, "fraction": 0.3}],
        [{**CHAT, "weight": 2.0}, TEXT],
        [{**CHAT, "rows": 39}, TEXT],
        [TEXT, CHAT],
    ]
    prints = [open_mixture(*sources).fingerprint for sources in mixtures]
    prints += [open_mixture(CHAT, TEXT, curriculum="length").fingerprint]
    assert len(set(prints)) == len(prints)
    named = open_mixture({**CHAT, "name": "other"}, TEXT)
    assert named.fingerprint == prints[0] and list(named.mixture.ids) == ["other", "text"]


def test_the_table_of_an_epoch(open_mixture):
    dataset = open_mixture({**CHAT, "weight": 0.5}, TEXT)
    head, chat, text = dataset.describe_epoch().splitlines()
    assert head.startswith("an epoch is 25 samples, about ")
    assert chat.split()[:4] == ["chat", "20", "samples", "80.0%"] and chat.endswith("  0.50 passes over its 40")
    assert text.split()[:4] == ["text", "5", "samples", "20.0%"] and text.endswith("  0.50 passes over its 10")
    tokens = [int(line.split()[4].replace(",", "")) for line in (chat, text)]
    lengths = dataset.samples.lengths
    assert tokens == [int(lengths[:40].mean() * 20), int(lengths[40:].mean() * 5)]


def test_a_curriculum_by_length(open_mixture):
    dataset = open_mixture(CHAT, curriculum="length")
    lengths = dataset.samples.lengths
    assert (np.diff(lengths[epoch_order(dataset.mixture, 1, 0)]) >= 0).all()
    assert (np.diff(lengths[epoch_order(dataset.mixture, 1, 1)]) < 0).any()


def test_a_file_of_two_entries_is_said_in_one_line(open_mixture, tmp_path):
    assert not any("times" in line for line in (open_mixture({"path": "*.jsonl"}), open_mixture.said)[1])
    dataset = open_mixture(CHAT, {"path": "*.jsonl"}, {"path": "text.jsonl", "weight": 2})
    assert len(dataset) == 100
    assert [line for line in open_mixture.said if "times" in line] == [
        f"chat.jsonl (and 1 more files) is read 2 times: by the entries {tmp_path}/chat.jsonl, {tmp_path}/*.jsonl"
    ]
    open_mixture(TEXT, {"path": "text.jsonl"})
    expected = f"text.jsonl is read 2 times: by the entries {tmp_path}/text.jsonl, {tmp_path}/text.jsonl"
    assert open_mixture.said.count(expected) == 1


def graded(tmp_path, levels):
    rows = [{"question": f"{k}?", "answer": f"{k}", "level": level} for k, level in enumerate(levels)]
    write_jsonl(tmp_path / "graded.jsonl", rows)
    return {"path": "graded.jsonl"}


def test_a_curriculum_by_a_column(open_mixture, tmp_path):
    source = graded(tmp_path, [3, 1.5, -2, 0])
    assert open_mixture(source).mixture.difficulty is None
    dataset = open_mixture(source, curriculum="level")  # the same rows, but not the same cache
    assert epoch_order(dataset.mixture, 1, 0).tolist() == [2, 3, 1, 0]
    assert "graded.jsonl: prompt_response (columns question, answer, level)" in open_mixture.said
    open_mixture(source)
    assert "graded.jsonl: prompt_response (columns question, answer; not read: level)" in open_mixture.said


@pytest.mark.parametrize("level", [None, "3", True, [1]])
def test_a_row_without_a_number_to_sort_by_is_named(open_mixture, tmp_path, level):
    source = graded(tmp_path, [1, level])
    with pytest.raises(InputError, match=r"1 of 2 rows.*\n.*graded.jsonl:2: level is .*, expected a number"):
        open_mixture(source, curriculum="level")
    left = open_mixture(source, curriculum="level", overrides=["data.bad_rows=drop"])
    assert rows_of(left) == ["graded.jsonl:1"]


def test_a_file_without_the_column_to_sort_by(open_mixture):
    with pytest.raises(InputError) as caught:
        open_mixture(CHAT, curriculum="answr")
    assert str(caught.value) == (
        "data.curriculum=answr sorts by a column that chat.jsonl does not have; did you mean answer? Found "
        "['answer', 'question'] (length, without a column, goes by tokens)."
    )
    with pytest.raises(InputError, match="did you mean length"):
        open_mixture(CHAT, curriculum="lenght")
    with pytest.raises(InputError, match="no sample is left"):
        open_mixture(CHAT, curriculum="level", overrides=["data.bad_rows=drop"])
    assert "chat.jsonl:1: no column 'level', which data.curriculum=level sorts by" in open_mixture.said[-1]


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("data/val.jsonl", "val"),
        ("/data/gsm8k/", "gsm8k"),
        ("/data/gsm8k/*.parquet", "gsm8k"),
        ("data/**/v1.2.parquet", "v1.2"),
        ("org/name:train", "name:train"),
        ("../v1.2", "v1.2"),
        ("*.jsonl", "*.jsonl"),
    ],
)
def test_short_names(entry, name):
    assert short_names([entry]) == [name]


def test_entries_of_the_same_name_are_told_apart_by_where_they_are():
    assert short_names(["a/val.jsonl", "b/val.jsonl", "c.jsonl"]) == ["a/val", "b/val", "c"]
    assert short_names(["a/val.jsonl", "a/val.jsonl"]) == ["a/val", "a/val_2"]


def test_names_that_stand_twice_are_numbered():
    assert unique(["a", "a_2", "a", "a"]) == ["a", "a_2", "a_3", "a_4"]


def test_files_behind_the_last_row_that_is_asked_for_are_no_sources(open_mixture, tmp_path):
    open_mixture(CHAT)  # writes nothing; makes the model
    config = load_config([f"model.partial_pretrain={tmp_path / 'model'}", f"data.cache_dir={tmp_path / 'cache'}",
                          "data.val_files=null", f"data.train_files={tmp_path}/*.jsonl"]).data  # fmt: skip
    dataset = open_dataset(
        config,
        Wanted((f"{tmp_path}/chat.jsonl", f"{tmp_path}/text.jsonl"), max_samples=40),
        max_tokens=None,
        packed=True,
        tokenizer=tiny_tokenizer(),
        build_here=True,
        say=lambda line: None,
    )
    assert list(dataset.mixture.ids) == ["chat"] and len(dataset.mixture) == 40


def test_a_template_that_writes_the_date_is_said(open_mixture):
    dated = CHATML + "{%- if date_string is not defined %}{%- set date_string = strftime_now('%Y') %}{%- endif %}"
    open_mixture(CHAT, CHAT, template=dated)
    assert sum("the chat template writes the date" in line for line in open_mixture.said) == 1
    open_mixture(CHAT, overrides=["+data.apply_chat_template_kwargs.date_string=today"], template=dated)
    assert not any("writes the date" in line for line in open_mixture.said)
