"""How tests start the commands: forked, whatever other tests of the same process did before."""

from tests.assets import tiny_model_dir
from tests.launch import KERNEL_CACHES, clean_environment
from tests.runs import train


def test_a_run_in_this_process_does_not_keep_later_ones_from_being_forked(tmp_path, monkeypatch):
    for name in KERNEL_CACHES:  # an earlier test may have left them
        monkeypatch.delenv(name, raising=False)
    before = clean_environment()
    train(tmp_path, tiny_model_dir(tmp_path / "model"), "data.num_workers=2")
    after = clean_environment()
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {"PYTEST_CURRENT_TEST"}
