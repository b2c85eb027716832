"""When to validate, when to give up, which model was best: agreed by all ranks, remembered by a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.assets import write_jsonl
from tests.launch import read_metrics, succeed, train

VAL = ("val/loss", "val/perplexity", "val/token_accuracy")


def val_of(metrics: list[dict]) -> dict[int, list[float]]:
    return {line["step"]: [line[name] for name in VAL] for line in metrics if "val/loss" in line}


def test_validation_at_start_interval_and_end_is_the_same_on_any_number_of_ranks(base, run_all):
    """Sets of 1, 7 and 1319 rows on 1, 2 and 3 ranks."""
    home = Path(next(text for text in base if text.startswith("data.val_files=")).partition("=")[2]).parent
    rows = [{"question": f"How much is {k}?", "answer": f"{k % 7}!" * (1 + k % 3)} for k in range(1319)]
    write_jsonl(home / "val_1319.jsonl", rows)
    when = ["trainer.val_before_train=true", "trainer.test_freq=2", "trainer.total_training_steps=3"]
    three = [*base, *when, "data.train_batch_size=6", "data.micro_batch_size_per_gpu=1", "use_remove_padding=true"]
    three += ["data.max_tokens_per_gpu=2048", f"data.val_files={home / 'val_1319.jsonl'}"]
    sizes = (1, 7, 1319)
    found = {
        ranks: [val_of(metrics) for metrics in run_all([[*three, f"data.val_max_samples={n}"] for n in sizes], ranks)]
        for ranks in (1, 2, 3)
    }
    for ranks, of_sizes in found.items():
        for size, one, several in zip(sizes, found[1], of_sizes, strict=True):
            assert list(several) == [0, 2, 3]
            for step, values in several.items():
                assert values == pytest.approx(one[step], rel=1e-5), (ranks, size, step)


@pytest.fixture(scope="module")
def judged(base, tmp_path_factory) -> dict[str, Path]:
    """Runs whose validation rows contradict the training rows: loss on them rises from some step on. 2 ranks."""
    home = tmp_path_factory.mktemp("judged")
    write_jsonl(home / "val.jsonl", [{"question": "Why?", "answer": f"Because {k}."} for k in range(7)])
    run = [
        *base,
        f"data.val_files={home / 'val.jsonl'}",
        "trainer.test_freq=2",
        "trainer.total_training_steps=30",
        "trainer.early_stop_metric=val/loss",
        "trainer.early_stop_patience=3",
        "trainer.save_best=true",
        "trainer.max_ckpt_to_keep=1",
        "trainer.hub_model_id=me/tiny",
        f"trainer.hub_dry_run_dir={home}/hub",
    ]
    runs = {
        "last": run,
        "best": [*run, "trainer.load_best_at_end=true"],
        # Begun as a shorter run, which ends in the middle of the patience.
        "resumed_half": [*run, "trainer.total_training_steps=6", f"trainer.default_local_dir={home / 'resumed'}"],
        "resumed": run,
    }
    placed = [[f"trainer.default_local_dir={home / name}", *overrides] for name, overrides in runs.items()]
    (home / "runs.json").write_text(json.dumps(placed))
    done = succeed([str(home / "runs.json")], ranks=2, cwd=home, module="tests.dist.several")
    (home / "log").write_text(done.stdout)
    return {name: home / name for name in ("last", "best", "resumed", "hub", "log")} | {"home": home}


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_early_stopping_ends_a_finished_run(judged):
    run = judged["last"]
    losses = {step: values[0] for step, values in val_of(read_metrics(run)).items()}
    best = min(losses, key=lambda step: losses[step])
    last = max(losses)
    assert last == best + 3 * 2 < 30, "three validations in a row brought nothing better"
    result = result_of(run)
    assert (result["ended"], result["steps"], result["total_steps"]) == ("early stop", last, 30)
    assert result["best"] == {"metric": "val/loss", "value": losses[best], "step": best}
    assert (run / "best").readlink() == Path(f"global_step_{best}")
    # max_ckpt_to_keep=1 leaves the best alone, and the newest.
    assert {path.name for path in run.glob("global_step_*")} == {f"global_step_{best}", f"global_step_{last}"}
    assert (run / "best" / "huggingface" / "config.json").is_file()


def weights(directory: Path) -> dict:
    return {name: tensor.tolist() for name, tensor in load_file(directory / "model.safetensors").items()}


def test_the_run_ends_with_the_last_model_or_with_the_best(judged):
    last, best = judged["last"], judged["best"]
    step = result_of(last)["steps"]
    assert result_of(last)["published_step"] == step
    assert weights(last) == weights(last / f"global_step_{step}" / "huggingface")
    assert result_of(best)["published_step"] == result_of(best)["best"]["step"] < step
    assert weights(best) == weights(best / "best" / "huggingface") == weights(last / "best" / "huggingface")
    assert weights(best) != weights(last)


def test_a_resumed_run_remembers_its_judgement(judged):
    """Its first part ended at step 6; stop, best checkpoint and warnings are those of the uninterrupted run."""
    straight, resumed = result_of(judged["last"]), result_of(judged["resumed"])
    assert resumed["resumed_at_step"] == 6 < resumed["steps"]
    for key in ("ended", "steps", "best", "train_loss", "val", "warnings", "tokens", "epochs"):
        assert resumed[key] == straight[key], key
    assert weights(judged["resumed"]) == weights(judged["last"])


def test_overfitting_is_said_once_and_the_end_in_the_last_lines(judged):
    (warning,) = result_of(judged["last"])["warnings"]
    assert warning.startswith("overfitting: the validation loss rose 2 times in a row")
    log = (judged["last"] / "training.log").read_text()
    assert log.count(f"warning: {warning}") == 1
    last_lines = [line.partition(" ")[2] for line in log.splitlines()[-4:]]
    assert last_lines[0].startswith("ended by early stopping at step ")
    assert "; best val/loss " in last_lines[1]
    assert last_lines[3].startswith(f"the model is in {judged['last']}: AutoModelForCausalLM.from_pretrained(")


def test_every_saved_model_is_pushed_with_its_card(judged):
    """All four runs push to one place: what is there is what the last of them did."""
    result = result_of(judged["resumed"])
    revisions = {path.name for path in (judged["hub"] / "me" / "tiny").iterdir()}
    assert {"main", f"step-{result['steps']}", f"step-{result['best']['step']}"} <= revisions
    main = judged["hub"] / "me" / "tiny" / "main"
    card = (main / "README.md").read_text()
    assert weights(main) == weights(judged["resumed"])
    assert f"step {result['steps']} of 30" in card and "| `val/loss` |" in card and (main / "loss.png").is_file()
    run_json = json.loads((judged["resumed"] / "run.json").read_text())
    for file in (*run_json["data"]["train"], *run_json["data"]["val"]):
        assert file["hash"] in card
    assert (judged["resumed"] / "README.md").read_text() == card
    assert not (judged["resumed"] / ".hub").exists()


def test_an_early_stopped_run_has_nothing_to_do_until_it_may_go_on(base, judged, tmp_path):
    run = judged["last"]
    steps = result_of(run)["steps"]
    command = [
        *base,
        f"data.val_files={judged['home'] / 'val.jsonl'}",
        f"trainer.default_local_dir={run}",
        "trainer.test_freq=2",
        "trainer.early_stop_patience=3",
        f"trainer.total_training_steps={steps + 1}",
    ]
    done = succeed([*command, "trainer.early_stop_metric=val/loss"], ranks=0, cwd=tmp_path)
    reason = "nothing better by trainer.early_stop_metric=val/loss in 3"
    told = f"finished by early stopping (step {steps} of {steps + 1}: {reason}"
    assert told in done.stderr and "nothing to do" in done.stderr
    best = ["trainer.early_stop_metric=val/loss", "trainer.save_best=true", "trainer.load_best_at_end=true"]
    succeed([*command, *best], ranks=0, cwd=tmp_path)  # has to bring the best model into its place
    assert result_of(run)["published_step"] == result_of(run)["best"]["step"] < steps
    assert weights(run) == weights(run / "best" / "huggingface")
    assert "nothing to do" in succeed([*command, *best], ranks=0, cwd=tmp_path).stderr
    # By another metric there is no best yet, and nobody has lost patience.
    done = succeed([*command, "trainer.early_stop_metric=val/token_accuracy"], ranks=0, cwd=tmp_path)
    assert "trainer.early_stop_metric is val/token_accuracy" in done.stderr
    assert result_of(run)["ended"] == "finished" and result_of(run)["steps"] == steps + 1
    assert result_of(run)["best"]["step"] == steps + 1


def test_a_hub_without_a_login_is_told_before_anything_is_loaded(base, tmp_path):
    done = train([*base, "trainer.hub_model_id=me/tiny"], ranks=2, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode != 0
    assert done.stderr.count("trainer.hub_model_id=me/tiny cannot be pushed to: HF_HUB_OFFLINE is set") == 1
    assert "tokenised" not in done.stderr
