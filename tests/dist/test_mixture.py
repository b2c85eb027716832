"""A mixture through the command: resumed in the middle it goes on bit for bit, and other ranks see the same samples."""

import pytest

from tests.assets import write_jsonl
from tests.launch import read_metrics, succeed

TRAINED = (
    *("train/loss", "train/loss/chat", "train/loss/text", "train/grad_norm", "train/epoch"),
    *("train/num_input_tokens_seen", "data/samples/text"),
)


@pytest.fixture
def mixed(base, tmp_path):
    """9 conversations of which an epoch sees 14 (weight 1.5), with text as 3 of each 10 samples, 6 rows drawn of 20."""
    rows = [{"question": f"What is {k}?", "answer": f"{k}. " * (1 + k)} for k in range(9)]
    write_jsonl(tmp_path / "chat.jsonl", rows)
    write_jsonl(tmp_path / "text.jsonl", [{"text": f"Some text of number {k}. " * (1 + k % 4)} for k in range(20)])
    others = [text for text in base if not text.startswith(("data.train_files=", "data.val_files="))]
    return [
        *others,
        f"data.mixture=[{{path: {tmp_path}/chat.jsonl, weight: 1.5}},"
        f"{{path: {tmp_path}/text.jsonl, format: text, rows: 6, fraction: 0.3}}]",
        f"data.val_files=[{tmp_path}/chat.jsonl,{tmp_path}/text.jsonl]",
        "data.train_batch_size=8",
        "data.curriculum=length",
        "use_remove_padding=true",
    ]


def test_resumed_in_the_middle_and_on_other_ranks(mixed, tmp_path):
    def steps(number, name):
        return [*mixed, f"trainer.total_training_steps={number}", f"trainer.default_local_dir={tmp_path / name}"]

    done = succeed(steps(6, "straight"), ranks=2, cwd=tmp_path)
    succeed(steps(2, "resumed"), ranks=2, cwd=tmp_path)
    succeed(steps(6, "resumed"), ranks=2, cwd=tmp_path)
    succeed(steps(6, "alone"), ranks=0, cwd=tmp_path)
    straight, resumed, alone = (read_metrics(tmp_path / name) for name in ("straight", "resumed", "alone"))
    assert [[line[key] for key in TRAINED] for line in resumed] == [[line[key] for key in TRAINED] for line in straight]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "resumed")]
    assert weights[0] == weights[1]
    for one, two in zip(alone, straight, strict=True):
        for key in TRAINED:
            assert one[key] == pytest.approx(two[key], rel=1e-5), (one["step"], key)

    assert "an epoch is 20 samples" in done.stdout + done.stderr
    assert "1.56 passes over its 9" in done.stdout + done.stderr
    text = [line["data/samples/text"] for line in straight]
    assert sum(text[:3]) == 6 and set(text[:2]) <= {2, 3}  # an epoch is 8 + 8 + 4 samples
    assert [line["data/samples/chat"] + line["data/samples/text"] for line in straight] == [8, 8, 4] * 2


def test_every_validation_file_has_its_loss_on_any_number_of_ranks(mixed, tmp_path, run_all):
    files = [f"{tmp_path}/chat.jsonl", f"{tmp_path}/text.jsonl"]
    step = ["trainer.total_training_steps=1", "trainer.test_freq=1", "optim.lr=1e-30"]
    runs = [
        [*mixed, *step],
        [*mixed, *step, f"data.val_files={files[0]}"],
        [*mixed, *step, f"data.val_files={files[1]}"],
    ]
    (both,), (chat,), (text,) = run_all(runs, ranks=2)
    (alone,) = run_all([runs[0]], ranks=0)[0]
    assert both["val/loss/chat"] == pytest.approx(chat["val/loss"], rel=1e-6)
    assert both["val/loss/text"] == pytest.approx(text["val/loss"], rel=1e-6)
    assert min(chat["val/loss"], text["val/loss"]) < both["val/loss"] < max(chat["val/loss"], text["val/loss"])
    assert not [key for key in chat if key.startswith("val/loss/")]
    for key in ("val/loss", "val/loss/chat", "val/loss/text", "val/token_accuracy"):
        assert alone[key] == pytest.approx(both[key], rel=1e-5), key
