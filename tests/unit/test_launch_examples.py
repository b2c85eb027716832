"""The examples for clusters: shell that bash accepts, YAML that parses, and overrides that the config door accepts."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from torch.distributed.run import get_args_parser

from sft.config.compose import compose
from sft.config.expectations import expectations
from tests.launch import REPOSITORY

EXAMPLES = REPOSITORY / "scripts" / "launch"
DOCUMENTED = ("slurm.sbatch", "kubernetes.yaml", "skypilot.yaml")


def script_of(name):
    """The shell in an example."""
    text = (EXAMPLES / name).read_text()
    if name.endswith(".sbatch"):
        return text
    documents = list(yaml.safe_load_all(text))
    if name == "skypilot.yaml":
        return documents[0]["run"]
    job = next(document for document in documents if document["kind"] == "Job")
    return job["spec"]["template"]["spec"]["containers"][0]["args"][0]


def test_every_example_is_documented():
    docs = (REPOSITORY / "docs" / "launch.md").read_text()
    assert {path.name for path in EXAMPLES.iterdir()} == set(DOCUMENTED)
    assert all(f"scripts/launch/{name}" in docs for name in DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_bash_accepts_it(name):
    checked = subprocess.run(["bash", "-n"], input=script_of(name), text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", DOCUMENTED)
def test_its_overrides_compose(name):
    """Values may name variables of the shell; keys must be those of the schema."""
    command = script_of(name).partition("scripts/train.sh")[2].replace("\\\n", " ").splitlines()[0].removesuffix(" &")
    overrides = [word.replace('"', "").replace("$", "") for word in command.split()]
    assert len(overrides) >= 8 and all(re.fullmatch(r"[\w.]+=\S+", word) for word in overrides)
    compose(overrides)
    assert {word.partition("=")[0] for word in overrides} <= set(expectations())


def test_the_variables_are_those_of_the_script():
    """NNODES, NPROC_PER_NODE and MASTER_ADDR: without one of them, train.sh would start something else."""
    for name in DOCUMENTED:
        text = (EXAMPLES / name).read_text()
        assert all(variable in text for variable in ("NNODES", "NPROC_PER_NODE", "MASTER_ADDR")), name


@pytest.mark.parametrize(
    ("given", "threads", "ranks"),
    [({}, "8", "2"), ({"NPROC_PER_NODE": "4"}, "4", "4"), ({"NPROC_PER_NODE": "64"}, "1", "64"),
     ({"OMP_NUM_THREADS": "3"}, "3", "2")],
)  # fmt: skip
def test_a_rank_has_its_share_of_the_cores_and_memory_that_grows(given, threads, ranks, tmp_path):
    """On a node of 2 GPUs and 16 cores; torchrun alone would give one thread to each rank."""
    told = 'if [ "$1" = -c ]; then echo 2; else echo "$OMP_NUM_THREADS $PYTORCH_ALLOC_CONF $*"; fi'
    for name, does in {"python": told, "nproc": "echo 16"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **given}
    script = REPOSITORY / "scripts" / "train.sh"
    done = subprocess.run(["bash", script, "a=b"], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.startswith(f"{threads} expandable_segments:True -m torch.distributed.run")
    assert f"--nproc-per-node={ranks}" in done.stdout


def of_train_sh(tmp_path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/train.sh a=b` with a shell script in place of Python, so that no run is started."""
    (tmp_path / "python").write_text(f"#!/bin/bash\n{python}\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    script = REPOSITORY / "scripts" / "train.sh"
    return subprocess.run(["bash", script, "a=b"], env=environment, text=True, capture_output=True, check=True)


@pytest.mark.parametrize("can_wait", [True, False])
def test_torchrun_is_told_how_long_to_wait_where_it_can_be(can_wait, tmp_path):
    """That of torch 2.11 ends with an error at a flag that it does not know."""
    told = f'if [ "$1" = -c ]; then echo 2 {can_wait}; else echo "$*"; fi'
    done = of_train_sh(tmp_path, told, SHUTDOWN_S="77")
    assert ("--shutdown-timeout=77" in done.stdout) == can_wait
    assert ("kills a run 30 s after" in done.stderr) == (not can_wait)


def test_every_flag_of_train_sh_is_one_of_torchrun(tmp_path):
    """Of this torch, asked by the script itself; the run is not started."""
    told = f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; else printf "%s\\n" "$@"; fi'
    done = of_train_sh(tmp_path, told)
    module, *flags = done.stdout.splitlines()[1:]
    assert module == "torch.distributed.run"
    options = get_args_parser().parse_args(flags)
    assert options.training_script == "sft.fsdp_sft_trainer" and options.training_script_args == ["a=b"]


def test_torch_is_not_imported_to_start_a_known_number_of_ranks(tmp_path):
    told = f'if [ "$1" = -c ]; then exec {sys.executable} -X importtime "$@"; fi'
    done = of_train_sh(tmp_path, told, NPROC_PER_NODE="2")
    assert "| importlib.util" in done.stderr and not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_the_pods_have_the_name_that_they_meet_at():
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    told = {entry["name"]: entry["value"] for entry in pods["containers"][0]["env"]}
    assert told["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pods["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(told["NNODES"])


STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo node-0; else echo "$@" >> told; fi',
    "srun": "trap 'sleep 0.5; echo saved >> told; exit 1' USR1; echo started >> told; while sleep 0.1; do :; done",
}


def slurm_job(directory, **stand_ins):
    """slurm.sbatch, begun as the batch script of job 7, with others in place of Slurm's commands."""
    for name, script in (STAND_INS | stand_ins).items():
        (directory / name).write_text(f"#!/bin/bash\n{script}\n")
        (directory / name).chmod(0o755)
    given = {"SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_NODELIST": "node-[0-1]", "SLURM_JOB_ID": "7"}
    return subprocess.Popen(
        ["bash", EXAMPLES / "slurm.sbatch"],
        cwd=directory,
        env=os.environ | given | {"PATH": f"{directory}:{os.environ['PATH']}"},
    )


def test_slurm_puts_a_job_whose_time_is_up_back_into_the_queue_after_it_has_saved(tmp_path):
    job = slurm_job(tmp_path)
    while not (tmp_path / "told").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    assert (tmp_path / "told").read_text().splitlines() == ["started", "saved", "requeue 7"]


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_takes_the_end_of_any_other_run_for_the_end_of_the_job(tmp_path, code):
    assert slurm_job(tmp_path, srun=f"exit {code}").wait(timeout=20) == code
    assert not (tmp_path / "told").exists()
