"""Find what a run left that can be exported: its newest whole checkpoint, one by name, or its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sft.checkpoint.find import problems_of
from sft.checkpoint.manifest import MODEL_DIR, has_model, has_state, read_manifest
from sft.config import SftConfig, read_config
from sft.errors import InputError
from sft.files import RunDir
from sft.model.pretrained import find_model
from sft.model.pretrained import fingerprint as model_fingerprint
from sft.parallel.world import log


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint, or the model in a run directory, and what the run says of itself.

    state: the checkpoint with weights as they were trained, and moments; model: a Hugging Face directory. One of them
    may be None.
    """

    run_dir: Path
    run_name: str
    step: int
    state: Path | None
    model: Path | None

    @property
    def is_final(self) -> bool:
        """Return True if this is the last step of a run that finished."""
        return _facts(self.run_dir).get("exported_step") == self.step

    @cached_property
    def config(self) -> SftConfig:
        """Return the configuration of the run."""
        return read_config(self.run_dir / "config.yaml")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the state."""
        assert self.state is not None
        return read_manifest(self.state)

    def base(self, given: Path | None) -> Path:
        """Find the model that training began with. Raises InputError unless it is the very one."""
        try:
            model = self.config.model
            path = given or find_model(model.partial_pretrain, model.revision)
        except InputError as error:
            raise InputError(f"{error} The base model may also be given: --base DIR.") from error
        if not (path / "config.json").is_file():
            raise InputError(f"--base {path} is no model directory (no config.json); give the one that was trained.")
        if model_fingerprint(path) != self.manifest["fingerprint"]["model"]:
            raise InputError(
                f"{path} is another model than the one {self.run_name} was trained from (its files differ); "
                "give that one: --base DIR."
            )
        return path


def find_saved(path: Path) -> Saved:
    """Find what a run directory or a global_step_N holds. Raises InputError for damage, and where there is nothing."""
    if (path / "manifest.json").is_file():
        if problems := problems_of(path):
            raise InputError(f"{path} is not what was written: {'; '.join(problems)}. Choose another checkpoint.")
        return _of_checkpoint(path)
    if not path.is_dir():
        raise InputError(f"{path} is no directory; give a run's (trainer.default_local_dir) or a global_step_N.")
    for checkpoint in reversed(RunDir(path).checkpoints()):
        if problems := problems_of(checkpoint):
            log.warning("checkpoint %s is not usable and passed over: %s", checkpoint, "; ".join(problems))
        else:
            return _of_checkpoint(checkpoint)
    facts = _facts(path)
    step = facts.get("published_step", facts.get("exported_step"))  # the best one's, with trainer.load_best_at_end
    if step is None or not (path / "config.json").is_file():
        raise InputError(f"{path} holds no usable checkpoint (global_step_N) and no finished run's model.")
    return Saved(path, path.resolve().name, step, state=None, model=path)


def _of_checkpoint(checkpoint: Path) -> Saved:
    manifest = read_manifest(checkpoint)
    homes = [checkpoint.resolve().parent, checkpoint.resolve().parent.parent]  # in superseded_*/ it is one further up
    return Saved(
        run_dir=next((home for home in homes if (home / "config.yaml").is_file()), homes[0]),
        run_name=manifest["job_id"],
        step=manifest["step"],
        state=checkpoint if has_state(manifest) else None,
        model=checkpoint / MODEL_DIR if has_model(manifest) else None,
    )


def _facts(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "run.json").read_text())
    except (OSError, ValueError):
        return {}
