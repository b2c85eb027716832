"""The command: what it says, to the letter; its exit codes; the same door as the trainer's."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.assets import write_jsonl
from tests.launch import REPOSITORY, train

GOLDEN = Path(__file__).parents[2] / "golden" / "inspect.txt"
PAGE = Path(__file__).parents[3] / "docs" / "inspect.md"


def start(*arguments, **options):
    return train(arguments, ranks=0, cwd=REPOSITORY, module="sft.inspect", **options)


def test_what_is_said_when_piped(inspect):
    """To renew it: SFT_GOLDEN=write python -m pytest <this file>, read the difference, copy it into the page."""
    code, out, _ = inspect("+inspect.samples=3")
    assert code == 0
    if os.environ.get("SFT_GOLDEN") == "write":
        GOLDEN.write_text(out)
    assert out == GOLDEN.read_text()
    assert out in PAGE.read_text(), "the example of the page is this one"


def test_the_command_itself_needs_no_weights(overrides, model, tmp_path):
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    done = start(*overrides, f"model.partial_pretrain={bare}", "epochs=2", "+inspect.samples=1", may_fork=False)
    assert (done.returncode, done.stderr.count("epochs=2 is read as trainer.total_epochs=2.")) == (0, 1)
    assert "«2<|im_end|>»" in done.stdout and "4 steps = 2.00 epochs of 2" in done.stdout
    assert "\x1b[" not in done.stdout, "piped, nobody sees colours"


def test_help_lists_both_kinds_of_keys():
    done = start("--help")
    assert done.returncode == 0
    assert "+inspect.samples=3" in done.stdout and "train_batch_size" in done.stdout


def test_configurations_that_cannot_run_exit_with_2(overrides):
    done = start(*overrides, "+inspect.smaples=1", "+inspect.ranks=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "inspect.smaples is not a key; did you mean inspect.samples?" in done.stderr
    assert done.stderr.startswith("2 problems") and "inspect.ranks=none" in done.stderr
    done = start(*overrides, "optim.lr=abc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "optim.lr" in done.stderr


def test_data_that_cannot_train_exits_with_3(inspect, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"question": "1?", "answer": ""}])
    code, out, err = inspect(f"data.train_files={bad}")
    assert (code, out) == (3, "")
    assert err.splitlines()[-3].startswith("error: 1 of 1 rows cannot be used:") and "bad.jsonl:1" in err
    far = write_jsonl(tmp_path / "far.jsonl", [{"question": "the apples " * 90, "answer": "2"}])
    code, _, err = inspect(f"data.train_files={far}")
    assert code == 3 and "error: far.jsonl: no sample is left" in err
    code, _, err = inspect(f"data.val_files={bad}")
    assert code == 3 and "bad.jsonl:1" in err


def test_a_model_that_cannot_be_used_exits_with_2(inspect, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    code, _, err = inspect(f"model.partial_pretrain={tmp_path / 'empty'}")
    assert code == 2 and "error: model.partial_pretrain" in err


def test_ranks_that_cannot_share_a_row_are_refused_as_by_the_trainer(inspect):
    split = ["use_remove_padding=true", "ulysses_sequence_parallel_size=3", "data.train_batch_size=3"]
    code, out, err = inspect(*split, "data.micro_batch_size_per_gpu=3", "+inspect.ranks=3")
    assert (code, out) == (2, "")
    assert "ulysses_sequence_parallel_size=3 must divide the 4 attention heads of qwen3; valid on 3 ranks: 1." in err


def test_a_variable_that_the_template_does_not_read_is_said_once(overrides):
    done = start(*overrides, "+data.apply_chat_template_kwargs.enable_thinkin=false", "+inspect.samples=0")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("the chat template does not read enable_thinkin of data.apply_chat") == 1


def test_one_row_is_found_by_its_name(inspect):
    code, out, _ = inspect("+inspect.row=train.jsonl:3")
    assert code == 0
    assert "train.jsonl:3 · sample 3 of 5" in out and out.count(" · sample ") == 1
    code, _, err = inspect("+inspect.row=train.jsonl:99")
    assert code == 2 and "inspect.row=train.jsonl:99: no sample" in err and "train.jsonl:1" in err


def test_samples_can_be_drawn(inspect):
    shown = lambda out: [line.split(" · ")[0] for line in out.splitlines() if " · sample " in line]  # noqa: E731
    first, drawn = shown(inspect()[1]), shown(inspect("+inspect.seed=5")[1])
    assert [name.split(":")[-1] for name in first] == ["1", "2", "3"]
    assert drawn != first and drawn == shown(inspect("+inspect.seed=5")[1])


def test_ids_on_demand(inspect):
    assert "2[" not in inspect("+inspect.samples=1")[1]
    out = inspect("+inspect.samples=1", "+inspect.ids=true")[1]
    assert "<|im_end|>[2]" in out


@pytest.mark.parametrize("ranks, told", [("2", "step = 2 dp x 1"), ("4", "step = 4 dp x 1")])
def test_the_plan_is_of_the_ranks_that_will_train(overrides, ranks, told):
    done = start(*overrides, "+inspect.samples=0", f"+inspect.ranks={ranks}", "data.micro_batch_size_per_gpu=1")
    assert done.returncode == 0, done.stderr
    assert told.replace("x 1", f"x {4 // int(ranks)}") in done.stdout
    assert f"an estimate for {ranks} ranks" in done.stdout


def test_the_fewest_ranks_that_sequence_parallelism_allows(overrides):
    done = start(*overrides, "+inspect.samples=0", "ulysses_sequence_parallel_size=2", "use_remove_padding=true")
    assert done.returncode == 0, done.stderr
    assert "step = 1 dp (of 2 sp ranks each)" in done.stdout


def test_the_fewest_ranks_that_copies_of_the_shards_allow(overrides):
    copies = ["model.fsdp_config.dp_replicate=2", "data.micro_batch_size_per_gpu=1"]
    done = start(*overrides, "+inspect.samples=0", *copies)
    assert done.returncode == 0, done.stderr
    assert "step = 2 dp x 2" in done.stdout and "an estimate for 2 ranks" in done.stdout


def test_ranks_that_do_not_fit_the_batch_are_a_problem(overrides):
    done = start(*overrides, "+inspect.ranks=3")
    assert done.returncode == 2
    assert "data.train_batch_size=4 must be a multiple of dp=3" in done.stderr


def test_lora_is_counted(inspect):
    pytest.importorskip("peft")
    assert "of them train" not in inspect("+inspect.samples=0")[1]
    assert "of them train" in inspect("+inspect.samples=0", "model.lora_rank=4")[1]


def test_a_part_of_the_rows_is_drawn_from_all_files(inspect, tmp_path):
    for file in "ab":
        rows = [{"question": f"{file} {n}?", "answer": f"{n}"} for n in range(300)]
        write_jsonl(tmp_path / f"{file}.jsonl", rows)
    files = f"data.train_files=[{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}]"
    out = tmp_path / "seen.jsonl"
    many = ["+inspect.written=-1", "data.val_files=null", f"+inspect.out={out}"]
    code, _, err = inspect(files, *many, "+inspect.sample_rows=60")
    assert code == 0 and "60 of 600 rows are drawn: all numbers are of these rows alone" in err
    seen = [json.loads(line)["row"] for line in out.read_text().splitlines()]
    assert [sum(row.startswith(f"{file}.jsonl:") for row in seen) for file in "ab"] == [30, 30]
    assert max(int(row.partition(":")[2]) for row in seen) > 200
    code, _, err = inspect(files, *many, "+inspect.sample_rows=600")
    assert code == 0 and "are drawn" not in err and len(out.read_text().splitlines()) == 600
