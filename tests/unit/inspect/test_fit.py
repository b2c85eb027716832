"""The table that answers "does it fit?", and the commands under it."""

import shlex
from dataclasses import replace

import pytest

from sft.config.compose import compose
from sft.config.door import checked
from sft.inspect.fit import RANKS, Fit, Way, mode_of, modes_of
from sft.train.optim import OPTIMIZERS

PLAIN = Way("full", "adamw", None, 1)
GB = 10**9


def config_of(overrides, *more):
    texts = [*overrides, *more]
    return checked(compose(texts, {}), texts, pytest.fail, needs_weights=False)


def test_every_way_has_a_line_and_every_machine_a_command_that_the_door_lets_pass(inspect):
    code, out, _ = inspect("+inspect.fit=true", "+inspect.samples=0", "use_remove_padding=true", "optim.lr=3e-5")
    assert code == 0
    table, _, commands = out.partition("fit: GB that a rank needs")[2].partition("the fastest that fits")
    assert all(f"{ranks} rank" in table for ranks in RANKS)
    assert all(f"  {mode}, adamw" in table for mode in ("full", "LoRA"))
    assert all(name in table for name in OPTIMIZERS) and all(kind in table for kind in ("selective", "full check"))
    lines = commands.splitlines()
    assert any(line.startswith("  1 x 24, 48, 80, 141 GB: full, adamw: ") for line in lines)
    assert "data.train_batch_size=4 cannot be shared evenly by so many ranks" in lines[-1]
    words = shlex.split(next(line for line in lines if "torchrun" in line))
    assert words[:5] == ["torchrun", "--standalone", "--nproc_per_node=1", "-m", "sft.fsdp_sft_trainer"]
    given = config_of([], *words[5:])
    assert given.optim.lr == 3e-5 and given.use_remove_padding and given.data.max_length == 64


@pytest.fixture
def config(overrides):
    return config_of(overrides, "data.train_batch_size=64")


def test_what_was_asked_for_goes_first_then_the_fastest(config):
    selective, full = (replace(PLAIN, checkpointing=kind) for kind in ("selective", "full"))
    lora, sgd, shared = replace(PLAIN, mode="LoRA"), replace(PLAIN, optimizer="sgd"), replace(PLAIN, sp_size=2)
    sizes = {PLAIN: 70, selective: 60, shared: 55, full: 38, sgd: 30, replace(sgd, checkpointing="full"): 25, lora: 10}
    fit = Fit(config, {(way, 2): size * GB for way, size in sizes.items()})
    assert fit.fastest(2, 141) == PLAIN
    assert fit.fastest(2, 80) == selective, "64 GB of 80 may be filled"
    del fit.needs[selective, 2]
    assert fit.fastest(2, 80) == shared, "exchanging heads costs less than computing everything again"
    assert fit.fastest(2, 48) == full, "the optimizer that was asked for, though it is slower"
    assert fit.fastest(2, 38) == sgd
    assert fit.fastest(2, 24) == lora
    assert fit.fastest(2, 12) is None and fit.fastest(4, 141) is None


def test_who_asks_for_adapters_is_not_told_to_train_everything(config):
    adapted = replace(config, model=replace(config.model, lora_rank=4))
    lora = replace(PLAIN, mode="LoRA")
    assert (mode_of(config), mode_of(adapted)) == ("full", "LoRA")
    assert Fit(adapted, {(PLAIN, 1): 1, (lora, 1): 2}).fastest(1, 24) == lora
    assert lora.of(adapted).model.lora_rank == 4 and lora.of(config).model.lora_rank == 16
    assert PLAIN.of(adapted).model.lora_rank == 0


def test_a_way_is_what_its_command_says(config):
    way = Way("LoRA", "sgd", "selective", 2)
    words = shlex.split(Fit(replace(config, use_remove_padding=True), {}).command(way, 64))
    assert words[1:5] == ["--nnodes=8", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:PORT", "--nproc_per_node=8"]
    asked = {
        "model.lora_rank=16", "optim.name=sgd", "model.enable_gradient_checkpointing=true",
        "model.gradient_checkpointing_kind=selective", "ulysses_sequence_parallel_size=2",
    }  # fmt: skip
    assert asked <= {word.replace('"', "") for word in words}


def test_a_batch_that_ranks_cannot_share_is_said(config):
    fit = Fit(replace(config, data=replace(config.data, train_batch_size=6)), {(PLAIN, 4): 1})
    assert fit.fastest(4, 141) is None
    assert fit._why_none(4) == "data.train_batch_size=6 cannot be shared evenly by so many ranks"


def test_sharing_rows_that_saves_nothing_has_no_line(config):
    shared = replace(PLAIN, sp_size=2)
    fit = Fit(config, {(PLAIN, 2): 100 * GB, (shared, 2): 99 * GB})
    assert not any("sp=2" in line for line in fit.lines() if not line.lstrip().startswith(("torchrun", "(")))
    fit.needs[shared, 2] = 50 * GB
    assert any("full, adamw, sp=2" in line for line in fit.lines())


def test_the_modes_are_those_that_can_be_tried(monkeypatch):
    assert list(modes_of()) == ["full", "LoRA", "QLoRA"]
    monkeypatch.setattr("sft.inspect.fit.find_spec", lambda _: None)
    assert list(modes_of()) == ["full"]
