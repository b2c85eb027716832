"""Which kind of checkpoint a step ends with."""

from functools import partial
from types import SimpleNamespace

import pytest

from sft.track.card import model_card
from sft.train.build import Job, checkpoints_to_keep
from sft.train.requests import Requests
from sft.train.save import keep_own_readme, kind_due, save
from sft.types import Course
from tests.cards import FACTS

NOTHING_ASKED = Requests()


def kind_at(step, requests=NOTHING_ASKED, *, save_freq=4, save_hf_freq=6, last=100, best_step=-1, save_best=False):
    trainer = SimpleNamespace(save_freq=save_freq, save_hf_freq=save_hf_freq, save_best=save_best)
    state = SimpleNamespace(step=step, course=Course(best_step=best_step))
    job = SimpleNamespace(config=SimpleNamespace(trainer=trainer), state=state, is_over=step >= last)
    job.steps_of = partial(Job.steps_of, job)
    return kind_due(job, requests)  # pyright: ignore[reportArgumentType]


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


def test_the_best_model_is_saved_where_that_is_asked_for():
    assert kind_at(5, best_step=5, save_best=True) == "SAMPLER"
    assert kind_at(4, best_step=4, save_best=True) == "BOTH"
    assert kind_at(5, Requests(stop=True), best_step=5, save_best=True) == "BOTH"
    assert kind_at(5, best_step=3, save_best=True) is None
    assert kind_at(5, best_step=5) is None


def test_the_steps_before_a_checkpoint_are_on_the_disk_when_it_begins(monkeypatch):
    events = []
    job = SimpleNamespace(
        saver=SimpleNamespace(settle=lambda: events.append("the one before")),
        config=SimpleNamespace(trainer=SimpleNamespace(save_best=False)),
    )
    run_log = SimpleNamespace(sync=lambda: events.append("metrics"))
    monkeypatch.setattr("sft.train.save._save", lambda *_, **__: events.append("checkpoint"))
    save(job, "STATE", run_log, wait=False)  # pyright: ignore[reportArgumentType]
    assert events == ["the one before", "metrics", "checkpoint"]


def test_a_readme_in_which_somebody_has_written_stays_under_another_name(tmp_path):
    card = model_card(FACTS)
    for text in ("mine", card + "mine", "about fsdp-sft-trainer"):
        (tmp_path / "README.md").write_text(text)
        keep_own_readme(tmp_path)
        keep_own_readme(tmp_path)
        assert not (tmp_path / "README.md").exists()
    kept = ["README.own.md", "README.own.2.md", "README.own.3.md"]
    assert [(tmp_path / name).read_text() for name in kept] == ["mine", card + "mine", "about fsdp-sft-trainer"]
    (tmp_path / "README.md").write_text(card)
    keep_own_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == card


@pytest.mark.parametrize(
    ("interval", "steps"), [(-1, -1), (0, 0), (7, 7), ("epoch", 30), (0.1, 10), (0.25, 25), (0.001, 1)]
)
def test_an_interval_is_steps_a_part_of_the_run_or_an_epoch(interval, steps):
    assert Job.steps_of(SimpleNamespace(steps_per_epoch=30, total_steps=100), interval) == steps  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "keep"),
    [({}, None), ({"save_best": True}, 1), ({"save_best": True, "save_freq": "epoch"}, None), ({"keep": 3}, 3)],
)
def test_save_best_alone_keeps_the_best_and_the_last(options, keep):
    known = {"save_best": False, "save_freq": -1, "save_hf_freq": -1} | options
    trainer = SimpleNamespace(max_ckpt_to_keep=known.pop("keep", None), **known)
    assert checkpoints_to_keep(trainer) == keep  # pyright: ignore[reportArgumentType]
