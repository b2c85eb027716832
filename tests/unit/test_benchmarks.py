"""The benchmarks that wait for a GPU run here as well: small, once, with figures where this device has them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    """scripts/bench_kernels.py, on its small sizes and with one repetition."""
    sys.path.insert(0, str(SCRIPTS))
    import bench_kernels

    bench_kernels.REPEATS = 1
    yield bench_kernels
    sys.path.remove(str(SCRIPTS))


EXPECTED = {
    "limits": {"matmul_mlp", "matmul_head", "matmul_square", "copy"},
    "attention": {"half/sdpa", "whole/sdpa", "ragged/sdpa"},
    "loss": {"ours/512", "whole_logits"},
    "layers": {"eager", "selective"},
}


@pytest.mark.parametrize("part", EXPECTED)
def test_every_part_of_the_kernel_benchmark_runs(bench, part):
    found = bench.PARTS[part](bench.TINY)
    assert {name for name, told in found.items() if "ms" in told} >= EXPECTED[part], found
    assert all(told["ms"]["median"] > 0 for told in found.values() if "ms" in told)


def test_what_does_not_run_here_is_written_down_with_its_error(bench):
    def fails():
        raise NotImplementedError("no such kernel\nand a long story")

    assert bench.timed(fails) == {"error": "NotImplementedError: no such kernel"}
    assert bench.with_rate({"error": "none"}, "tflops", 1.0) == {"error": "none"}


def test_lengths_fill_the_row(bench):
    lengths = bench.ragged_lengths(8192)
    assert sum(lengths) == 8192 and len(lengths) > 10 and max(lengths) > 2 * 8192 / len(lengths)


def test_a_contest_of_ours_alone_has_no_ratios(bench):
    from bench_train_figures import Run, ratios, summary

    run = Run(6.0, 4000.0, 1000.0, 0.0, 1.6, [9.0], limit_fraction=0.25)
    assert ratios({"ours": summary({"cold": [run], "warm": [run]})}) == {"limit_fraction": 0.25}
    on_a_cpu = Run(6.0, 4000.0, 1000.0, 0.0, 1.6, [9.0])
    assert ratios({"ours": summary({"cold": [on_a_cpu], "warm": [on_a_cpu]})}) == {}


@pytest.mark.parametrize(
    "name", sorted(path.name for path in SCRIPTS.glob("*.py") if "ArgumentParser" in path.read_text())
)
def test_every_script_says_what_it_takes(name):
    done = subprocess.run([sys.executable, SCRIPTS / name, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
