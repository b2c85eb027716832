"""What happens while the trainer is imported: rows become tokens in a child that nobody depends on and that outlives
nobody, and weights come into the page cache."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sft.config import load_config
from sft.data.cache.cache import SAMPLES_FILE
from sft.train import head_start
from sft.train.head_start import read_through, read_weights_ahead, tokenise_ahead
from tests.assets import write_jsonl
from tests.launch import REPOSITORY, clean_environment, train

AHEAD = """
import sys
from sft.config import load_config
from sft.train import head_start
from sft.train.head_start import read_through, read_weights_ahead, tokenise_ahead

head_start = tokenise_ahead(load_config(sys.argv[1:]))
"""


def ahead(base, *overrides, then):
    """A process that starts a child to tokenise, and then does something else. It is over when its child is, too."""
    script = AHEAD + then
    command = [sys.executable, "-c", script, *base, *overrides]
    return subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=100)


def caches(directory: Path) -> list[Path]:
    """Those that are whole: the directory of one in the making begins with a dot."""
    return list(directory.glob(f"[!.]*/{SAMPLES_FILE}"))


def test_the_cache_is_filled_beside_a_process_that_does_something_else(base, tmp_path):
    done = ahead(base, f"data.cache_dir={tmp_path / 'cache'}", then="head_start.wait()")
    assert done.returncode == 0 and len(caches(tmp_path / "cache")) == 2, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "tokenised train.jsonl",
        "tokenised val.jsonl",
    ]


def test_a_run_says_once_what_was_tokenised_and_uses_it(base, tmp_path):
    options = [f"data.cache_dir={tmp_path / 'cache'}", f"trainer.default_local_dir={tmp_path / 'run'}"]
    for ranks, times in ((2, 1), (0, 0)):  # by torchrun first, and from the cache by python alone
        done = train([*base, *options], ranks=ranks, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("tokenised train.jsonl: 10 rows") == times
        assert done.stderr.count("\ntrain.jsonl: ") == 1, done.stderr
    assert len(caches(tmp_path / "cache")) == 2


def test_what_is_wrong_with_the_rows_is_said_once_and_by_the_run(base, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}, {"question": "How?"}])
    options = [f"data.train_files={rows}", "data.train_batch_size=2", f"data.cache_dir={tmp_path / 'cache'}"]
    done = train([*base, *options, f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=0, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("rows.jsonl:2") == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("what", "told"), [("1 / 0", "ended with 1"), ("os.kill(os.getpid(), 9)", "ended with -9")])
def test_a_child_that_fails_is_said_and_the_run_goes_on_without_it(base, tmp_path, what, told):
    failing = f"import os, sft.train.head_start\nsft.train.head_start.tokenise_data = lambda *_: {what}\n"
    script = failing + AHEAD + "head_start.wait(); print('went on')"
    command = [sys.executable, "-c", script, *base, f"data.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout == "went on\n"
    assert f"the process that tokenised ahead {told}; this one tokenises what is missing." in done.stderr


def test_a_run_that_cannot_fork_does_without(base, monkeypatch):
    def fork():
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", fork)
    monkeypatch.delitem(sys.modules, "sft.fsdp_sft_trainer", raising=False)
    assert tokenise_ahead(load_config(base)) is None


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_child_ends_with_its_parent(base, tmp_path, end):
    rows = [{"question": f"What is {k}?", "answer": f"{k}. " * 50} for k in range(100_000)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    options = [f"data.train_files={tmp_path / 'rows.jsonl'}", f"data.cache_dir={tmp_path / 'cache'}"]
    wait = f"""
import glob, os, signal, time
while not glob.glob("{tmp_path}/cache/.*.partial"):
    time.sleep(0.01)
"""
    started = time.monotonic()
    done = ahead(base, *options, then=wait + end)  # over when nobody holds its output any more
    assert done.returncode in (0, -signal.SIGKILL)
    assert not caches(tmp_path / "cache") and "tokenised" not in done.stderr, "tokenising went on to its end"
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("override", "rank", "platform"),
    [
        ("model.external_lib=json", "0", "linux"),
        ("data.custom_cls.path=rows.py", "0", "linux"),
        ("optim.lr=1e-3", "1", "linux"),
        ("optim.lr=1e-3", "0", "darwin"),
        ("model.trust_remote_code=true", "0", "linux"),
    ],
)
def test_nothing_is_forked_where_your_code_would_run_twice_or_another_rank_does_it_or_forks_are_unsafe(
    base, monkeypatch, tmp_path, override, rank, platform
):
    (tmp_path / "rows.py").write_text("class CustomDataset: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fork", lambda: pytest.fail("forked"))
    config = load_config([*base, override, *["data.custom_cls.name=CustomDataset"] * ("custom" in override)])
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.delitem(sys.modules, "sft.fsdp_sft_trainer", raising=False)
    assert tokenise_ahead(config) is None


def test_nothing_is_forked_for_the_second_job_of_a_sweep(base, monkeypatch):
    """By then there are threads, and nothing is left to import."""
    monkeypatch.setattr("os.fork", lambda: pytest.fail("forked"))
    monkeypatch.setitem(sys.modules, "sft.fsdp_sft_trainer", sys)
    assert tokenise_ahead(load_config(base)) is None


def test_the_weights_are_read_from_their_first_byte_to_their_last(base, tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for file, size in zip(files, (3 * head_start.PIECE + 5, 7), strict=True):
        file.write_bytes(bytes(size))
    assert read_through(files) == 3 * head_start.PIECE + 12
    assert read_through([tmp_path / "gone", *files]) == 0

    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_start, "read_through", read.extend)
        thread = read_weights_ahead(load_config(base))
        thread.join()
    assert [path.name for path in read] == ["model.safetensors"]


@pytest.mark.parametrize("why_not", ["other nodes", "another rank", "no memory", "no weights", "not here"])
def test_the_weights_are_not_read_where_that_would_do_no_good(base, tmp_path, monkeypatch, why_not):
    config = load_config(base)
    if why_not == "other nodes":
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    elif why_not == "another rank":
        monkeypatch.setenv("LOCAL_RANK", "1")
    elif why_not == "no memory":  # a small container
        monkeypatch.setattr(head_start, "limit_bytes", lambda: 1000)
    else:
        elsewhere = str(tmp_path if why_not == "no weights" else "org/name")
        config = replace(config, model=replace(config.model, partial_pretrain=elsewhere))
    assert read_weights_ahead(config) is None


def test_ctrl_c_among_the_imports_ends_the_command_without_a_traceback(base, tmp_path):
    """As if it were pressed when the first heavy import begins."""
    pressed = """
import sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "sft.train.head_start":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
"""
    (tmp_path / "sitecustomize.py").write_text(pressed)
    done = train(base, ranks=0, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    assert (done.returncode, done.stderr) == (130, "")
