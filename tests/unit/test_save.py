"""Which kind of checkpoint a step ends with."""

from types import SimpleNamespace

import pytest

from sft.requests import Requests
from sft.save import kind_due

NOTHING_ASKED = Requests()


def kind_at(step, requests=NOTHING_ASKED, *, save_freq=4, save_hf_freq=6, last=100):
    trainer = SimpleNamespace(save_freq=save_freq, save_hf_freq=save_hf_freq)
    return kind_due(
        SimpleNamespace(config=SimpleNamespace(trainer=trainer), state=SimpleNamespace(step=step), total_steps=last),  # pyright: ignore[reportArgumentType]
        requests,
    )


@pytest.mark.parametrize(("step", "kind"), [(1, None), (4, "STATE"), (6, "SAMPLER"), (8, "STATE"), (12, "BOTH")])
def test_by_interval(step, kind):
    assert kind_at(step) == kind


@pytest.mark.parametrize("off", [0, -1])
def test_intervals_are_off_by_0_and_by_minus_1(off):
    assert [kind_at(step, save_freq=off, save_hf_freq=off) for step in range(1, 13)] == [None] * 12


def test_what_is_asked_for_joins_what_is_due():
    assert kind_at(5, Requests(save="SAMPLER")) == "SAMPLER"
    assert kind_at(4, Requests(save="SAMPLER")) == "BOTH"
    assert kind_at(6, Requests(save="STATE")) == "BOTH"
    assert kind_at(5, Requests(save="BOTH")) == "BOTH"


def test_a_run_that_stops_can_be_resumed():
    assert kind_at(5, Requests(stop=True)) == "STATE"
    assert kind_at(100, Requests(stop=True)) == "STATE"


def test_the_last_step_is_saved_by_finish():
    assert kind_at(100) is None
