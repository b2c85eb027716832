"""The commands people have: only the module and the paths are other than in the documentation they come from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.assets import tiny_model_dir
from tests.launch import REPOSITORY, read_metrics, succeed


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, and 40 rows as parquet: question and answer inside extra_info, and as messages."""
    home = tmp_path_factory.mktemp("documented")
    tiny_model_dir(home / "model")
    questions = [f"What is {k} + {k + 1}?" for k in range(40)]
    answers = [f"{k} + {k + 1} = {2 * k + 1}\n#### {2 * k + 1}" for k in range(40)]
    rows = [
        {
            "data_source": "openai/gsm8k",
            "extra_info": {"index": k, "question": question, "answer": answer},
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "Are you sure?"},
                {"role": "assistant", "content": "Yes."},
            ],
        }
        for k, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), home / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:7]), home / "test.parquet")
    return home


def paths(home, run_dir):
    return [
        f"data.train_files={home / 'train.parquet'}",
        f"data.val_files={home / 'test.parquet'}",
        f"model.partial_pretrain={home / 'model'}",
        f"trainer.default_local_dir={run_dir}",
        f"data.cache_dir={home / 'cache'}",
    ]


def test_gsm8k(home, tmp_path):
    """verl's run_qwen_05.sh, prompt and response inside a struct column."""
    done = succeed(
        [
            *paths(home, tmp_path / "run"),
            "data.prompt_key=extra_info",
            "data.response_key=extra_info",
            "optim.lr=1e-4",
            "data.prompt_dict_keys=['question']",
            "+data.response_dict_keys=['answer']",
            "data.micro_batch_size=4",
            "data.train_batch_size=16",
            "trainer.project_name=gsm8k-sft",
            "trainer.experiment_name=gsm8k-sft-qwen-2.5-0.5b-instruct",
            "trainer.logger=['console']",
            "trainer.total_epochs=1",
            "trainer.default_hdfs_dir=null",
        ],
        ranks=2,
        cwd=tmp_path,
        may_fork=False,
    )
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 3
    assert "val/loss" in metrics[-1]
    assert done.stderr.count("data.micro_batch_size=4 is read as data.micro_batch_size_per_gpu=4") == 1
    assert "step = 2 dp x 2 micro-batches of 4 samples = 16 samples" in done.stdout


def test_multiturn(home, tmp_path):
    """verl's run_qwen_05 multi-turn command without its sequence parallelism."""
    succeed(
        [
            *paths(home, tmp_path / "run"),
            "data.multiturn.enable=true",
            "data.multiturn.messages_key=messages",
            "data.micro_batch_size=4",
            "data.train_batch_size=16",
            "trainer.project_name=multiturn-sft",
            "trainer.experiment_name=multiturn-sft-qwen-2.5-0.5b-instruct",
            "trainer.logger=['console']",
            "trainer.total_training_steps=2",
            "trainer.default_hdfs_dir=null",
            "use_remove_padding=true",
        ],
        ranks=2,
        cwd=tmp_path,
    )
    assert len(read_metrics(tmp_path / "run")) == 2


def test_defaults_read_plain_question_and_answer_columns(base, tmp_path):
    """The default prompt_dict_keys=['question'] lets plain text columns alone."""
    overrides = [*base, "trainer.total_training_steps=1", f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed(overrides, ranks=0, cwd=tmp_path)
    assert read_metrics(tmp_path / "run")[0]["train/loss"] > 0


def test_from_python(base, tmp_path):
    """`from sft import load_config, run`: the same function, its result for programs."""
    program = """
import json, sys
from sft import load_config
config = load_config(sys.argv[1:])
assert "torch" not in sys.modules, "loading a configuration must not cost importing torch"
from sft import run
result = run(config)
again = run(config)  # has nothing to do
for name in ("train/loss", "val/loss"):
    assert again.metrics[name] == result.metrics[name], name
print(json.dumps([result.steps, result.metrics["train/loss"], str(result.output_dir)]))
"""
    (tmp_path / "program.py").write_text(program)
    overrides = [*base, "trainer.total_training_steps=2", "trainer.test_freq=-1"]
    overrides += [f"trainer.default_local_dir={tmp_path / 'run'}"]
    done = succeed(overrides, ranks=0, cwd=tmp_path, module="program", env={"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"})
    steps, loss, output_dir = json.loads(done.stdout.splitlines()[-1])
    assert (steps, output_dir) == (2, str(tmp_path / "run"))
    assert loss == read_metrics(tmp_path / "run")[-1]["train/loss"]


def test_todays_verl(home, tmp_path):
    """Groups and keys of verl's sft_trainer: token budgets, sequence parallelism, one shard group, epochs."""
    succeed(
        [
            f"data.train_files={home / 'train.parquet'}",
            f"data.val_files={home / 'test.parquet'}",
            f"data.cache_dir={home / 'cache'}",
            *["engine=fsdp", "optim=fsdp", "model=hf_model"],
            f"model.path={home / 'model'}",
            *["model.use_remove_padding=True", "data.pad_mode=no_padding", "data.messages_key=messages"],
            *["data.train_batch_size=16", "data.max_length=512", "data.use_dynamic_bsz=True"],
            *["data.max_token_len_per_gpu=512", "engine.ulysses_sequence_parallel_size=2", "engine.fsdp_size=2"],
            *["engine.strategy=fsdp2", "optim.lr=1e-4", "optim.lr_warmup_steps=1", "optim.lr_scheduler_type=cosine"],
            *["trainer.test_freq=after_each_epoch", "trainer.save_freq=0.5", "trainer.logger=[console,file]"],
            *["trainer.total_training_steps=2", "checkpoint.save_contents=[model,optimizer,extra]"],
            f"trainer.default_local_dir={tmp_path / 'run'}",
        ],
        ranks=2,
        cwd=tmp_path,
    )
    metrics = read_metrics(tmp_path / "run")
    assert [line["train/lr"] for line in metrics] == [1e-4, 0]  # the warm-up ends at the first of two steps
    assert (tmp_path / "run" / "global_step_1").is_dir()  # half of the run
    assert "val/loss" in metrics[-1]
