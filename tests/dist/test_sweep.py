"""A sweep in real processes: torchrun for each job, and the same command goes on where it ended."""

import json

from tests.launch import read_metrics, train


def test_each_job_trains_by_itself_and_goes_on(base, tmp_path):
    directory, rates = "trainer.default_local_dir=runs", "optim.lr=1e-4,1e-2"
    sweep = [*base, "trainer.test_freq=2", directory, "-m", rates]
    done = train([*sweep, "+sweep.ranks=2", "trainer.total_training_steps=2"], ranks=0, cwd=tmp_path)
    table = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("| lr_")]
    assert table == ["lr_0.01", "lr_0.0001"], done.stdout + done.stderr
    assert done.returncode == 0 and (tmp_path / "runs" / "sweep.png").exists()
    job = tmp_path / "runs" / "lr_0.01"
    assert json.loads((job / "run.json").read_text())["world_size"] == 2
    first = read_metrics(job)

    done = train([*sweep, "trainer.total_training_steps=4"], ranks=0, cwd=tmp_path)
    longer = read_metrics(job)
    assert [line["step"] for line in longer] == [1, 2, 3, 4] and longer[:2] == first
