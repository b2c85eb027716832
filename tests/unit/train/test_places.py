"""Whatever stands where a run writes is found before anything is read, and named with what it is."""

import os
import socket

import pytest

from sft.config import load_config
from sft.errors import InputError
from sft.fsdp_sft_trainer import run
from sft.train.places import KEPT, REPLACED, refuse_what_is_in_the_way
from tests.assets import tiny_model_dir, write_jsonl


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    home = tmp_path_factory.mktemp("given")
    tiny_model_dir(home / "model")
    (home / "model" / "additional_chat_templates").mkdir()
    (home / "model" / "additional_chat_templates" / "rag.jinja").touch()
    rows = write_jsonl(home / "train.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    return [f"model.partial_pretrain={home / 'model'}", f"data.train_files={rows}", "data.train_batch_size=4"]


@pytest.fixture
def refusal(given, tmp_path):
    """Return what is said of the run directory as it is; "" where the run may start."""

    config = load_config([*given, f"trainer.default_local_dir={tmp_path}"])

    def said():
        try:
            refuse_what_is_in_the_way(config)
        except InputError as error:
            return str(error)
        return ""

    return said


MODEL = {"config.json", "generation_config.json", "tokenizer.json", "model-00001-of-00009.safetensors"}


def test_a_pipe_anywhere_is_refused_and_all_are_named_at_once(refusal, tmp_path):
    names = sorted(KEPT | REPLACED | MODEL)
    for name in names:
        os.mkfifo(tmp_path / name)
    said = refusal()
    assert said.startswith(f"trainer.default_local_dir={tmp_path}: ") and "Move that away" in said
    assert all(f"{name} is a pipe" in said for name in names), said


def test_other_kinds_are_named(refusal, tmp_path, monkeypatch):
    (tmp_path / "config.json").mkdir()
    (tmp_path / "best").mkdir()
    (tmp_path / "profile").touch()
    (tmp_path / "lora_adapter").symlink_to(tmp_path)
    (tmp_path / "additional_chat_templates").touch()
    (tmp_path / "training.log").symlink_to("/not/there")
    (tmp_path / "checkpoints.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "checkpoints.jsonl")
    monkeypatch.chdir(tmp_path)  # the path of a socket is a short one
    socket.socket(socket.AF_UNIX).bind("run.json")
    assert refusal().partition(": ")[2].partition(", where")[0].split("; ") == [
        "additional_chat_templates is a file",
        "best is a directory",
        "checkpoints.jsonl cannot be written by this user",
        "config.json is a directory",
        "lora_adapter is a link",
        "profile is a file",
        "run.json is a socket",
        "training.log is a link to /not/there, which does not exist",
    ]


def test_what_another_user_left_under_a_sticky_bit_is_told(refusal, tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    (tmp_path / "training.log").touch()  # is added to
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4321)
    assert refusal() == ""
    tmp_path.chmod(0o1777)
    assert "config.json belongs to another user, and in this directory nobody else" in refusal()
    assert "training.log" not in refusal()


def test_what_a_run_may_replace_is_not_refused(refusal, tmp_path):
    assert refusal() == ""
    for name in ("config.json", "config.yaml", "tokenizer.json", "metrics.jsonl", "notes of mine.txt"):
        (tmp_path / name).touch(mode=0o400 if name == "config.yaml" else 0o600)
    (tmp_path / "checkpoints.jsonl").mkdir()  # a run warns, and goes on without a ledger
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "best").symlink_to("global_step_2")
    (tmp_path / "README.md").symlink_to("/not/there")
    (tmp_path / "lora_adapter").mkdir()
    os.mkfifo(tmp_path / "a pipe that nobody writes into")
    assert refusal() == ""


def test_a_run_looks_before_it_reads(given, tmp_path, monkeypatch):
    monkeypatch.setattr("sft.fsdp_sft_trainer.read_inputs", lambda *_: pytest.fail("it reads first"))
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(InputError, match=r"run\.json is a pipe"):
        run(load_config([*given, f"trainer.default_local_dir={tmp_path}"]))
