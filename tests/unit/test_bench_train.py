"""What scripts/bench_train.py keeps behind a cut, and how results come into docs/performance.md."""

import json
import math
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    yield
    sys.path.remove(str(REPOSITORY / "scripts"))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Open the runs of one contest, each time as a new process would."""
    import bench_train

    monkeypatch.setattr(bench_train, "KEPT", tmp_path)
    return lambda deadline=math.inf, **settings: bench_train.Kept({"shape": "tiny", **settings}, deadline)


def run(rate=4000.0, first_step=5.0, memory=1.6):
    from bench_train_figures import Run

    return Run(first_step, rate, rate / 2, 0.0, memory, [9.0, 8.0])


def never():
    raise AssertionError("measured again")


def test_what_was_measured_is_not_measured_again(kept):
    first = kept().runs("round 1 ours", lambda: [run(1.0), run(2.0)])
    assert kept().runs("round 1 ours", never) == first == [run(1.0), run(2.0)]
    assert kept().runs("round 2 ours", lambda: [run(3.0)]) == [run(3.0)]


def test_runs_of_other_settings_are_others(kept):
    kept(steps=6).runs("round 1 ours", lambda: [run(1.0)])
    assert kept(steps=10).runs("round 1 ours", lambda: [run(2.0)]) == [run(2.0)]


def test_nothing_begins_behind_the_deadline_and_what_is_there_counts(kept):
    from stages import OutOfTime

    kept().runs("round 1 ours", lambda: [run()])
    late = kept(time.monotonic() - 1)
    assert late.runs("round 1 ours", never) == [run()]
    with pytest.raises(OutOfTime):
        late.runs("round 2 ours", never)


def test_a_contest_that_is_cut_goes_on_and_a_whole_one_begins_anew(tmp_path, monkeypatch, capsys):
    import bench_result
    import bench_train

    done, cut_at = [], [4]  # runs, and how many there are at the cut

    def measured(bench, who, rows, *, steps, samples, cache):
        if len(done) == cut_at[0]:
            raise KeyboardInterrupt
        done.append((who, steps))
        return run(1000.0 * len(who))

    monkeypatch.setattr(bench_train.Bench, "run", measured)
    monkeypatch.setattr(bench_train, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(bench_train, "find_rivals", lambda *_: Path(sys.executable))
    monkeypatch.setattr(bench_train, "draw", lambda *_: None)
    monkeypatch.setattr(bench_result, "RESULTS", tmp_path)
    words = "bench_train.py --who ours trl_default --rounds 1 --steps 5 --rows 40 --shape tiny"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(KeyboardInterrupt):
        bench_train.main()
    assert done == [("ours", 2), ("trl_default", 2), ("ours", 5), ("ours", 1)] and not [*tmp_path.glob("*.json")]
    cut_at[0] = 99
    with pytest.raises(SystemExit) as ended:
        bench_train.main()
    assert ended.value.code == 0 and done[4:] == [("trl_default", 5), ("trl_default", 1)]
    result = json.loads(next(tmp_path.glob("train_cpu_*.json")).read_text())
    assert result["rounds"] == {"ours": 1, "trl_default": 1}
    assert result["ratios"]["tokens_per_s_vs_trl_default"] == pytest.approx(4 / 11)
    with pytest.raises(SystemExit):
        bench_train.main()
    assert len(done) == 12


def test_a_half_made_environment_of_the_rivals_is_made_again(tmp_path, monkeypatch):
    import bench_material

    calls = []
    monkeypatch.setattr(bench_material.subprocess, "run", lambda command, **_: calls.append(command[1:4]))
    packages = tmp_path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    for expected in (2, 2):  # the second time it is whole
        bench_material.make_venv(tmp_path)
        assert len(calls) == expected
    (tmp_path / "ready").unlink()
    bench_material.make_venv(tmp_path)
    assert len(calls) == 4 and (packages / "ours.pth").read_text().strip().endswith("site-packages")


def test_a_result_takes_the_place_of_the_older_one_in_the_page(tmp_path, monkeypatch):
    import bench_train_figures as figures

    page, result = tmp_path / "page.md", tmp_path / "train_cpu_2026-12-01.json"
    text = "before\n<!-- contest tiny: scripts/bench_train_figures.py -->\nold\n<!-- end of contest tiny -->\nafter\n"
    page.write_text(text)
    of = {"ours": run(4000.0), "ours_torchrun": run(3900.0, 6.0), "trl_default": run(500.0, 10.0, 2.0)}
    of |= {"trl_packed": run(800.0, 9.0, 2.0), "trl_padded": run(700.0, 9.0, 4.0)}
    told = {who: figures.summary({"cold": [one, one], "warm": [one]}) for who, one in of.items()}
    made = {"shape": "tiny", "rivals": {"trl": "1.16.0"}, "versions": {"torch": "2.13.0"}, "contestants": told}
    result.write_text(json.dumps(made))
    monkeypatch.setattr(figures, "PAGE", page)
    monkeypatch.setattr(figures, "PICTURES", tmp_path)
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench_train_figures.py", str(result)])
    for _ in range(2):
        figures.main()
        written = page.read_text()
        assert written.startswith("before\n<!--") and written.endswith("-->\nafter\n") and "old" not in written
    assert "8.0 times the tokens per second of TRL's defaults." in written
    assert "5.0 times those of its faster tuned setting, in 0.80 of that one's memory." in written
    assert "Started by torchrun, the first step ends after 0.60 of the time of TRL's defaults" in written
    assert written.count("\n| ") == 6 and "pictures/train_cpu_2026-12-01.png" in written
    with pytest.raises(SystemExit, match="has no place for qwen3-width"):
        figures.put(written, "qwen3-width", "")


def test_the_page_has_a_place_for_every_shape_of_a_cpu():
    import bench_train_figures as figures

    page = (REPOSITORY / "docs" / "performance.md").read_text()
    for shape in ("tiny", "qwen3-width"):
        assert "new" in figures.put(page, shape, "new")
