"""What a run shows and leaves behind: lines, files, picture, trackers - and that none of it can end the run."""

from __future__ import annotations

import importlib.machinery
import io
import json
import logging
import math
import re
import sys
import threading
import types
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from sft.config.secrets import without_secrets
from sft.config.values import Tracker
from sft.track import curve as curve_module
from sft.track import trackers
from sft.track.console import Console, sample_table, short_line, step_line
from sft.track.curve import REDRAW_EVERY_S, LossCurve, _smoothed
from sft.track.facts import masked_command, write_run_json
from sft.track.files import MetricsFile
from sft.track.run_log import open_run
from sft.track.trackers import ADAPTERS, TrackerThread

TRAIN = {"train/loss": 1.23454, "train/grad_norm": 0.53, "train/lr": 9.511e-06, "perf/tokens_per_sec_per_gpu": 12345.4}
VAL = {"val/loss": 0.5, "val/perplexity": 1.6487, "val/token_accuracy": 0.875}


def open_in(run_dir: Path, **changes):
    arguments = {
        "loggers": ["console"], "project": "project", "experiment": "experiment", "config": {"optim": {"lr": 1e-5}},
        "total_steps": 25, "log_freq": 10,
    }  # fmt: skip
    return open_run(run_dir, **(arguments | changes))


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class TestLines:
    def test_training_line(self):
        line = step_line(1000, {"perf/step_time_s": 1.0, **TRAIN})
        assert line == "step=1000 loss=1.2345 lr=9.511e-06 grad_norm=0.53 tokens_per_sec_per_gpu=12345"

    def test_validation_line(self):
        assert step_line(100, VAL) == "step=100 val_loss=0.5000 val_perplexity=1.649 val_token_accuracy=0.875"

    def test_piped_console_shows_every_log_freq_and_the_last_step(self, tmp_path, capsys):
        with open_in(tmp_path) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
        assert re.findall(r"^step=(\d+) loss=\d\.\d{4} lr=\d\.\d{3}e-\d\d ", capsys.readouterr().out, re.M) == [
            "10", "20", "25",
        ]  # fmt: skip

    def test_validation_is_shown_at_any_step(self, tmp_path, capsys):
        with open_in(tmp_path) as run_log:
            run_log.log(7, VAL)
        assert "step=7 val_loss=0.5000" in capsys.readouterr().out

    def test_training_log_has_the_consoles_lines_after_a_timestamp(self, tmp_path, capsys):
        with open_in(tmp_path) as run_log:
            run_log.say("hello")
            run_log.warn("careful")
            run_log.log(10, TRAIN)
        shown = capsys.readouterr().out.splitlines()
        written = (tmp_path / "training.log").read_text().splitlines()
        stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ")
        assert all(stamp.match(line) for line in written)
        assert [stamp.sub("", line, count=1) for line in written] == shown
        assert shown[:2] == ["hello", "warning: careful"]

    def test_without_console_only_sentences_are_shown(self, tmp_path, capsys):
        with open_in(tmp_path, loggers=["jsonl"]) as run_log:
            run_log.say("hello")
            run_log.log(10, TRAIN)
        assert capsys.readouterr().out == "hello\n"
        assert "step=10" in (tmp_path / "training.log").read_text()

    def test_what_other_rooms_log_joins_the_run_log_while_it_is_open(self, tmp_path, capsys):
        logger = logging.getLogger("sft")
        before = logger.handlers
        with open_in(tmp_path):
            logger.warning("3 rows dropped")
        assert "warning: 3 rows dropped\n" in capsys.readouterr().out
        assert "warning: 3 rows dropped\n" in (tmp_path / "training.log").read_text()
        assert logger.handlers is before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestTerminal:
    @pytest.fixture
    def terminal(self, monkeypatch) -> Terminal:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setenv("TERM", "xterm")
        return Terminal()

    def test_bar_shows_steps_loss_lr_rate_and_eta(self, terminal):
        console = Console(400, 0, show_steps=True, stream=terminal)
        console.advance(57, TRAIN)
        console.say("a line above")
        console.close()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
        assert "a line above" in shown
        assert re.search(r"57/400 loss 1\.2345 lr 9\.5e-06 12,345 tok/s/GPU ETA", shown)

    def test_a_second_bar_counts_items_and_hands_them_on(self, terminal):
        console = Console(400, 0, show_steps=True, stream=terminal)
        assert list(console.progress(range(3), "validating", 3)) == [0, 1, 2]
        console.close()
        assert "validating" in terminal.getvalue()

    def test_brackets_are_text_not_markup(self, terminal):
        console = Console(4, 0, show_steps=True, stream=terminal)
        console.say("[red]labels[T][/red]")
        console.close()
        assert "[red]labels[T][/red]" in terminal.getvalue()


