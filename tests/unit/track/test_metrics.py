"""Every number of the Meter, against arithmetic done by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sft.track.metrics import Meter, device_peak, met_by_a_token, training_flops_per_token
from sft.types import Counts, StepStats

STATS = StepStats(
    loss=1.25, losses=(1.25,), grad_norm=0.5, lr=1e-5, skipped=False,
    counts=Counts(samples=8, tokens=1000, supervised_tokens=300, positions=1200),
)  # fmt: skip


class Clock:
    """Time that passes only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_meter(clock: Clock, **changes) -> Meter:
    arguments = {"world_size": 2, "samples_per_epoch": 32, "flops_per_token": 6e6, "peak_flops": 1e12, "clock": clock}
    return Meter(**(arguments | changes))


def measure(meter: Meter, clock: Clock, seconds: float, stats: StepStats = STATS, data_wait_s: float = 0.5):
    clock.now += seconds
    return meter.measure(stats, data_wait_s)


def test_one_step_by_hand():
    clock = Clock()
    measured = measure(make_meter(clock), clock, 4.0)
    assert measured.pop("perf/max_memory_allocated_gb") > 0.01  # a Python process with torch holds more than 10 MB
    assert measured == {
        "train/loss": 1.25,
        "train/grad_norm": 0.5,
        "train/lr": 1e-5,
        "train/epoch": 8 / 32,
        "train/num_input_tokens_seen": 1000,
        "perf/tokens_per_sec_per_gpu": 1000 / 4 / 2,
        "perf/mfu": 1000 * 6e6 / 4 / 2 / 1e12,
        "perf/padding_frac": 200 / 1200,
        "perf/supervised_frac": 0.3,
        "perf/data_wait_s": 0.5,
        "perf/step_time_s": 4.0,
    }


def test_rates_span_the_window_and_the_loss_is_the_last_steps():
    clock = Clock()
    meter = make_meter(clock, window=2)
    measure(meter, clock, 50.0)  # falls out of the window
    measure(meter, clock, 1.0, data_wait_s=0.25)
    counts = replace(STATS.counts, tokens=3000, positions=3200)
    measured = measure(meter, clock, 3.0, replace(STATS, loss=0.75, counts=counts), data_wait_s=0.75)
    assert measured["train/loss"] == 0.75
    assert measured["perf/tokens_per_sec_per_gpu"] == (1000 + 3000) / (1 + 3) / 2
    assert measured["perf/padding_frac"] == 400 / 4400
    assert measured["perf/supervised_frac"] == 600 / 4000
    assert measured["perf/step_time_s"] == 2.0
    assert measured["perf/data_wait_s"] == 0.5


def test_time_between_steps_that_is_not_training_can_be_left_out():
    clock = Clock()
    meter = make_meter(clock)
    measure(meter, clock, 1.0)
    clock.now += 600  # validation
    meter.restart_clock()
    assert measure(meter, clock, 2.0)["perf/step_time_s"] == 2.0


def test_a_resumed_run_counts_on():
    clock = Clock()
    measured = measure(make_meter(clock, samples_seen=40, tokens_seen=7000), clock, 1.0)
    assert measured["train/epoch"] == 48 / 32
    assert measured["train/num_input_tokens_seen"] == 8000


def test_a_head_that_runs_on_supervised_tokens_only_is_counted_there_only():
    clock = Clock()
    measured = measure(make_meter(clock, flops_per_supervised_token=1e6), clock, 1.0)
    assert measured["perf/mfu"] == pytest.approx((1000 * 6e6 + 300 * 1e6) / 2 / 1e12)


def test_a_step_that_was_skipped_still_gives_every_number():
    clock = Clock()
    measured = measure(make_meter(clock), clock, 1.0, replace(STATS, loss=math.nan, grad_norm=math.inf, skipped=True))
    assert math.isnan(measured["train/loss"])
    assert measured["train/num_input_tokens_seen"] == 1000


def test_flops_agree_with_counting_every_matmul():
    """A forward counts 2 FLOPs per weight and token; causal attention 2·(s/2)·H for QKᵀ and again for AV; times 3."""
    layers, width, seq_len = 4, 64, 100
    params = layers * 12 * width * width
    forward_of_one_layer = 2 * 12 * width * width + 2 * (2 * (seq_len / 2) * width)
    assert training_flops_per_token(params, layers, width, seq_len) == 3 * layers * forward_of_one_layer


def test_frozen_weights_need_no_gradient_of_their_own():
    assert training_flops_per_token(100, 0, 0, 0, num_frozen_params=100) == 400


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_known_devices_have_their_data_sheet_peak(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = device_peak(torch.device("cuda"))
    assert peak.flops == tera * 1e12
    assert "data sheet" in peak.source


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.bfloat16), ("cuda", torch.float32)],
)
def test_there_is_no_mfu_where_the_peak_is_not_known(monkeypatch, device, dtype):
    name = "NVIDIA H100 80GB HBM3" if dtype == torch.float32 else "NVIDIA Future 1"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = device_peak(torch.device(device), dtype)
    assert peak.flops is None and peak.source.startswith("no mfu: the peak of ")
    clock = Clock()
    assert "perf/mfu" not in measure(make_meter(clock, peak_flops=peak.flops), clock, 4.0)


def test_of_experts_a_token_meets_a_few_however_their_number_is_called():
    """Glm4Moe says n_routed_experts, GraniteMoe num_local_experts, Qwen3Moe num_experts."""
    weights = [torch.zeros(8, 6, 4), torch.zeros(5, 3)]
    assert met_by_a_token(weights, 2) == 2 * 6 * 4 + 5 * 3
    assert met_by_a_token(weights, None) == 8 * 6 * 4 + 5 * 3  # the weights of a convolution
