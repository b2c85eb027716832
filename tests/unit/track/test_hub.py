"""Pushing, dry and to a hub that is faked here: nothing of a failed push reaches training."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sft.track import hub

MODEL = {"config.json": "{}", "model.safetensors": "weights", "README.md": "card"}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "global_step_4" / "huggingface"
    directory.mkdir(parents=True)
    for name, text in MODEL.items():
        (directory / name).write_text(text)
    return directory


def read(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def open_dry(tmp_path: Path) -> hub.Hub:
    opened = hub.open_hub("me/tiny", tmp_path / "run", True, str(tmp_path / "dry"))
    assert opened is not None
    return opened


def test_a_dry_run_writes_a_revision_per_save_and_the_last_as_main(tmp_path: Path, model_dir: Path) -> None:
    pushing = open_dry(tmp_path)
    pushing.push(model_dir, 4)
    (model_dir / "config.json").write_text("{later}")
    (model_dir / "README.md").unlink()
    pushing.push(model_dir, 8)
    pushing.close()
    target = tmp_path / "dry" / "me" / "tiny"
    assert read(target / "step-4") == MODEL
    assert read(target / "main") == read(target / "step-8") == read(model_dir)
    assert not (tmp_path / "run" / ".hub").exists()


def test_no_hub_where_none_is_asked_for(tmp_path: Path) -> None:
    assert hub.open_hub(None, tmp_path, True, None) is None


def test_a_checkpoint_may_be_deleted_while_it_is_pushed(tmp_path: Path, model_dir: Path) -> None:
    may_push, seen = threading.Event(), []

    def push(directory: Path, step: int) -> None:
        may_push.wait(10)
        seen.append((step, read(directory)))

    pushing = hub.Hub("me/tiny", tmp_path / "run" / ".hub", push, str)
    pushing.push(model_dir, 4)
    shutil.rmtree(model_dir)
    may_push.set()
    pushing.close()
    assert seen == [(4, MODEL)]


@pytest.mark.parametrize("private", [True, False])
def test_a_failed_push_is_a_warning_with_the_way_by_hand(
    private: bool, tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)

    def push(directory: Path, step: int) -> None:
        if step == 4:
            raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "push_to_hub", lambda hub_id, private, directory, step: push(directory, step))
    pushing = hub.open_hub("me/tiny", tmp_path / "run", private, None)
    assert pushing is not None
    with caplog.at_level(logging.INFO, "sft"):
        pushing.push(model_dir, 4)
        pushing.push(model_dir, 8)
        pushing.push(tmp_path / "gone", 9)
        pushing.close()
    failed = next(record.message for record in caplog.records if "step 4" in record.message)
    assert "ConnectionError: no route to the hub" in failed
    assert failed.endswith(f"by hand: hf upload me/tiny {model_dir} ." + (" --private" if private else ""))
    assert any("pushed the model of step 8" in record.message for record in caplog.records)
    assert any("step 9 could not be pushed" in record.message for record in caplog.records)
    assert read(model_dir) == MODEL


def test_a_failed_dry_run_names_no_repository(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    caplog.set_level(logging.INFO, "sft")  # a test of another rank may have silenced it
    (tmp_path / "dry").write_text("a file where a directory should be")
    pushing = open_dry(tmp_path)
    pushing.push(model_dir, 4)
    pushing.close()
    assert caplog.messages[-1].endswith(f"by hand: cp -r {model_dir} {tmp_path / 'dry' / 'me' / 'tiny'}")


def test_a_run_that_has_to_go_does_not_wait(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    caplog.set_level(logging.INFO, "sft")  # a test of another rank may have silenced it
    never = threading.Event()
    pushing = hub.Hub("me/tiny", tmp_path / "run" / ".hub", lambda directory, step: never.wait(20) and None, str)
    pushing.push(model_dir, 4)
    pushing.close(wait=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["global_step_4"]
    never.set()
    assert "1 models are not pushed to me/tiny any more" in caplog.text


class FakeApi:
    """The five calls that a push makes of huggingface_hub.HfApi."""

    public = False
    tags: frozenset[str] = frozenset()
    calls: list[tuple]  # of the test

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        self.calls.append(("create_repo", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **given) -> SimpleNamespace:
        self.calls.append(("upload", given["repo_id"], sorted(read(given["folder_path"])), given["commit_message"]))
        assert "*.safetensors" in given["delete_patterns"]
        return SimpleNamespace(oid="abc")

    def delete_tag(self, repo_id: str, *, tag: str) -> None:
        if tag not in self.tags:
            from huggingface_hub.errors import RevisionNotFoundError

            raise RevisionNotFoundError.__new__(RevisionNotFoundError)
        self.calls.append(("delete_tag", tag))

    def create_tag(self, repo_id: str, *, tag: str, tag_message: str, revision: str) -> None:
        self.calls.append(("create_tag", repo_id, tag, revision))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    return FakeApi


def test_a_push_is_a_commit_and_a_tag(fake: type[FakeApi], model_dir: Path) -> None:
    hub.push_to_hub("tiny", True, model_dir, 4)
    assert fake.calls == [
        ("create_repo", "tiny", True, True),
        ("upload", "me/tiny", sorted(MODEL), "Model of step 4"),
        ("create_tag", "me/tiny", "step-4", "abc"),
    ]


def test_a_tag_of_an_earlier_way_to_this_step_moves(
    fake: type[FakeApi], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "tags", frozenset({"step-4"}))
    hub.push_to_hub("me/tiny", True, model_dir, 4)
    assert [call[0] for call in fake.calls] == ["create_repo", "upload", "delete_tag", "create_tag"]


def test_what_should_be_private_is_never_pushed_to_a_public_repository(
    fake: type[FakeApi], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "public", True)
    with pytest.raises(PermissionError, match="me/tiny exists and is public"):
        hub.push_to_hub("me/tiny", True, model_dir, 4)
    assert not [call for call in fake.calls if call[0] == "upload"]
    hub.push_to_hub("me/tiny", False, model_dir, 4)
    assert [call for call in fake.calls if call[0] == "upload"]