class TestMetricsFile:
    def test_every_step_is_written_exactly(self, tmp_path):
        logged = {step: {"train/loss": 1 / step, "train/lr": 1e-5 / 3} for step in range(1, 8)}
        with open_in(tmp_path) as run_log:
            for step, metrics in logged.items():
                run_log.log(step, metrics)
        assert records(tmp_path) == [{"step": step, **metrics} for step, metrics in logged.items()]
        assert all(next(iter(record)) == "step" for record in records(tmp_path))

    def test_validation_joins_the_object_of_its_step(self, tmp_path):
        with open_in(tmp_path) as run_log:
            run_log.log(0, VAL)
            run_log.log(1, TRAIN)
            run_log.log(1, VAL)
            run_log.log(2, TRAIN)
        assert records(tmp_path) == [{"step": 0, **VAL}, {"step": 1, **TRAIN, **VAL}, {"step": 2, **TRAIN}]

    def test_validation_repeated_on_resume_replaces_a_longer_line(self, tmp_path):
        with open_in(tmp_path) as run_log:
            run_log.log(0, {"val/loss": 0.123456789})
            run_log.log(0, {"val/loss": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "val/loss": 0.5}\n'

    def test_a_step_is_on_disk_before_the_next_one(self, tmp_path):
        with open_in(tmp_path) as run_log:
            run_log.log(1, TRAIN)
            assert records(tmp_path) == [{"step": 1, **TRAIN}]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_null_and_the_step_skipped(self, tmp_path, bad):
        with open_in(tmp_path) as run_log:
            run_log.log(1, {"train/loss": bad, "train/lr": 1.0})
            run_log.log(2, {"train/loss": 1.0, "val/perplexity": math.inf})  # too large to write, but nothing skipped
        assert records(tmp_path) == [
            {"step": 1, "train/loss": None, "train/lr": 1.0, "skipped": True},
            {"step": 2, "train/loss": 1.0, "val/perplexity": None},
        ]

    def test_resume_drops_the_steps_that_come_again(self, tmp_path):
        with open_in(tmp_path) as run_log:
            for step in range(1, 8):
                run_log.log(step, {"train/loss": float(step)})
        with open_in(tmp_path, start_step=5) as run_log:
            run_log.log(5, VAL)  # belongs to the step the first run finished
            run_log.log(6, {"train/loss": 60.0})
        assert [(record["step"], record["train/loss"]) for record in records(tmp_path)] == [
            (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, 60.0),
        ]  # fmt: skip
        assert records(tmp_path)[4]["val/loss"] == 0.5
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_a_torn_last_line_is_dropped_and_counted(self, tmp_path, capsys):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
        with open_in(tmp_path, start_step=2) as run_log:
            run_log.log(3, {"train/loss": 3.0})
        assert [record["step"] for record in records(tmp_path)] == [1, 3]
        assert re.search(r"warning: .*metrics\.jsonl: 1 unreadable lines? dropped", capsys.readouterr().out)


class TestCurve:
    def test_drawn_at_the_end(self, tmp_path):
        with open_in(tmp_path) as run_log:
            for step in range(1, 30):
                run_log.log(step, {"train/loss": 5.0 / step, "train/lr": 1e-5})
            run_log.log(29, VAL)
            assert not (tmp_path / "loss.png").exists()
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

    def test_the_same_numbers_are_drawn_once_and_new_ones_anew(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(curve_module, "_png", lambda figure: bytes([len(drawn.append(figure) or drawn)]))
        metrics_file = MetricsFile(tmp_path / "metrics.jsonl", keep_up_to_step=0)
        for step, card, end in ((1, 1, 1), (2, 2, 2)):
            metrics_file.log(step, TRAIN)
            for name, picture in (("card.png", card), ("end.png", end)):
                curve_module.draw(metrics_file.path, tmp_path / name, title="t")
                assert (tmp_path / name).read_bytes() == bytes([picture])

    def test_redrawn_now_and_then(self, tmp_path):
        now = 0.0
        metrics_file = MetricsFile(tmp_path / "metrics.jsonl", keep_up_to_step=0)
        metrics_file.log(1, TRAIN)
        curve = LossCurve(tmp_path / "loss.png", metrics_file.path, title="t", clock=lambda: now)
        now = REDRAW_EVERY_S / 2
        curve.log(1, TRAIN)
        assert not (tmp_path / "loss.png").exists()
        now = REDRAW_EVERY_S
        curve.log(1, TRAIN)
        assert (tmp_path / "loss.png").exists()

    def test_a_run_without_a_step_has_no_picture(self, tmp_path):
        with open_in(tmp_path):
            pass
        assert not (tmp_path / "loss.png").exists()

    def test_smoothing_is_a_centred_mean(self):
        values = [0.0] * 25 + [50.0] + [0.0] * 24  # 50 steps: one neighbour on each side
        smooth = _smoothed(np.array(values))
        assert smooth[23:28].round(6).tolist() == [0.0, 16.666667, 16.666667, 16.666667, 0.0]


class FakeTracker(types.ModuleType):
    """Stands for wandb, swanlab, trackio and mlflow at once: takes any call and remembers it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, verb: str):
        if verb.startswith("__"):
            raise AttributeError(verb)

        def call(*positional, **named):
            self.calls.append((verb, positional, named))
            return self

        return call

    def named(self, verb: str) -> dict:
        """Keyword arguments of the only call of `verb`."""
        (found,) = [named for called, _, named in self.calls if called == verb]
        return found

    def logged(self, verb: str) -> list[tuple[dict, int]]:
        return [(positional[0], named["step"]) for called, positional, named in self.calls if called == verb]


@pytest.fixture
def logged_out(monkeypatch, tmp_path_factory):
    """Nobody is logged in anywhere, and no mode is chosen."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch, logged_out):
    def install(name: str) -> FakeTracker:
        module = FakeTracker(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


class TestTrackers:
    @pytest.mark.parametrize(
        ("name", "opening", "logging_verb", "closing"),
        [
            ("wandb", "init", "log", "finish"),
            ("swanlab", "init", "log", "finish"),
            ("trackio", "init", "log", "finish"),
            ("mlflow", "start_run", "log_metrics", "end_run"),
        ],
    )
    def test_gets_every_log_point_with_our_names(self, tmp_path, fake, name, opening, logging_verb, closing):
        module = fake(name)
        with open_in(tmp_path, loggers=["console", name]) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
            run_log.log(25, VAL)
        assert module.logged(logging_verb) == [(TRAIN, 10), (TRAIN, 20), (TRAIN, 25), (VAL, 25)]
        assert [verb for verb, _, _ in module.calls if verb in {opening, closing}] == [opening, closing]

    def test_tensorboard(self, tmp_path, monkeypatch):
        package, module = FakeTracker("tensorboard"), FakeTracker("torch.utils.tensorboard")
        monkeypatch.setitem(sys.modules, "tensorboard", package)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        with open_in(tmp_path, loggers=["tensorboard"], start_step=8) as run_log:
            run_log.log(10, VAL)
        assert module.named("SummaryWriter")["purge_step"] == 9
        scalars = [positional for verb, positional, _ in module.calls if verb == "add_scalar"]
        assert scalars == [(name, value, 10) for name, value in VAL.items()]

    @pytest.mark.parametrize("name", ["wandb", "swanlab"])
    def test_without_a_key_it_works_offline_and_says_so(self, tmp_path, fake, capsys, name):
        module = fake(name)
        open_in(tmp_path, loggers=[name]).close()
        assert module.named("init")["mode"] == "offline"
        assert re.search(rf"{name}: no API key, .*offline.*{name} sync", capsys.readouterr().out)

    @pytest.mark.parametrize("name", ["wandb", "swanlab"])
    @pytest.mark.parametrize("variable", ["API_KEY", "MODE"])
    def test_a_key_or_a_chosen_mode_is_respected(self, tmp_path, fake, monkeypatch, name, variable):
        module = fake(name)
        monkeypatch.setenv(f"{name.upper()}_{variable}", "online")
        open_in(tmp_path, loggers=[name]).close()
        assert module.named("init")["mode"] is None

    def test_a_login_in_netrc_is_respected(self, tmp_path, fake, monkeypatch):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine api.wandb.ai login user password x\n")
        netrc.chmod(0o600)
        module = fake("wandb")
        monkeypatch.setenv("NETRC", str(netrc))
        open_in(tmp_path, loggers=["wandb"]).close()
        assert module.named("init")["mode"] is None

    def test_a_resumed_run_is_a_new_tracker_run_of_the_same_group(self, tmp_path, fake):
        module = fake("wandb")
        open_in(tmp_path, loggers=["wandb"], start_step=8).close()
        assert module.named("init")["name"] == "experiment@step-8"
        assert module.named("init")["group"] == "experiment"

    def test_secrets_of_the_config_stay_here(self, tmp_path, fake):
        module = fake("wandb")
        open_in(tmp_path, loggers=["wandb"], config={"a": {"hf_token": "hf_x", "lr": 1}}).close()
        assert module.named("init")["config"] == {"a": {"hf_token": "***", "lr": 1}}

    def test_mlflow_keeps_its_database_in_the_run_directory(self, tmp_path, fake):
        module = fake("mlflow")
        open_in(tmp_path, loggers=["mlflow"]).close()
        assert ("set_tracking_uri", (f"sqlite:///{tmp_path}/mlflow.db",), {}) in module.calls
        assert ("log_params", ({"optim.lr": 1e-5},), {}) in module.calls

    @pytest.mark.parametrize("verb", ["init", "log", "finish"])
    @pytest.mark.parametrize("error", [OSError("no server"), SystemExit(1)])
    def test_one_that_fails_is_off_after_one_warning(self, tmp_path, fake, capsys, verb, error):
        def fail(*_, **__):
            raise error

        setattr(fake("trackio"), verb, fail)
        with open_in(tmp_path, loggers=["trackio"]) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
        assert len(records(tmp_path)) == 25
        assert capsys.readouterr().out.count("warning: trackio is off for the rest of this run") == 1

    def test_one_that_hangs_stops_neither_step_nor_end(self, tmp_path, fake, capsys, monkeypatch):
        released = threading.Event()
        module = fake("trackio")
        module.init = lambda **_: released.wait() and module
        monkeypatch.setattr(trackers, "CLOSING_PATIENCE_S", 0.0)
        with open_in(tmp_path, loggers=["trackio"]) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
        released.set()
        assert len(records(tmp_path)) == 25
        assert "trackio did not finish" in capsys.readouterr().out


def test_every_tracker_that_the_schema_knows_has_an_adapter():
    assert get_args(Tracker) == ("console", "jsonl", *ADAPTERS)


class TestNothingEndsTheRun:
    def test_a_console_that_breaks(self, tmp_path, monkeypatch):
        class ClosedPipe(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError("head has seen enough")

        monkeypatch.setattr(sys, "stdout", ClosedPipe())
        with open_in(tmp_path) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
        assert len(records(tmp_path)) == 25
        log = (tmp_path / "training.log").read_text()
        assert log.count("warning: console is off") == 1
        assert "step=20" in log

    def test_a_file_that_breaks(self, tmp_path, monkeypatch, capsys):
        def disk_full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(MetricsFile, "log", disk_full)
        with open_in(tmp_path) as run_log:
            for step in range(1, 26):
                run_log.log(step, TRAIN)
        shown = capsys.readouterr().out
        assert shown.count("warning: metrics.jsonl is off for the rest of this run") == 1
        assert "step=20" in shown

    def test_closing_twice(self, tmp_path):
        run_log = open_in(tmp_path)
        run_log.close()
        run_log.close()


def test_other_ranks_are_silent_and_touch_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrackerThread, "__init__", lambda *_: pytest.fail("a tracker on a silent rank"))
    with open_in(tmp_path / "run", is_main=False) as run_log:
        run_log.say("hello")
        run_log.warn("careful")
        run_log.log(10, TRAIN)
        assert list(run_log.progress([1, 2], "validating")) == [1, 2]
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


class TestFacts:
    def test_run_json(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["trainer", "optim.lr=1e-5", "+wandb_api_key=abc"])
        write_run_json(tmp_path, world_size=2, data_hashes={"train": "00ff"})
        facts = json.loads((tmp_path / "run.json").read_text())
        assert facts["command"] == ["trainer", "optim.lr=1e-5", "+wandb_api_key=***"]
        assert facts["world_size"] == 2
        assert facts["data_hashes"] == {"train": "00ff"}
        assert facts["versions"]["torch"] == metadata.version("torch")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", facts["started_at"])
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]

    @pytest.mark.parametrize(
        ("argument", "masked"),
        [
            ("+hub.hf_token=hf_abc", "+hub.hf_token=***"),
            ("--password=x", "--password=***"),
            ("model.api_key=a=b", "model.api_key=***"),
            ("CLIENT_SECRET=x", "CLIENT_SECRET=***"),
            ("data.url=https://me:pw@host/x", "data.url=https://***@host/x"),
            ("data.max_tokens_per_gpu=4096", "data.max_tokens_per_gpu=4096"),
            ("data.balance_dp_token=True", "data.balance_dp_token=True"),
            ("model.api_key=null", "model.api_key=null"),
        ],
    )
    def test_masking(self, argument, masked):
        assert masked_command(["trainer", argument]) == ["trainer", masked]

    def test_masking_of_a_value_that_stands_alone(self):
        assert masked_command(["t", "--api-key", "abc", "--lr", "1"]) == ["t", "--api-key", "***", "--lr", "1"]

    def test_without_secrets_goes_down(self):
        assert without_secrets({"a": {"b": {"token": "x"}}, "n": [1]}) == {"a": {"b": {"token": "***"}}, "n": [1]}


class TestOnATerminal:
    def test_a_step_is_one_line_of_at_most_80_columns(self) -> None:
        line = short_line(1000, {"perf/step_time_s": 1.0, **TRAIN, **VAL})
        assert line.startswith("step=1000 loss=1.2345 lr=9.511e-06")
        assert "val_loss=0.5000" in line and len(line) <= 80
        assert len(short_line(10**9, TRAIN | {"val/loss": 12345.678})) <= 80
        assert short_line(100, VAL).startswith("step=100 val_loss=0.5000")

    def test_samples_are_a_small_table(self) -> None:
        answers = [
            {"row": "a/very/long/path/of/rows/val.jsonl:12", "answer": "\n" * 300, "expected": "41"},
            {"row": "val.jsonl:2", "answer": "forty\x1b[31m", "expected": "x" * 90},
        ]
        lines = sample_table(7, answers)
        assert lines[0] == "samples after step 7:"
        assert len(lines) == 4 and all(len(line) <= 80 and line.isprintable() for line in lines)
        assert lines[2].endswith("41") and "val.jsonl:12" in lines[2] and r"\n\n" in lines[2] and "..." in lines[2]
        assert r"forty\x1b[31m" in lines[3] and lines[3].endswith("...")
        assert sample_table(7, []) == []
