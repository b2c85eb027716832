"""Splits as `datasets` reads them: by the README, else by names; the same here and on the hub."""

from pathlib import Path

import pytest

from sft.data.rows.files import expand_files
from sft.data.rows.splits import configs_in, split_of
from sft.errors import InputError
from tests.assets import write_jsonl
from tests.rows import ROW


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("train/0000.parquet", "train"),
        ("more_train.jsonl", "train"),
        ("gsm8k.training.jsonl.gz", "train"),
        ("train_gen-00000-of-00001.parquet", "train_gen"),
        ("train_gen/0.parquet", "train_gen"),
        ("train.rejected.jsonl", "train.rejected"),
        ("train-unfiltered.jsonl", "train-unfiltered"),
        ("data/val.jsonl", "validation"),
        ("dev/part-0.jsonl", "validation"),
        ("test2.jsonl", "test"),
        ("Train.jsonl", "train"),
        ("split=test/0.parquet", "test"),
        ("trainer.jsonl", None),
        ("latest.jsonl", None),
        ("rows.jsonl", None),
    ],
)
def test_the_split_that_a_path_names(path, split):
    assert split_of(Path(path)) == split


@pytest.fixture
def directory(tmp_path):
    def directory(names, readme=None):
        for name in names:
            write_jsonl(tmp_path / "set" / name, [ROW])
        if readme is not None:
            (tmp_path / "set/README.md").write_text(readme)
        return str(tmp_path / "set")

    return directory


def found(spec):
    return [path.name for path in expand_files([spec])]


def test_a_local_clone_gives_its_train_split(directory):
    spec = directory(["data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl", "data/validation-0.jsonl"])
    assert found(spec) == ["train-0.jsonl", "train-1.jsonl"]
    assert found(f"{spec}:test") == ["test-0.jsonl"]
    assert found(f"{spec}:validation") == found(f"{spec}:val") == ["validation-0.jsonl"]
    with pytest.raises(InputError, match="has no split other; it has test, train, validation"):
        found(f"{spec}:other")


def test_a_directory_without_splits_is_read_whole(directory):
    assert found(directory(["a.jsonl", "train_more.jsonl", "train.jsonl"])) == [
        "a.jsonl",
        "train.jsonl",
        "train_more.jsonl",
    ]


def test_no_file_of_test_is_trained_because_of_its_kind_or_place(directory, tmp_path):
    spec = directory(["test.jsonl", "Test-2.jsonl"])
    (tmp_path / "set/train.csv").write_text("question,answer\n1,2\n")
    assert found(spec) == ["train.csv"]
    assert found(f"{spec}:test") == ["Test-2.jsonl", "test.jsonl"]
    (tmp_path / "set/train.csv").rename(tmp_path / "set/rows.csv")
    said = []
    assert [path.name for path in expand_files([spec], said.append)] == ["rows.csv"]
    assert said == [f"{spec}: 1 of 3 files are read; left out: Test-2.jsonl, test.jsonl"]
    (tmp_path / "set/rows.csv").unlink()
    assert found(spec) == ["Test-2.jsonl", "test.jsonl"]  # a directory for validation


def test_links_to_directories_are_followed_once(directory, tmp_path):
    spec = directory(["a.jsonl"])
    write_jsonl(tmp_path / "elsewhere/b.jsonl", [ROW])
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    assert found(spec) == ["a.jsonl", "b.jsonl"]


def test_a_path_that_cannot_be_looked_for_is_said(tmp_path):
    with pytest.raises(InputError, match=r"cannot be looked for .*name too long"):
        expand_files([str(tmp_path / ("a" * 5000))])


def test_several_that_begin_with_train_are_listed(directory):
    spec = directory(["train_sft.jsonl", "train_gen.jsonl", "test_sft.jsonl"])
    with pytest.raises(InputError, match=r"several splits begin with train \(train_gen, train_sft\).*:train_gen"):
        found(spec)
    assert found(f"{spec}:train_sft") == ["train_sft.jsonl"]


README = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: [data/a-*.jsonl, more/*.jsonl]
  - split: test
    path: data/b.jsonl
- config_name: other
  data_dir: other
  data_files: "*.jsonl"
---
# A set
"""


def test_a_readme_says_which_files_are_a_split(directory):
    spec = directory(["data/a-1.jsonl", "data/a-2.jsonl", "data/b.jsonl", "more/c.jsonl", "other/d.jsonl"], README)
    assert found(spec) == ["a-1.jsonl", "a-2.jsonl", "c.jsonl"]
    assert found(f"{spec}:test") == ["b.jsonl"]
    with pytest.raises(InputError, match="has no split dev; it has test, train"):
        found(f"{spec}:dev")
    assert [config.patterns for config in configs_in(README)][1] == {"train": ("other/*.jsonl",)}


def test_globs_of_a_readme_are_those_of_datasets(directory, tmp_path):
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
    spec = directory(["data/a.jsonl", "data/x/b.jsonl", "c.jsonl"])
    (tmp_path / "set/d.csv").write_text("question,answer\n1,2\n")
    for pattern, names in (
        ("data/*.jsonl", ["a.jsonl"]),
        ("data/**/*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("./data/?.jsonl", ["a.jsonl"]),
        ("data/[ab].jsonl", ["a.jsonl"]),
        ("d.csv", ["d.csv"]),
    ):
        (tmp_path / "set/README.md").write_text(readme.format(f'"{pattern}"'))
        assert found(spec) == found(f"{spec}/default") == found(f"{spec}/default:train") == names, pattern
    with pytest.raises(InputError, match=r"no data files at .*absent"):
        found(f"{spec}/absent")
    with pytest.raises(InputError, match=r"has no split test; it has train"):
        found(f"{spec}/default:test")


def test_readmes_that_declare_nothing():
    for readme in ("", "# A set", "---\nlicense: mit\n---\n", "---\n[\n---\n", "---\nconfigs: none\n---\n"):
        assert configs_in(readme) == []
