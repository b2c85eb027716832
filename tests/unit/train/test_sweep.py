"""The processes of a sweep: their commands, their exit codes, and what becomes of a signal."""

import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from sft.config.problems import ConfigError
from sft.config.sweep import Job, SweepOptions
from sft.train import sweep
from sft.train.sweep import Sweep, command_of


def job(tmp_path, label: str = "lr_1") -> Job:
    trainer = SimpleNamespace(default_local_dir=str(tmp_path / label), early_stop_metric=None)
    config: Any = SimpleNamespace(trainer=trainer, data=SimpleNamespace(has_val=True))
    return Job(label, config, ("mine.yaml", "++optim.lr=1"))


def test_several_ranks_are_a_torchrun_of_their_own(tmp_path):
    assert command_of(job(tmp_path), 1) == [sys.executable, "-m", "sft.fsdp_sft_trainer", "mine.yaml", "++optim.lr=1"]
    launched = command_of(job(tmp_path), 8)
    assert launched[:5] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"]
    assert any("SIGUSR1" in text for text in launched), "torchrun would die of what asks a run to save"
    assert launched[-4:] == ["-m", "sft.fsdp_sft_trainer", "mine.yaml", "++optim.lr=1"]
    get_args_parser().parse_args(launched[3:])  # of this torch: it ends the process at a flag that it does not know
    assert any("shutdown-timeout" in text for text in launched) == (
        "--shutdown-timeout" in get_args_parser().format_help()
    )


def test_a_job_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    codes = iter([3, 0])
    monkeypatch.setattr(sweep, "command_of", lambda *_: [sys.executable, "-c", f"raise SystemExit({next(codes)})"])
    trained = Sweep(SweepOptions())
    trained.train([job(tmp_path, "a"), job(tmp_path, "b")])
    assert [code for _, code in trained._trained] == [3, 0]
    (tmp_path / "a").mkdir()
    assert trained.compare() == 1 and "| a | - | - | - | failed |" in capsys.readouterr().out


def test_a_signal_goes_to_the_job_and_ends_the_sweep(tmp_path, monkeypatch, capsys):
    told = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(9)); print('ready', flush=True); signal.pause()"
    )
    monkeypatch.setattr(sweep, "command_of", lambda *_: [sys.executable, "-c", told])
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    trained = Sweep(SweepOptions())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        trained.train([job(tmp_path, "a"), job(tmp_path, "b")])
    assert end.value.code == 128 + signal.SIGTERM and len(trained._trained) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert "the same command goes on" in capsys.readouterr().err


def test_jobs_run_at_once_through_submitit(tmp_path, monkeypatch, capsys):
    """Its local executor takes the way of Slurm's."""
    pytest.importorskip("submitit")
    marks = {"a": 0, "b": 1}
    script = "import sys; open(sys.argv[1], 'w').close(); raise SystemExit(int(sys.argv[2]))"

    def command(of: Job, ranks: int) -> list[str]:
        return [sys.executable, "-c", script, str(tmp_path / f"{of.label}.ran"), str(marks[of.label])]

    monkeypatch.setattr(sweep, "command_of", command)
    trained = Sweep(SweepOptions(cluster="local", parameters={"timeout_min": 1}))
    trained.train([job(tmp_path, "a"), job(tmp_path, "b")])
    assert [code for _, code in trained._trained] == [0, 1]
    assert (tmp_path / "a.ran").exists() and (tmp_path / "b.ran").exists()
    assert "b failed" in capsys.readouterr().err


def test_without_submitit_a_cluster_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr("sft.config.checks.packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"sweep.cluster=slurm needs submitit.*pip install submitit"):
        Sweep(SweepOptions(cluster="slurm"))
