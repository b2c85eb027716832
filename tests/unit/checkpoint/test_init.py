"""What a name of other weights stands for, and what is said where it stands for nothing."""

import pytest

from sft.checkpoint import find_origin
from sft.errors import InputError
from tests.runs import ABOUT, start_run


@pytest.fixture
def other(tmp_path, world_of_one):
    """Another job beside this one: STATE at 1, BOTH at 2, SAMPLER at 3."""
    run = start_run(tmp_path / "other", world_of_one)
    for step, kind in {1: "STATE", 2: "BOTH", 3: "SAMPLER"}.items():
        run.train_to(step)
        run.save(kind)
    return run


def origin_of(name, other, *, with_adapters=False):
    origin = find_origin(name, other.dir.parent / "job", with_adapters=with_adapters, world=other.world)
    return str(origin.path.relative_to(other.dir)), origin.is_state


def test_state_is_taken_where_there_is_some_for_it_is_exact(other):
    assert origin_of("other:step-2", other) == ("global_step_2", True)
    assert origin_of(f"{other.dir}:step-1", other) == ("global_step_1", True)
    assert origin_of(str(other.dir / "global_step_3"), other) == ("global_step_3/huggingface", False)
    assert origin_of(str(other.dir / "global_step_2" / "huggingface"), other) == ("global_step_2/huggingface", False)


def test_of_a_run_the_newest_good_checkpoint_is_taken(other):
    assert origin_of(str(other.dir), other) == ("global_step_3/huggingface", False)
    (other.dir / "global_step_3" / "huggingface" / "model.safetensors").unlink()
    assert origin_of(str(other.dir), other) == ("global_step_2", True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other:step-7", "has no global_step_7; it has global_step_1, global_step_2, global_step_3"),
        ("nobody:step-3", "neither nobody nor"),
        ("{run}/nowhere", "is no directory; give a run directory, run:step-N"),
        ("{run}/global_step_2/state", "holds neither checkpoints (global_step_N) nor a model (config.json)"),
    ],
)
def test_names_that_lead_nowhere_say_what_there_is(other, name, message):
    with pytest.raises(InputError) as error:
        origin_of(name.format(run=other.dir), other)
    assert message in str(error.value) and "trainer.init_from_checkpoint" in str(error.value)


def test_where_every_checkpoint_is_damaged_each_is_named(other):
    for step in (1, 2, 3):
        (other.dir / f"global_step_{step}" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"global_step_3: manifest.json is missing; .*global_step_1: manifest.json"):
        origin_of(str(other.dir), other)


def test_adapters_and_whole_models_are_not_mixed(other, tmp_path):
    with pytest.raises(InputError, match=r"set model.partial_pretrain=.*/global_step_2/huggingface instead"):
        origin_of("other:step-2", other, with_adapters=True)
    with pytest.raises(InputError, match="STATE of all weights and this run trains adapters"):
        origin_of("other:step-1", other, with_adapters=True)
    about = ABOUT | {"fingerprint": {"seed": 1, "lora": {"rank": 4}}}
    lora = start_run(tmp_path / "lora", other.world, about=about)
    lora.train_to(1)
    lora.save("STATE")
    lora.train_to(2)
    lora.save("BOTH")
    assert origin_of("lora:step-1", lora, with_adapters=True) == ("global_step_1", True)
    assert origin_of("lora:step-2", lora) == ("global_step_2/huggingface", False)
    with pytest.raises(InputError, match="STATE of adapters and this run trains all weights"):
        origin_of("lora:step-1", lora)
