"""Push models to the Hugging Face hub: a commit and a tag `step-N` for every model that the run saves.

Pushing costs training nothing: rank 0 alone pushes, in a thread, from hard links that no retention deletes. A push
that fails is a warning with the command that does it by hand; the local model is there all the same. The token is the
environment's or that of `hf auth login`, and never passes through here.

The thread is our own, and not upload_folder(run_as_future=True): Python waits at its end for futures, and a push that
hangs must not keep a job that has to go.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sft.files import link_weights
from sft.parallel.world import log

REPLACED = ("*.safetensors", "model.safetensors.index.json", "lora_adapter/*")
"""Removed from the repository where the new model has no such file: another number of shards, no adapter any more."""

Push = Callable[[Path, int], None]
"""Push the model directory of a step; raises whatever goes wrong."""

ByHand = Callable[[Path], str]
"""The command that pushes this model directory."""


class Hub:
    """Where the models of one run are pushed to, one after the other; see `open_hub`."""

    def __init__(self, name: str, staging: Path, push: Push, by_hand: ByHand):
        self._name, self._staging, self._push, self._by_hand = name, staging, push, by_hand
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        self._waiting: queue.Queue[tuple[Path, Path, int] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._given_up = False

    def push(self, model_dir: Path, step: int) -> None:
        """Push the model that lies in `model_dir` as it is now; returns at once."""
        staged = self._staging / f"step-{step}"
        try:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(model_dir, staged, copy_function=link_weights)
        except OSError as error:
            self._failed(model_dir, step, error)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub", daemon=True)
            self._thread.start()
        self._waiting.put((model_dir, staged, step))

    def close(self, *, wait: bool = True) -> None:
        """Wait for what is being pushed; or, where the run has to go, say what will not be."""
        if self._thread is None:
            return
        if not wait:
            if self._waiting.unfinished_tasks:
                log.warning("hub: %d models are not pushed to %s any more", self._waiting.unfinished_tasks, self._name)
            self._given_up = True
            dropped = self._staging.with_name(f"{self._staging.name}.dropped")
            with suppress(OSError):  # at once, for a push under way must not find half a model
                self._staging.rename(dropped)
            shutil.rmtree(dropped, ignore_errors=True)
            return
        self._waiting.put(None)
        self._thread.join()
        self._thread = None
        shutil.rmtree(self._staging, ignore_errors=True)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            model_dir, staged, step = item
            try:
                self._push(staged, step)
                log.info("hub: pushed the model of step %d to %s", step, self._name)
            except Exception as error:  # whatever it is, training goes on
                self._failed(model_dir, step, error)
            shutil.rmtree(staged, ignore_errors=True)
            self._waiting.task_done()

    def _failed(self, model_dir: Path, step: int, error: Exception) -> None:
        if self._given_up:
            return
        log.warning(
            "hub: the model of step %d could not be pushed to %s (%s: %s). It is in %s; by hand: %s",
            step,
            self._name,
            type(error).__name__,
            str(error).strip() or "no reason given",
            model_dir,
            self._by_hand(model_dir),
        )


def open_hub(hub_id: str | None, run_dir: Path, private: bool, dry_run_dir: str | None) -> Hub | None:
    """Open the place that this run pushes to; None if it pushes nothing. dry_run_dir: write there instead."""
    if hub_id is None:
        return None
    staging = run_dir / ".hub"
    if dry_run_dir is not None:
        target = Path(dry_run_dir) / hub_id
        return Hub(
            str(target),
            staging,
            push=lambda model_dir, step: push_to_directory(target, model_dir, step),
            by_hand=lambda model_dir: f"cp -r {model_dir} {target}",
        )
    return Hub(
        hub_id,
        staging,
        push=lambda model_dir, step: push_to_hub(hub_id, private, model_dir, step),
        by_hand=lambda model_dir: f"hf upload {hub_id} {model_dir} ." + " --private" * private,
    )


def push_to_directory(target: Path, model_dir: Path, step: int) -> None:
    """Copy to directories what a push would send: `step-N` is the tag, `main` the last commit."""
    for revision in (f"step-{step}", "main"):
        shutil.rmtree(target / revision, ignore_errors=True)
        shutil.copytree(model_dir, target / revision, copy_function=link_weights)


def push_to_hub(hub_id: str, private: bool, model_dir: Path, step: int) -> None:
    """Commit the directory to `main` and tag it `step-N`. The repository is created if there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi()
    repo_id = api.create_repo(hub_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise PermissionError(
            f"{repo_id} exists and is public; make it private, choose another trainer.hub_model_id, or set "
            "trainer.hub_private=false to publish the model"
        )
    message = f"Model of step {step}"
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=model_dir, commit_message=message, delete_patterns=list(REPLACED)
    )
    tag = f"step-{step}"
    with suppress(RevisionNotFoundError):
        api.delete_tag(repo_id, tag=tag)  # of an earlier way to this step
    api.create_tag(repo_id, tag=tag, tag_message=message, revision=commit.oid)
