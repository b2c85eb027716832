"""The script for the first ten minutes on a GPU, small; and that no cut, error or hang loses more than it must."""

import json
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sft.model.loss_form import LOSS_KERNELS
from tests.launch import clean_environment

SCRIPTS = Path(__file__).parents[2] / "scripts"
HERE = ("limits", "right", "train", "memory", "flex", "command", "tests")


@pytest.fixture(scope="module")
def stages():
    """scripts/stages.py"""
    sys.path.insert(0, str(SCRIPTS))
    import stages

    yield stages
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the script wrote on this machine."""
    path = tmp_path_factory.mktemp("first_gpu") / "result.json"
    call = [sys.executable, str(SCRIPTS / "first_gpu.py"), "--small", "--out", str(path), "--stages", *HERE]
    done = subprocess.run(call, env=clean_environment(), capture_output=True, text=True, timeout=500, check=False)
    last = (done.stdout.splitlines() or [""])[-1]
    assert (done.returncode, last) == (0, f"written to {path}; not done: nothing; wrong: nothing"), done.stderr[-2000:]
    return json.loads(path.read_text())


def test_every_stage_runs_here(result):
    assert {name: told["state"] for name, told in result["stages"].items()} == dict.fromkeys(HERE, "done")
    assert result["facts"]["versions"]["torch"] and result["facts"]["small"] is True


def test_kernels_are_compared_and_those_that_cannot_run_say_why(result):
    found = result["stages"]["right"]["found"]
    assert found["sdpa of width 16"]["right"] and found["sdpa with a window of width 24"]["right"]
    assert found["loss by torch"]["right"] and found["loss by auto, capped"]["right"]
    assert "error" in found["loss by torch_fp32"], "it needs CUDA"
    assert "error" in found["flash_attention_3 of width 16"]


def test_steps_are_timed_profiled_and_set_against_the_estimate(result):
    train, memory = (result["stages"][name]["found"] for name in ("train", "memory"))
    timed = {"eager", "checkpointed", "not resharded", "liger"}
    assert all(train[name]["tokens_per_s"]["median"] > 0 for name in timed)
    assert "nothing ran" in train["profile"][0] and len(train["profile"]) > 20
    assert "per rank" in memory["small"]["estimate"] and "per rank" in memory["small, LoRA"]["estimate"]
    rows = result["stages"]["flex"]["found"]
    assert len([name for name in rows if name.startswith("row")]) == 12 and all(
        told["finite"] for name, told in rows.items() if name.startswith("row")
    )


def test_the_command_line_resumes_to_the_same_losses(result):
    assert result["stages"]["command"]["found"]["resumed at step 10"] == {"equal_losses": 20, "of": 20, "right": True}


def test_tests_of_the_gpu_are_counted(result):
    """Where there is no GPU, all of them skip."""
    counts = result["stages"]["tests"]["found"]["tests so far"]
    assert counts["right"] and counts["skipped"] > 50 and set(counts) == {"right", "skipped"}


@pytest.mark.parametrize("rivals", [None, "python_with_trl"])
def test_the_contest_with_trl_is_noted_round_by_round(stages, rivals, monkeypatch):
    """Without the contest itself, whose every run is a start of the trainer: scripts/bench_train.py."""
    import first_gpu

    called = []

    def contest(call, _):
        called.extend(call)
        yield "round 1: ours            450 tokens/s"
        Path(call[call.index("--out") + 1]).write_text(json.dumps({"contestants": {"ours": {"tokens_per_s": 450}}}))

    monkeypatch.setattr(stages, "lines_of", contest)
    noted = []
    first_gpu.Plan(small=True, rivals=rivals and Path(rivals)).trl(lambda *what: noted.append(what))
    assert noted == [("ours", "round 1: ours            450 tokens/s"), ("ours", {"tokens_per_s": 450})]
    assert ("trl_packed" in called) == ("--rivals" in called) == (rivals is not None)


def test_what_no_gpu_has_compared_is_no_default():
    """A kernel of our own, compiled layers and Liger wait for a whole result from a GPU in benchmarks/."""
    results = [json.loads(path.read_text()) for path in (SCRIPTS.parent / "benchmarks").glob("first_gpu_*.json")]
    if any(result["facts"]["device"] != "cpu" and not result["facts"]["small"] for result in results):
        pytest.skip("a GPU has compared them")
    model = yaml.safe_load((SCRIPTS.parent / "conf/model/causal_lm.yaml").read_text())
    assert (model["loss_kernel"], model["compile"], model["use_liger"]) == ("auto", False, False)
    assert LOSS_KERNELS["auto"] == LOSS_KERNELS["torch"]


def test_a_command_is_heard_line_by_line_and_ends_with_its_stage(stages, tmp_path):
    talks = [sys.executable, "-uc", "import time; print('one'); print('two'); time.sleep(60)"]
    heard = []
    began = time.monotonic()

    def listen(note):
        for line in stages.lines_of(talks, tmp_path):
            heard.append(line)

    results = stages.Results(tmp_path / "r.json", {})
    assert stages.run_stages([stages.Stage("talk", 3, listen)], results) == ["talk"]
    assert heard == ["one", "two"] and time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="no such thing"):
        list(stages.lines_of([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path))


def test_the_wheels_are_all_that_a_python_with_torch_and_transformers_lacks(stages):
    """What the packages need in turn, by what the installed ones say of themselves."""
    import first_gpu

    carried = {canonicalize_name(name) for name in (*first_gpu.NEEDED.values(), *first_gpu.BELOW)}
    there = needed_by({"torch", "transformers"})
    assert needed_by({canonicalize_name(name) for name in first_gpu.NEEDED.values()}) - there <= carried
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]
    ours = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert ours - there <= carried


def needed_by(packages):
    """These packages, and all that they need on this system without extras."""
    found, new = set(), set(packages)
    while new:
        found |= new
        wanted = [Requirement(text) for name in new for text in metadata.requires(name) or ()]
        wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
        new = {canonicalize_name(each.name) for each in wanted} - found
    return found


def test_a_stage_that_fails_or_is_late_does_not_stop_the_others(stages, tmp_path):
    def fails(note):
        note("before", 1)
        raise ValueError("no such kernel")

    def late(note):
        note("first", 2)
        time.sleep(30)

    def late_and_patient(note):
        try:
            late(note)
        except Exception:  # as a comparison does that notes why a kernel cannot run
            time.sleep(30)

    results = stages.Results(tmp_path / "r.json", {})
    order = [
        stages.Stage("a", 5, fails),
        stages.Stage("b", 0.2, late_and_patient),
        stages.Stage("c", 5, lambda note: note("x", 3)),
    ]
    assert stages.run_stages(order, results) == ["a", "b"]
    told = json.loads((tmp_path / "r.json").read_text())["stages"]
    assert told["a"]["state"] == "failed: ValueError: no such kernel" and told["a"]["found"] == {"before": 1}
    assert told["b"]["state"] == "out of time after 0.2 s" and told["b"]["found"] == {"first": 2}
    assert told["c"]["state"] == "done" and told["c"]["found"] == {"x": 3}
    again = stages.Results(tmp_path / "r.json", {})
    ran = []
    stages.run_stages([stages.Stage(n, 5, lambda _, n=n: ran.append(n)) for n in "abc"], again)
    assert ran == ["a", "b"], "what is done is not done again"


def test_a_cut_leaves_what_was_found_and_says_which_stage_was_cut(tmp_path):
    program = (
        f"import os, sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from pathlib import Path\nfrom stages import Results, Stage, run_stages\n"
        "def cut(note):\n    note('found', 7)\n    os.kill(os.getpid(), 9)\n"
        "run_stages([Stage('one', 5, lambda note: note('x', 1)), Stage('two', 5, cut)], Results(Path('r.json'), {}))\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False).returncode == -9
    )
    told = json.loads((tmp_path / "r.json").read_text())["stages"]
    assert (told["one"]["state"], told["two"]["state"], told["two"]["found"]) == ("done", "cut", {"found": 7})


def test_a_call_that_never_comes_back_ends_the_process(tmp_path):
    program = (
        f"import signal, sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from pathlib import Path\nimport stages\nstages.GRACE_S = 0.3\n"
        "def deaf(note):\n    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); import time; time.sleep(60)\n"
        "stages.run_stages([stages.Stage('deaf', 0.1, deaf)], stages.Results(Path('r.json'), {}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert done.returncode == 3
    assert json.loads((tmp_path / "r.json").read_text())["stages"]["deaf"]["state"].startswith(
        "stuck in a call after 0.4"
    )


def test_what_is_wrong_is_named(stages, tmp_path):
    results = stages.Results(tmp_path / "r.json", {})
    results.put("right", found={"varlen": {"right": False}, "sdpa": {"right": True}, "flex": {"error": "no"}, "n": 3})
    assert results.wrong == ["varlen"]
