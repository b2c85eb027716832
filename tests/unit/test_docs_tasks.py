"""Every page of docs/tasks does what it says: its commands run on a tiny model, and print what the page shows.

The commands run as they stand on the page, in one process in place of torchrun's, in a directory with the files that
docs/tasks/index.md names. Runs are cut to two steps of four samples, unless the page says how many.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sft.config import door
from tests.assets import tiny_model_dir, write_jsonl
from tests.docs_shell import TRAINER, Block, Command, blocks, calls, command_of, install_stand_ins
from tests.launch import REPOSITORY, read_metrics, train

TASKS = REPOSITORY / "docs" / "tasks"
NOTEBOOKS = REPOSITORY / "docs" / "notebooks"
PAGES = [REPOSITORY / "docs" / "index.md", *sorted({*TASKS.glob("*.md")} - {TASKS / "index.md"})]
NEEDS_MORE = {"long_rows.md", "other_ranks.md"}
"""Pages of several ranks: tests/dist does what they say, and test_docs_commands.py composes them."""
WITH_TRAINERS_KEYS = (TRAINER, "sft.inspect", "sft.evaluate", "sft.tokenise")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that docs/tasks/index.md names, with a tiny model in place of the hub's."""
    files = tmp_path_factory.mktemp("files")
    install_stand_ins(files)
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(40)]
    for name, some in (("rows", rows), ("val", rows[:4]), ("other", rows[20:])):
        write_jsonl(files / f"{name}.jsonl", some)
    write_jsonl(files / "questions.jsonl", [{"prompt": row["question"]} for row in rows[:2]])
    for name in ("Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        tiny_model_dir(files / name)
    (mine,) = [block.text for block in blocks(TASKS / "index.md", "yaml")]
    (files / "mine.yaml").write_text(mine)
    for name, overrides in (
        ("mine", ["data.val_files=val.jsonl", "trainer.save_freq=1"]),
        ("lora", ["model.lora_rank=8"]),
    ):
        execute(Command(TRAINER, ["mine.yaml", f"trainer.default_local_dir=runs/{name}", *overrides]), files)
    return files


def shortened(command: Command) -> list[str]:
    """Return the arguments of a command, and what makes a short run of it."""
    if command.module not in WITH_TRAINERS_KEYS:
        return command.arguments
    given = {text.partition("=")[0].lstrip("+") for text in command.arguments}
    short = {"data.cache_dir": "cache", "data.train_batch_size": 4, "data.micro_batch_size_per_gpu": 2}
    if not given & {"trainer.total_epochs", "trainer.total_training_steps"}:
        short["trainer.total_training_steps"] = 2
    return [*command.arguments, *(f"{key}={value}" for key, value in short.items() if key not in given)]


def execute(command: Command, home: Path) -> str:
    """Run a command of ours in one process and return what it prints."""
    done = train(shortened(command), ranks=0, cwd=home, module=command.module)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run(block: Block, home: Path) -> str:
    """Run the commands of ours in a block and return what they print."""
    commands = [command for call in calls(block, home) if (command := command_of(call))]
    return "".join(execute(command, home) for command in commands if command.module.startswith("sft."))


def shown(line: str) -> str:
    """Return the pattern of a line that a page shows; `...` stands for anything in it, figures for figures."""
    parts = [re.sub(r"\d+", r"\\d+", re.escape(part)) for part in re.split(r"\s*\.\.\.\s*", line.strip())]
    return ".*".join(re.sub(r"(\\\s)+", r"\\s+", part) for part in parts)


def losses(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run_dir)]


def equal_weights(home: Path, name: str, run_dir: str) -> bool:
    """Return True if a run left a parameter as the model has it."""
    before, after = (
        load_file(home / model / "model.safetensors")[name] for model in ("Qwen/Qwen2.5-0.5B-Instruct", run_dir)
    )
    return bool((before == after).all())


