"""The command: exit codes, one voice among the ranks, no torch, no stray files; and the wheel it ships in."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import hydra
import pytest

from sft.config import cli, door

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
for heavy in ("torch", "transformers", "numpy"):
    sys.modules[heavy] = None  # importing it raises
from sft.config import cli

def run(config):
    print("ran", config.optim.lr, config.trainer.default_local_dir)
    if config.trainer.experiment_name == "raise":
        raise RuntimeError("from inside the run")
    if config.trainer.experiment_name == "exit":
        sys.exit(7)

cli(run)
"""


def start(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = cwd.parent / f"{cwd.name}_entry.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_good_command_runs_and_leaves_no_files(here: Path, runnable: list[str]) -> None:
    before = files(here)
    done = start(here, *runnable, "optim.lr=0.5", "epochs=2")
    assert done.returncode == 0
    assert re.fullmatch(r"ran 0\.5 runs/model-rows-[0-9a-f]{8}\n", done.stdout)
    assert done.stderr == "epochs=2 is read as trainer.total_epochs=2.\n"
    assert files(here) == before


def test_problems_exit_with_2_and_one_list(here: Path, runnable: list[str]) -> None:
    done = start(here, *runnable, "optim.lr=abc", "+typo=1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "2 problems in the configuration:"
    assert len(done.stderr.splitlines()) == 3


def test_where_nothing_takes_temporary_files_a_sentence_says_so(runnable, monkeypatch, capsys):
    """In a container of which only the run directory can be written."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(sys.modules["sft.config.cli"], "gettempdir", nowhere)
    with pytest.raises(SystemExit) as ended:
        cli(lambda config: None, runnable)
    assert ended.value.code == 2
    assert "No usable temporary directory found in ['/tmp']; set TMPDIR to a" in capsys.readouterr().err


def test_only_rank_0_speaks(here: Path, runnable: list[str]) -> None:
    done = start(here, *runnable, "optim.lr=abc", "epochs=2", RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("override", ["+experiment=foo", "optim.lr=[1", "optim.lr=${typo}", "optim=null", "quickstart"])
def test_hydras_own_complaints_are_problems_like_any_other(override: str, here: Path, runnable: list[str]) -> None:
    done = start(here, *runnable, override)
    assert done.returncode == 2
    assert done.stderr.startswith("1 problem in the configuration:\n  1. ")
    assert "HYDRA_FULL_ERROR" not in done.stderr


def test_a_typo_in_a_yaml_file_of_the_user(here: Path, runnable: list[str]) -> None:
    preset = here / "my_conf" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package _global_\noptim: {lr: 0.25}\ntrainer: {total_epoch: 3}\n")
    done = start(here, "--config-dir", "my_conf", "+experiment=mine", *runnable)
    assert done.returncode == 2
    assert "trainer.total_epoch is not a key; did you mean trainer.total_epochs" in done.stderr

    preset.write_text("# @package _global_\noptim: {lr: 0.25}\n")
    assert start(here, "--config-dir", "my_conf", "+experiment=mine", *runnable).stdout.startswith("ran 0.25")

    preset.write_text("# @package _global_\noptim: {lr: 0.25\n")
    done = start(here, "--config-dir", "my_conf", "+experiment=mine", *runnable)
    assert done.returncode == 2
    assert "mine.yaml" in done.stderr


def test_keys_with_dashes(here: Path) -> None:
    done = start(here, "--learning_rate=1")
    assert done.returncode == 2
    assert "write learning_rate=1" in done.stderr


def test_cfg_job_prints_the_composed_values(here: Path) -> None:
    done = start(here, "+experiment=quickstart", "--cfg", "job", "optim.lr=0.5")
    assert done.returncode == 0
    assert "train_batch_size: 128" in done.stdout
    assert "lr: 0.5" in done.stdout
    assert "ran 0.5" not in done.stdout
    assert done.stderr == ""


def test_cfg_job_prints_a_preset(here: Path) -> None:
    done = start(here, "+experiment=open_r1_distill", "--cfg", "job")
    assert done.returncode == 0
    for value in ("train_batch_size: 128", "max_length: 32768", "lr: 4.0e-05", "min_lr_ratio: 0.1", "total_epochs: 5"):
        assert value in done.stdout


def test_help_may_be_cut_off(here: Path) -> None:
    script = here.parent / f"{here.name}_entry.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {script} --help | head -1"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Supervised fine-tuning")


def test_help_shows_the_command_the_groups_and_the_keys(here: Path) -> None:
    done = start(here, "--help")
    assert done.returncode == 0
    for fragment in (
        "torchrun",
        "-m sft.fsdp_sft_trainer",
        "experiment: gsm8k_qwen, lora, modern_llm_gpu, modern_llm_local, multiturn, open_r1_distill, quickstart",
        "  lr: 1e-5  # peak learning rate",
        "use_remove_padding: false  # true: samples lie end to end",
        "  multiturn:\n    enable: false  # true",
    ):
        assert fragment in done.stdout
    assert files(here) == {"rows.jsonl", "model", "model/config.json", "model/model.safetensors"}


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"TORCHELASTIC_RUN_ID": "none"}])
@pytest.mark.parametrize("flag", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_a_sweep_under_torchrun_is_refused(
    flag: str, environment: dict[str, str], here: Path, runnable: list[str]
) -> None:
    done = start(here, *runnable, flag, "optim.lr=0.5,0.25", **environment)
    assert done.returncode == 2
    assert "--multirun cannot run under torchrun" in done.stderr


@pytest.mark.parametrize(
    ("more", "asks_hydra"),
    [([], False), (["optim.lr=1e-3"], False), (["+experiment=lora"], True), (["hydra.job.name=x"], True)],
)
def test_hydra_is_asked_about_a_sweep_where_one_may_hide(runnable, monkeypatch, more, asks_hydra):
    asked, module = [], importlib.import_module("sft.config.cli")
    monkeypatch.setattr(module, "_through_hydra", lambda flags, overrides: asked.append(overrides) or [])
    module.cli(lambda config: None, [*runnable, *more])
    assert bool(asked) == asks_hydra


def test_a_plain_start_composes_once(runnable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    composed, compose = [], hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *given: composed.append(given) or compose(*given))
    door._defaults.cache_clear()
    cli(lambda config: None, [*runnable, "optim.lr=0.5", "use_remove_padding=true"])
    assert len(composed) == 1


def test_a_sweep_runs_each_job_in_a_directory_of_its_own(here: Path, runnable: list[str]) -> None:
    before = files(here)
    done = start(here, *runnable, "-m", "optim.lr=0.5,0.25", "trainer.default_local_dir=lr_${optim.lr}")
    assert done.stdout == "ran 0.5 lr_0.5\nran 0.25 lr_0.25\n"
    assert files(here) == before

    done = start(here, *runnable, "-m", "optim.lr=0.5,0.25", "trainer.default_local_dir=one", "trainer.seed=3")
    assert done.stdout == "ran 0.5 one/lr_0.5\nran 0.25 one/lr_0.25\n"

    done = start(here, *runnable, "-m", "optim.lr=0.5,0.25")  # each has the name of its settings
    assert len(set(done.stdout.splitlines())) == 2


def test_what_the_run_raises_is_shown_whole(here: Path, runnable: list[str]) -> None:
    done = start(here, *runnable, "trainer.experiment_name=raise")
    assert done.returncode == 1
    assert "RuntimeError: from inside the run" in done.stderr
    assert "in run" in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    assert start(here, *runnable, "trainer.experiment_name=exit").returncode == 7


def test_the_wheel_carries_every_yaml_file_and_its_types_and_works_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("build")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed := tmp_path / "installed")
    assert files(installed / "sft" / "conf") == files(ROOT / "conf")
    assert (installed / "sft" / "py.typed").exists(), "type checkers would not read our annotations"
    done = start(installed, "--cfg", "job", PYTHONPATH=str(installed))
    assert "train_batch_size: 256" in done.stdout
