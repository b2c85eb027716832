"""How weights and gradients are spread over the ranks changes memory and speed, never the number."""

import pytest
from safetensors.torch import load_file

from tests.assets import tiny_model_dir

STEPS = [
    "trainer.total_training_steps=4",
    "trainer.test_freq=2",
    "use_remove_padding=true",
    "data.micro_batch_size_per_gpu=1",  # one rank: 4 micro-batches of a step, two ranks: 2
]
FSDP = "model.fsdp_config"
CHOICES = {
    "default": [],
    "every micro-batch": [f"{FSDP}.reduce_gradients=every_micro_batch"],
    "whole weights": [f"{FSDP}.reshard_after_forward=false"],
    "both": [f"{FSDP}.reshard_after_forward=false", f"{FSDP}.reduce_gradients=every_micro_batch"],
    "offload": [f"{FSDP}.cpu_offload=true"],
    "offload as verl": [f"{FSDP}.offload_params=true"],
    "joined layers": [f"{FSDP}.wrap_policy.min_num_params=1000000"],
    "joined, checkpointed": [f"{FSDP}.wrap_policy.min_num_params=1000000", "model.enable_gradient_checkpointing=true"],
    "selective": ["model.enable_gradient_checkpointing=true", "model.gradient_checkpointing_kind=selective"],
}
REPLICATED = {
    "replicated": [f"{FSDP}.dp_replicate=2"],
    "replicas of the whole": [f"{FSDP}.dp_replicate=4"],
    "replicated, sp": [f"{FSDP}.dp_replicate=2", "ulysses_sequence_parallel_size=2"],
    "replicated, every micro-batch": [f"{FSDP}.dp_replicate=2", f"{FSDP}.reduce_gradients=every_micro_batch"],
    "replicated, offloaded": [f"{FSDP}.dp_replicate=2", f"{FSDP}.cpu_offload=true"],
    "sp, selective": ["ulysses_sequence_parallel_size=2", *CHOICES["selective"]],
}
LORA = ["model.lora_rank=4", "model.lora_alpha=8"]


def curve(metrics):
    keys = ("train/loss", "train/grad_norm", "val/loss")
    return [line[key] for line in metrics for key in keys if key in line]


def run_named(run_all, runs, ranks):
    return dict(zip(runs, run_all(list(runs.values()), ranks), strict=True))


@pytest.fixture
def reference(base, run_all):
    return curve(run_all([[*base, *STEPS]], 1)[0])


def test_every_choice_gives_the_same_losses_and_norms(base, run_all, reference, tmp_path):
    assert len(reference) == 4 * 2 + 2
    found = run_named(run_all, {name: [*base, *STEPS, *choice] for name, choice in CHOICES.items()}, 2)
    for name, metrics in found.items():
        assert curve(metrics) == pytest.approx(reference, rel=1e-6), name


def test_the_ends_of_an_untied_model_are_spread_too(base, run_all, tmp_path):
    """Embedding and LM head, each a group of its own: trained, beside adapters, and with the head frozen."""
    untied = [*base, *STEPS, f"model.partial_pretrain={tiny_model_dir(tmp_path / 'untied', tie=False)}"]
    choices = {
        "default": [],
        "whole weights": CHOICES["whole weights"],
        "every micro-batch": CHOICES["every micro-batch"],
        "sp, selective": REPLICATED["sp, selective"],
        "adapters": LORA,
        "frozen head": ["model.frozen=[lm_head]"],
    }
    expected = run_named(
        run_all, {name: [*untied, *choices[name]] for name in ("default", "adapters", "frozen head")}, 1
    )
    found = run_named(run_all, {name: [*untied, *choice] for name, choice in choices.items()}, 2)
    for name, metrics in found.items():
        assert curve(metrics) == pytest.approx(curve(expected.get(name, expected["default"])), rel=2e-6), name


def test_replicas_of_a_sharded_model_equal_one_rank(base, run_all, reference, tmp_path):
    """Losses, validation, norms; and the exported weights, which every replica holds and one must write."""
    plain = [*base, *STEPS]
    found = run_named(run_all, {name: [*plain, *choice] for name, choice in REPLICATED.items()}, 4)
    for name, metrics in found.items():
        assert curve(metrics) == pytest.approx(reference, rel=1e-5), name
    one, replicated = (load_file(tmp_path / call / "run_0" / "model.safetensors") for call in ("call_0", "call_1"))
    for name, weight in one.items():
        assert weight.numpy() == pytest.approx(replicated[name].numpy(), rel=1e-3, abs=1e-5), name


def test_adapters_on_replicas_equal_one_rank(base, run_all):
    one = run_all([[*base, *STEPS, *LORA]], 1)[0]
    replicated = run_all([[*base, *STEPS, *LORA, *REPLICATED["replicated"]]], 4)[0]
    assert curve(replicated) == pytest.approx(curve(one), rel=1e-5)


def test_a_run_continues_with_another_number_of_replicas(base, run_all, tmp_path):
    """Replicated -> sharded over all, and back; a checkpoint holds every element once, whoever wrote it."""

    def begun(*choice):
        return [*base, *STEPS, "trainer.total_training_steps=2", *choice]

    def continued(run, *choice):
        path = f"trainer.resume_from_path={tmp_path / 'call_0' / run / 'global_step_2'}"
        return [*base, *STEPS, "trainer.resume_mode=resume_path", path, *choice]

    replicated = REPLICATED["replicated"]
    whole, first_replicated, first_sharded = run_all([[*base, *STEPS], begun(*replicated), begun()], 4)
    then_sharded, then_replicated = run_all([continued("run_1"), continued("run_2", *replicated)], 4)
    assert curve(first_replicated) + curve(then_sharded) == pytest.approx(curve(whole), rel=1e-5)
    assert curve(first_sharded) + curve(then_replicated) == pytest.approx(curve(whole), rel=1e-5)
    sizes = {run: stored_elements(tmp_path / "call_0" / run / "global_step_2" / "state") for run in ("run_1", "run_2")}
    assert sizes["run_1"] == sizes["run_2"]


def stored_elements(state):
    return sum(tensor.numel() for file in state.glob("rank_*.safetensors") for tensor in load_file(file).values())
