"""The run directory in the hands of the next stage: TRL takes optimizer steps, and what engines read is there.

TRL has a python of its own: $SFT_RL_PYTHON, or a virtual environment made here once and kept in the cache directory.
It sees the packages of this one (torch, transformers) and adds only TRL.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from tests.assets import tiny_model_dir
from tests.launch import clean_environment, succeed

pytestmark = pytest.mark.rl

TRL = "trl==1.16.*"
SCRIPT = Path(__file__).with_name("grpo.py")


@pytest.fixture(scope="session")
def rl_python() -> str:
    """A python with TRL. Skips where TRL cannot be installed; in CI that is a failure."""
    if given := os.environ.get("SFT_RL_PYTHON"):
        return given
    ours = sysconfig.get_path("purelib")
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sft_tests"
    venv = home / f"trl_{hashlib.sha256(f'{TRL} {sys.version} {ours}'.encode()).hexdigest()[:12]}"
    python, ready = venv / "bin" / "python", venv / "ready"
    if ready.exists():
        return str(python)
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    theirs = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(theirs, capture_output=True, text=True, check=True).stdout.strip())
    (packages / "packages_of_the_tests.pth").write_text(f"{ours}\n")
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", TRL], capture_output=True, text=True)
    if done.returncode:
        message = f"{TRL} cannot be installed:\n{done.stderr}"
        pytest.fail(message) if "CI" in os.environ else pytest.skip(message)
    ready.touch()
    return str(python)


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source, run directory): a bf16 model whose tokenizer ends texts and turns by different tokens, taught "Yes.".

    The rows are a parquet file as `data_preprocess` makes them, beside the run directory: SFT reads `extra_info`,
    RL reads `prompt` and `reward_model`.
    """
    home = tmp_path_factory.mktemp("handoff")
    source = tiny_model_dir(home / "model", dtype="bfloat16")
    of_tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    of_tokenizer |= {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast", "kept": "as it is"}
    (source / "tokenizer_config.json").write_text(json.dumps(of_tokenizer))
    of_model = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(of_model | {"eos_token_id": 0}))
    (source / "generation_config.json").unlink()
    questions = [f"Is {k} + {k} = {2 * k}?" for k in range(8)]
    rows = [
        {
            "data_source": "tests/yes",
            "prompt": [{"role": "user", "content": question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "Yes"},
            "extra_info": {"split": "train", "index": k, "question": question, "answer": "Yes."},
        }
        for k, question in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), home / "train.parquet")
    run = home / "run"
    succeed(
        [
            f"model.partial_pretrain={source}",
            f"data.train_files={home / 'train.parquet'}",
            "data.prompt_key=extra_info",
            "data.response_key=extra_info",
            "data.prompt_dict_keys=['question']",
            "+data.response_dict_keys=['answer']",
            "data.val_files=null",
            f"data.cache_dir={home / 'cache'}",
            "data.train_batch_size=8",
            "optim.lr=1e-2",
            "optim.warmup_steps_ratio=0",
            "trainer.total_training_steps=30",
            f"trainer.default_local_dir={run}",
        ],
        ranks=2,
        cwd=home,
    )
    return source, run


def test_trl_takes_optimizer_steps_from_the_run_directory(
    rl_python: str, handed_over: tuple[Path, Path], tmp_path: Path
):
    _, run = handed_over
    environment = clean_environment() | {"PYTHONPATH": ""}
    done = subprocess.run(
        [rl_python, SCRIPT, run, run.parent / "train.parquet", tmp_path / "report.json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["moved_weights"] > 0
    assert report["prompt"] == "<|im_start|>user\nIs 0 + 0 = 0?<|im_end|>\n<|im_start|>assistant\n"
    assert report["stop_token_ids"] == [0, 2], "<|endoftext|> of the source, and <|im_end|> that was trained"
    # It was taught to say so and to stop; without the stop token all would be cut off at 24 tokens.
    assert report["cut_off_share"][0] == 0 and report["mean_tokens"][0] < 12
    assert "Yes." in report["completions"]


def test_what_engines_read_is_there(handed_over: tuple[Path, Path]):
    """As vLLM, SGLang and verl open a directory: by its files, not by our code."""
    source, run = handed_over
    config, of_source = (json.loads((directory / "config.json").read_text()) for directory in (run, source))
    assert config == of_source
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config.get("dtype") or config.get("torch_dtype")) == "bfloat16"
    # Engines load every *.safetensors beside config.json: nothing but the model may lie there.
    assert [path.name for path in run.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(run.glob("*.bin")) and not list(run.glob("*.pt"))
    shapes = {}
    for directory in (source, run):
        with safe_open(directory / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
            shapes[directory] = {
                name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype())
                for name in file.offset_keys()
            }
    assert shapes[run] == shapes[source]
    assert {dtype for _, dtype in shapes[run].values()} == {"BF16"}
    assert not [name for name in shapes[run] if "lm_head" in name or "_fsdp" in name or "module." in name]
    # transformers 4.5x and 5 name tokenizer classes differently: only the source's own files open in both.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (run / name).read_bytes() == (source / name).read_bytes(), name
    assert json.loads((run / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    template = run / "chat_template.jinja"
    assert template.exists() == (source / template.name).exists()
    if template.exists():
        assert template.read_bytes() == (source / template.name).read_bytes()
