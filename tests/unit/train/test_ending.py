"""Which rank says what is wrong, with which exit code, and that the others let it finish."""

import errno
import gc
import os
import signal

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from sft.errors import BugError, InputError
from sft.parallel.world import LostRanksError, World
from sft.train import ending
from sft.train.forecast_memory import OutOfMemory
from tests.assets import tiny_model_dir
from tests.runs import train

QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a/cache")
QUOTA_TOLD = (
    "error on rank 9: in step 3: [Errno 122] Disk quota exceeded: '/runs/a/cache'. What was saved before is "
    "whole: mend that (df, quota, ulimit -a), and give the same command again.\n"
)
BAD_FILE, NO_ROOM = InputError("no file"), OutOfMemory("no room")
BUG, HEARD_OF_IT = BugError("saving failed: rank 9: KeyError: 'w'"), BugError("saving failed: rank 9: KeyError: 'w'")
BUG.__cause__ = KeyError("w")
BUG_TOLD = (
    "KeyError: 'w'\nerror on rank 9: this is a bug, not your input: saving failed: rank 9: KeyError: 'w'. Please "
    "report it with the traceback above and the run's run.json.\n"
)


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "code", "told", "waits"),
    [
        (0, 0, BAD_FILE, 2, "error: no file\n", False),
        (8, 0, BAD_FILE, 2, "error on rank 8: no file\n", False),
        (9, 1, BAD_FILE, 2, "", True),
        (9, 1, NO_ROOM, 2, "error on rank 9: no room\n", False),
        (9, 1, LostRanksError("rank 9 was waiting for rank 3"), 1, "error: rank 9 was waiting for rank 3\n", False),
        (9, 1, LostRanksError(""), 1, "", False),
        (9, 1, BUG, 1, BUG_TOLD, False),  # whichever rank of its node it is
        (9, 1, QUOTA, 2, QUOTA_TOLD, False),
        (9, 1, RuntimeError("[Errno 122] Disk quota exceeded: '/runs/a/cache'"), 2, QUOTA_TOLD, False),  # as torch says
        (0, 0, HEARD_OF_IT, 1, "", True),
    ],
)
def test_one_rank_of_a_node_speaks_and_the_others_wait_for_it(
    rank, local_rank, error, code, told, waits, monkeypatch, capsys
):
    waited = []
    monkeypatch.setattr(ending, "phase", lambda: "step 3")

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(ending, "let_another_rank_speak", lambda: waited.append(True))
    with pytest.raises(SystemExit) as ended:
        ending.end_with(error, World(rank=rank, size=16, local_rank=local_rank))
    assert (ended.value.code, capsys.readouterr().err, bool(waited)) == (code, told, waits)


def test_an_error_in_the_code_of_an_architecture_names_it_and_keeps_its_traceback(monkeypatch, capsys):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    try:
        rotate_half(None)
    except AttributeError as error:
        with pytest.raises(SystemExit) as ended:
            ending.end_with(error, World(rank=0, size=1, local_rank=0))
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in told and "modeling_qwen3.py" in told
    last = told.splitlines()[-1]
    assert last.startswith(
        "error: AttributeError in transformers' own code of qwen3. If one forward of this model fails"
    )


@pytest.mark.parametrize(
    ("error", "restarts", "nodes", "ends_torchrun"),
    [
        (BAD_FILE, "0", "1", True),
        (BAD_FILE, "3", "1", False),  # it was the last start
        (BAD_FILE, "0", "2", False),  # the other torchrun would wait for this one
        (QUOTA, "0", "1", False),
        (NO_ROOM, "0", "1", False),  # there may be some the next time
        (BUG, "0", "1", True),
        (TypeError("not in a step of all ranks"), "0", "1", True),
        (RuntimeError("CUDA error: uncorrectable ECC error"), "0", "1", False),  # another device may do better
        (LostRanksError("rank 0 was waiting for rank 1"), "0", "1", False),
    ],
)
def test_after_a_mistake_or_a_bug_torchrun_is_kept_from_restarting(error, restarts, nodes, ends_torchrun, monkeypatch):
    given = {"MAX_RESTARTS": "3", "RESTART_COUNT": restarts}
    for name, value in given.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    sent = []
    monkeypatch.setattr(os, "kill", lambda *asked: sent.append(asked))
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit):
        ending.end_with(error, World(rank=0, size=2, local_rank=0))
    assert sent == [(os.getppid(), signal.SIGTERM)] * ends_torchrun


@pytest.mark.parametrize("options", [[], ["model.lora_rank=2"], ["model.frozen=[embed_tokens]"]])
def test_no_part_of_the_model_is_left_when_the_process_group_is_destroyed(tmp_path, monkeypatch, options):
    """What is left refers to the group: destroyed before it, gloo ended three runs in ten by SIGABRT, all work done."""

    def alive():
        kinds = (PreTrainedModel, DTensor, torch.optim.Optimizer)
        return [found for found in gc.get_objects() if issubclass(type(found), kinds)]

    def destroy():
        others = set(map(id, of_other_tests))
        left.append([type(found).__name__ for found in alive() if id(found) not in others])
        destroy_process_group()

    left, destroy_process_group = [], dist.destroy_process_group
    gc.collect()
    of_other_tests = alive()
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    train(tmp_path, tiny_model_dir(tmp_path / "model"), "trainer.total_training_steps=2", *options)
    assert left == [[]]
