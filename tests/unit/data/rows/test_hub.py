"""org/name[/folder][:split]: files of a hub data set, from a cache that we lay out here as the hub's client does."""

from fnmatch import fnmatchcase

import huggingface_hub.constants
import pytest

from sft.data.rows.files import expand_files
from sft.data.rows.hub import HubDataset, dataset_named
from sft.errors import InputError
from tests.assets import write_jsonl


@pytest.mark.parametrize(
    ("spec", "dataset"),
    [
        ("org/name", HubDataset("org/name", "", None)),
        ("org/name.v2:test", HubDataset("org/name.v2", "", "test")),
        ("org/name/main:train", HubDataset("org/name", "main", "train")),
        ("org/name/a/b", HubDataset("org/name", "a/b", None)),
        ("name", None),
        ("/org/name", None),
        ("./org/name", None),
        ("org/rows.jsonl", None),
        ("org/*", None),
        ("org/name:50", None),  # a number of rows is no split
    ],
)
def test_what_may_be_a_hub_id(spec, dataset):
    assert dataset_named(spec) == dataset


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts files into the client's cache as a data set, and keeps the client off the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def hub(repo_id, names):
        repo = tmp_path / "hub" / f"datasets--{repo_id.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("c0ffee")
        for name in names:
            write_jsonl(repo / "snapshots" / "c0ffee" / name, [{"question": "a", "answer": "b"}])

    return hub


FLAT = ["README.md", "data/test-0.jsonl", "data/train-0.jsonl", "data/train-1.jsonl"]
CONFIGURATIONS = ["main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl", "socratic/test.jsonl"]


@pytest.mark.parametrize(
    ("files", "spec", "found"),
    [
        (FLAT, "org/name", ["train-0.jsonl", "train-1.jsonl"]),
        (FLAT, "org/name:test", ["test-0.jsonl"]),
        (["train/0.jsonl", "test/0.jsonl"], "org/name:test", ["0.jsonl"]),
        (["more_train.jsonl", "train/0.jsonl"], "org/name", ["more_train.jsonl", "0.jsonl"]),
        (["rows.jsonl", "more.jsonl"], "org/name", ["more.jsonl", "rows.jsonl"]),
        (CONFIGURATIONS, "org/name/main", ["train.jsonl"]),
        (CONFIGURATIONS, "org/name/socratic:test", ["test.jsonl"]),
        (["trainer.jsonl", "training/train.jsonl"], "org/name", ["train.jsonl"]),
        (["train-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"], "org/name", ["train-00000-of-00001.jsonl"]),
        (["train_sft.jsonl", "train_gen.jsonl"], "org/name:train_sft", ["train_sft.jsonl"]),
        (["train.jsonl", "train.rejected.jsonl"], "org/name:train", ["train.jsonl"]),
    ],
)
def test_the_files_of_a_split(hub, files, spec, found):
    hub("org/name", files)
    said = []
    paths = expand_files([spec], said.append)
    assert [path.name for path in paths] == found
    assert all(path.is_file() for path in paths)
    assert len(said) == 1 and said[0].startswith("org/name: ")


@pytest.mark.parametrize(
    ("files", "spec", "message"),
    [
        (FLAT, "org/name:validation", "no parquet or jsonl file of the split validation; found data/test-0.jsonl"),
        (["test.jsonl"], "org/name", r"no split train; name .* \['test'\]: org/name:test"),
        (CONFIGURATIONS, "org/name", r"several configurations \('main', 'socratic'\); choose one: org/name/socratic"),
        (FLAT, "org/other", "no local path .*the hub did not give.*OfflineModeIsEnabled.*network.*local path"),
        (["README.md"], "org/name", "no parquet or jsonl file; found nothing"),
        (
            ["train_sft.jsonl", "train_gen.jsonl"],
            "org/name",
            r"no split train; name one of \['train_gen', 'train_sft'\]",
        ),
        (
            ["train.jsonl", "train.rejected.jsonl"],
            "org/name",
            r"several splits begin with train \(train, train.rej",
        ),
    ],
)
def test_what_the_hub_does_not_have(hub, files, spec, message):
    hub("org/name", files)
    with pytest.raises(InputError, match=message):
        expand_files([spec])


@pytest.mark.parametrize(
    ("spec", "downloaded"),
    [
        ("org/name/en:train", ["en/train-0.jsonl", "en/train-[1].jsonl"]),
        ("org/name/en", ["en/train-0.jsonl", "en/train-[1].jsonl"]),
        ("org/name/fr", ["fr/train.jsonl"]),
        ("org/name/fr:test", ["fr/test.jsonl"]),
    ],
)
def test_only_the_files_of_the_split_are_downloaded(tmp_path, monkeypatch, spec, downloaded):
    """By a stub of the client, whose hub holds more than anybody wants."""
    there = ["README.md", "en/train-0.jsonl", "en/train-[1].jsonl", "en/test.jsonl", "fr/train.jsonl", "fr/test.jsonl",
             "fr/.train.jsonl"]  # fmt: skip
    asked = []

    def download(repo_id, *, repo_type, allow_patterns):
        asked.extend(name for name in there if any(fnmatchcase(name, pattern) for pattern in allow_patterns))
        for name in asked:
            write_jsonl(tmp_path / name, [])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo_id, *, repo_type: there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *which, repo_type: tmp_path / "no README.md")
    monkeypatch.chdir(tmp_path)
    assert expand_files([spec]) == [tmp_path / name for name in downloaded]
    assert asked == downloaded


def test_a_path_that_exists_is_no_hub_id(hub, tmp_path):
    hub("org/name", FLAT)
    write_jsonl(tmp_path / "org/name/mine.jsonl", [{}])
    assert [path.name for path in expand_files(["org/name"])] == ["mine.jsonl"]


def test_the_readme_of_the_hub_says_which_files_are_a_split(hub, tmp_path):
    hub("org/name", ["a/x.jsonl", "a/y.jsonl", "README.md"])
    snapshot = tmp_path / "hub/datasets--org--name/snapshots/c0ffee"
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: a/x*}\n"
        "  - {split: test, path: a/y*}\n---\n"
    )
    assert [path.name for path in expand_files(["org/name", "org/name/en", "org/name:test"])] == [
        *("x.jsonl", "x.jsonl", "y.jsonl")
    ]