PROMISES: dict[str, Callable[[Path], object]] = {
    "index.md": lambda home: losses(home / "runs/first") == losses(home / "runs/json") == losses(home / "runs/chats"),
    "own_template.md": lambda home: (
        (home / "runs/template/chat_template.jinja").read_text().rstrip()
        == (home / "template.jinja").read_text().rstrip()
    ),
    "mix.md": lambda home: sum(line["data/samples/rows"] for line in read_metrics(home / "runs/mixed")) in (6, 7),
    "continue.md": lambda home: (home / "runs/lora_second/lora_adapter/adapter_model.safetensors").exists(),
    "freeze.md": lambda home: (
        equal_weights(home, "model.embed_tokens.weight", "runs/frozen")
        and not equal_weights(home, "model.layers.1.mlp.up_proj.weight", "runs/mlp_only")
    ),
    "lr_groups.md": lambda home: "train/lr/embeddings" in read_metrics(home / "runs/groups")[-1],
    "profile.md": lambda home: list((home / "runs/profiled/profile").glob("*.json.gz")),
    "push.md": lambda home: (home / "pushed/org/name/main/model.safetensors").exists(),
    "export.md": lambda home: (
        {tensor.dtype for tensor in load_file(home / "exported/model.safetensors").values()} == {torch.bfloat16}
    ),
    "lora.md": lambda home: (home / "runs/adapter/lora_adapter/adapter_config.json").exists(),
    "qlora.md": lambda home: (home / "runs/qlora/lora_adapter/adapter_config.json").exists(),
    "evaluate.md": lambda home: len((home / "predictions.jsonl").read_text().splitlines()) == 4,
    "tokenise.md": lambda home: "tokenised rows.jsonl" not in (home / "runs/cached/training.log").read_text(),
    "see.md": lambda home: "<html" in (home / "page.html").read_text(),
    "stop_early.md": lambda home: (home / "runs/best/best").is_symlink(),
    "grade.md": lambda home: (
        "val/exact_match" in read_metrics(home / "runs/graded")[-1]
        and read_metrics(home / "runs/graded_mine")[-1]["val/is_short"] in (0, 0.5, 1)
    ),
    "notebook.md": lambda home: (home / "runs/notebook/model.safetensors").exists(),
}
"""What a page promises beyond what it shows."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NEEDS_MORE], ids=lambda page: page.name)
def test_a_page_does_what_it_says(page: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = shutil.copytree(files, tmp_path / "home", symlinks=True)
    printed = "".join(run(block, home) for block in blocks(page, "bash"))
    (home / "printed").write_text(printed)
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(door, "_defaults", cache(door._defaults.__wrapped__))  # the default cache is there
    for block in blocks(page, "python"):
        exec(compile(block.text, str(block), "exec"), {})
    for block in blocks(page, "text"):
        for line in block.text.splitlines():
            assert re.search(shown(line), printed), f"{block}: {line}\n{printed}"
    assert page.name not in PROMISES or PROMISES[page.name](home)


@pytest.mark.shared_data
def test_gsm8k_is_the_same_as_a_table_an_array_and_conversations(shared: Path, files: Path, tmp_path: Path) -> None:
    home = shutil.copytree(files, tmp_path / "home", symlinks=True)
    with (shared / "data" / "gsm8k" / "train.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, 8)]
    with (home / "gsm8k.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (home / "gsm8k.json").write_text(json.dumps(rows))
    turns = [[("user", row["question"]), ("assistant", row["answer"])] for row in rows]
    chats = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    write_jsonl(home / "gsm8k.jsonl", chats)
    trained = []
    for kind in ("csv", "json", "jsonl"):
        words = ["mine.yaml", f"data.train_files=gsm8k.{kind}", f"trainer.default_local_dir=runs/{kind}"]
        execute(Command(TRAINER, words), home)
        trained.append(losses(home / "runs" / kind))
    assert trained[0] == trained[1] == trained[2] and len(trained[0]) == 2


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files, tmp_path / "home", symlinks=True)
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(door, "_defaults", cache(door._defaults.__wrapped__))  # the default cache is there
    cells = json.loads(notebook.read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}:{cell['id']}", "exec"), names)
    printed = capsys.readouterr().out
    assert all(words in printed for words in PRINTED[notebook.stem]), printed


PRINTED = {
    "first_run": ["10 steps; the last loss is", "loss 6."],
    "masks": ["«Four.<|im_end|>»", "«Yes, four.<|im_end|>»", "\nFive.<|im_end|>", "speaks first"],
}
"""What the notebooks print of a tiny model."""
