"""Tokenised once, never stale, whole or absent; and what fits max_length."""

import errno
import itertools
import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sft.data.cache import cache, notes
from sft.data.cache.store import SampleStore
from sft.data.cache.tokenise import Recipe
from sft.data.order.fit import fit
from sft.data.types import Supervision
from sft.errors import InputError, MishapError, OwnMishapError
from tests.assets import CHATML, tiny_tokenizer, write_jsonl
from tests.chats import FAMILIES, THINKING
from tests.rows import columns

ROWS = [{"question": f"What is {k}?", "answer": "one " * (k % 5 + 1)} for k in range(2500)]


def test_a_second_run_does_not_tokenise(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    first = open_file(path)
    again = open_file(write_jsonl(tmp_path / "same_rows_elsewhere.jsonl", ROWS[:5]))
    assert len(open_file.said) == 1 and first.directory == again.directory


def test_a_small_cache_does_not_wait_for_the_disk(tmp_path, open_file, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    few = open_file(write_jsonl(tmp_path / "few.jsonl", ROWS[:5]))
    assert synced == [] and cache.problem_of(few.directory, cache.FILES) is None
    (few.directory / cache.SAMPLES_FILE).write_bytes(b"")  # as a power cut may leave it
    assert open_file(tmp_path / "few.jsonl").directory == few.directory
    assert "damaged" in open_file.said[1] and synced == []
    open_file(write_jsonl(tmp_path / "many.jsonl", ROWS[: cache.ROWS_WORTH_THE_DISK]))
    assert len(synced) == 5  # samples, facts, seal, their directory, and the one of all caches


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"options": {"enable_thinking": False}},
        lambda: {"tokenizer": tiny_tokenizer(CHATML.replace("\\n", ""))},
        lambda: {"columns": columns(prompt_key="answer")},
        lambda: {"bad_rows": "drop"},
        lambda: {"max_rows": 3},
        lambda: {"supervision": Supervision(train_on="all")},
        lambda: {"supervision": Supervision(thinking_history="last")},
    ],
)
def test_anything_that_changes_the_samples_makes_a_new_cache(tmp_path, open_file, change):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    assert open_file(path).directory != open_file(path, **change()).directory


def test_what_became_of_rows_is_said_at_every_start(tmp_path, open_file):
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    thought = answer | {"reasoning_content": "because"}
    rows = [
        {"messages": [question, thought, question, answer]},
        {"messages": [question, answer | {"train": False}]},
        {"messages": [question, {"role": "tool", "content": {"r": 1}}, answer]},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    store = SampleStore([open_file(path, tokenizer=tiny_tokenizer(THINKING))])
    shared = len(tiny_tokenizer().encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"))
    share = f"{100 * shared / store.lengths.sum():.0f} % of the tokens are repeated prefixes"
    expected = [
        "1 of 3 rows left out: nothing in them is trained",
        "1 tool results are objects or lists; the chat template gets them as JSON text",
        "unrolled 1 rows into 2 samples",
        share,
    ]
    for start in (1, 2):
        said = "\n".join(open_file.said)
        assert [said.count(words) for words in expected] == [start] * 4
        assert [store.where(n) for n in range(len(store))] == ["rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:3"]
        store = SampleStore([open_file(path, tokenizer=tiny_tokenizer(THINKING))])
    last = Supervision(thinking_history="last")
    open_file(path, tokenizer=tiny_tokenizer(THINKING), supervision=last)
    assert "1 turns are not trained: data.thinking_history=last" in open_file.said[-1]


def test_one_edited_row_is_seen(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    before = SampleStore([open_file(path)])
    after = SampleStore([open_file(write_jsonl(path, [*ROWS[:4], {**ROWS[4], "answer": "five"}]))])
    same = [np.array_equal(before[i].input_ids, after[i].input_ids) for i in range(5)]
    assert same == [True, True, True, True, False]


def test_samples_of_several_files_behind_one_index(tmp_path, open_file):
    """More rows than an Arrow batch holds, so that an index must find its batch and its file."""
    first = open_file(write_jsonl(tmp_path / "first.jsonl", ROWS))
    second = open_file(write_jsonl(tmp_path / "second.jsonl", ROWS[:3]))
    store = SampleStore([first, second])
    assert len(store) == 2503 and first.rows == 2500
    for index, row in ((0, 0), (1023, 1023), (1024, 1024), (2499, 2499), (2500, 0), (2502, 2)):
        sample = store[index]
        assert f"What is {row}?" in tiny_tokenizer().decode(sample.input_ids)
        assert len(sample) == store.lengths[index]
        trained = np.flatnonzero(sample.loss_weights)
        assert (trained[0], trained[-1]) == (store.first_supervised[index], store.last_supervised[index])
    assert (store.where(1500), store.where(2501)) == ("first.jsonl:1501", "second.jsonl:2")


def test_a_failed_build_leaves_nothing_and_names_every_bad_row(tmp_path, open_file):
    unknown_role = {"question": [{"role": "critic", "content": "a"}], "answer": "b"}
    rows = [ROWS[0], {"question": "a"}, ROWS[1], unknown_role, {"question": "b", "answer": 1}]
    with pytest.raises(InputError, match=r"3 of 5 rows.*\n.*jsonl:2.*\n.*jsonl:4: .*'critic'.*\n.*jsonl:5"):
        open_file(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [item.name for item in (tmp_path / "cache").iterdir() if item.is_dir()] == []


def test_bad_rows_are_left_out_where_that_is_asked_for_and_said_at_every_start(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {"question": "a"}, ROWS[1]])
    for start in (1, 2):
        store = SampleStore([open_file(path, bad_rows="drop")])
        assert [store.where(i) for i in range(len(store))] == ["rows.jsonl:1", "rows.jsonl:3"]
        said = [line for line in open_file.said if "leaves out" in line]
        assert len(said) == start
        assert "leaves out 1 of 3 rows" in said[-1] and "rows.jsonl:2: no column 'answer'" in said[-1]
    assert sum("tokenised" in line for line in open_file.said) == 1


def test_bad_rows_of_a_renamed_file_go_by_its_new_name(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {"question": "a"}])
    open_file(path, bad_rows="drop")
    open_file(path.rename(tmp_path / "other.jsonl"), bad_rows="drop")
    assert len(open_file.said) == 3, "tokenised once"
    assert "other.jsonl:2: no column 'answer'" in open_file.said[-1] and "rows.jsonl" not in open_file.said[-1]


def test_who_does_not_build_waits_for_the_one_who_does(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        found = open_file(path, build_here=False)
        os.write(writer, found.key.encode())
        os._exit(0)
    built = open_file(path)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() == built.key


def test_a_limit_on_open_files_is_no_damage(tmp_path, open_file, monkeypatch):
    built = open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))

    def no_more(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("sft.data.cache.store.pa.memory_map", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        SampleStore([built])


@pytest.mark.parametrize("name", ["samples.arrow", "facts.json", "sha256.txt"])
@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b""), Path.unlink], ids=["empty", "missing"])
def test_a_damaged_cache_is_built_again_with_one_warning(tmp_path, open_file, name, spoil):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    before = open_file(path)
    spoil(before.directory / name)
    del open_file.said[:]
    again = open_file(path)
    warning, tokenised = open_file.said
    assert warning.startswith(f"warning: the token cache {again.directory} is damaged ({name} ")
    assert "tokenised rows.jsonl: 5 rows" in tokenised
    assert again == before and len(SampleStore([again])) == 5
    assert [item.name for item in (tmp_path / "cache").iterdir() if item.is_dir()] == [again.key]


def test_rows_that_change_while_they_are_tokenised_fill_no_cache(tmp_path, open_file, monkeypatch):
    """Nor do those that were put back before the end: the hash of the file is then what it was."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    tokenise, put_back = cache.tokenise, [False]

    def somebody_writes(rows, **options):
        before = path.read_bytes()
        write_jsonl(path, ROWS[5:10])
        if put_back[0]:
            path.write_bytes(before)
        return tokenise(rows, **options)

    monkeypatch.setattr(cache, "tokenise", somebody_writes)
    for put_back[0] in (False, True):
        with pytest.raises(MishapError, match=r"rows\.jsonl was changed while it was tokenised"):
            open_file(write_jsonl(path, ROWS[:5]))
        assert [item.name for item in (tmp_path / "cache").iterdir() if item.is_dir()] == []


def test_all_of_a_cache_is_on_the_disk_before_it_has_its_name(tmp_path, open_file, events, monkeypatch):
    monkeypatch.setattr(cache, "ROWS_WORTH_THE_DISK", 0)
    file = open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))
    named = events.index(f"rename {file.key}")
    assert {"samples.arrow", "facts.json", "sha256.txt", f".{file.key}.partial"} <= set(events[:named])
    assert events[named + 1 :] == ["cache"], "nor is the name lost"


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, open_file, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "seal", full)
    with pytest.raises(MishapError, match=r"data\.cache_dir=.*rows\.jsonl cannot be written \(No space left"):
        open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))
    assert [item.name for item in (tmp_path / "cache").iterdir() if item.is_dir()] == []


def test_a_cache_that_cannot_be_made_is_one_message(tmp_path, open_file):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (path, path / "below", tmp_path / "link"):
        with pytest.raises(InputError, match=rf"^data\.cache_dir={re.escape(str(place))} cannot be made: "):
            open_file(path, cache_dir=place)


def test_a_cache_that_is_read_only_and_filled_is_used(tmp_path, open_file, one_of_two_ranks, monkeypatch):
    """By a builder that may write no note; with words of nobody, the others look themselves."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    built = open_file(path)
    note = next((tmp_path / "cache").glob(".*.note"))
    note.write_text(json.dumps(json.loads(note.read_text()) | {"pid": 1}))  # an old one, which cannot be removed

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(notes, "replace_file", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(cache, "WORD_S", 0.1)
    assert open_file(path) == built == open_file(path, build_here=False)


@pytest.fixture
def one_of_two_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(notes, "_numbers", itertools.count())
    monkeypatch.setattr(notes, "_keys", {})
    monkeypatch.setattr(notes, "_whole", set())


def test_a_rank_that_found_other_rows_than_the_builder_says_so(tmp_path, open_file, one_of_two_ranks, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    open_file(path)
    monkeypatch.setattr(notes, "_numbers", itertools.count())  # a rank begins to count anew
    with pytest.raises(OwnMishapError, match=r"rows\.jsonl was changed while the run started"):
        open_file(write_jsonl(path, ROWS[:6]), build_here=False)


def test_one_rank_of_a_node_hashes_a_cache_and_the_others_trust_it(tmp_path, open_file, one_of_two_ranks, monkeypatch):
    path, hashed = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]), []
    problem_of = cache.problem_of
    monkeypatch.setattr(cache, "problem_of", lambda *args: hashed.append(args[0]) or problem_of(*args))
    built = open_file(path)
    assert hashed
    del hashed[:]
    monkeypatch.setattr(notes, "_numbers", itertools.count())
    assert open_file(path, build_here=False) == built and not hashed


@pytest.mark.parametrize("left", ["no note", "not whole yet"])
def test_a_rank_without_a_builders_word_looks_itself(tmp_path, open_file, one_of_two_ranks, monkeypatch, left):
    """No word: the builder is gone, or never wrote. A builder that is still looking is waited for."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:5])
    built = open_file(path)
    monkeypatch.setattr(notes, "_numbers", itertools.count())
    monkeypatch.setattr(cache, "WORD_S", 0.1)
    if left == "no note":
        next((tmp_path / "cache").glob(".*.note")).unlink()
        assert open_file(path, build_here=False) == built
    else:
        monkeypatch.setattr(notes, "_whole", set())
        notes.leave_note(tmp_path / "cache", 0, built.key)
        finishing = threading.Timer(0.4, notes.note_whole, (tmp_path / "cache", 0))
        finishing.start()
        started = time.monotonic()
        assert open_file(path, build_here=False) == built and time.monotonic() - started > 0.3


def test_a_note_of_a_process_that_is_gone_tells_nothing(tmp_path, open_file, one_of_two_ranks):
    if (child := os.fork()) == 0:
        open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "cache").glob(".*.note"))) == 1
    assert notes.word_of_builder(tmp_path / "cache", 0) is None
    file = open_file(tmp_path / "rows.jsonl")
    assert notes.word_of_builder(tmp_path / "cache", 0) == (file.key, True)


def test_off_a_terminal_tokenising_says_now_and_then_how_far_it_is(tmp_path, open_file, monkeypatch):
    monkeypatch.setattr(cache, "SAY_EVERY_S", 0.0)
    open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))
    assert open_file.said[:5] == [f"tokenising rows.jsonl: {n} of 5 rows" for n in range(5)]


def test_thoughts_that_were_never_opened_are_said_at_every_start(tmp_path, open_file):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b</think>c"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}] * 2)
    tokenizer = next(family for family in FAMILIES if family.name == "qwen3_style").tokenizer()
    for start in (1, 2):
        open_file(path, tokenizer=tokenizer)
        assert "\n".join(open_file.said).count("2 replies say </think> without <think>, and the chat template") == start


@pytest.mark.parametrize(
    "row, is_said",
    [
        ({"text": "<s>[INST] a [/INST] b </s>"}, True),
        ({"question": "a", "answer": "b</s>"}, True),
        ({"question": "<image>\nWhat is this?", "answer": "b"}, True),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<start_of_turn>b"}]}, True),
        ({"text": "<|im_start|>user\na<|im_end|>"}, False),  # of this tokenizer
        ({"question": "a", "answer": "<s>old</s> new"}, False),
    ],
)
def test_markup_of_another_model_is_said(tmp_path, open_file, row, is_said):
    open_file(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert ("1 of 1 rows spell markup of other models" in "\n".join(open_file.said)) == is_said


def test_row_numbers_count_on_over_batches(tmp_path, open_file, monkeypatch):
    monkeypatch.setattr(cache, "ROWS_AT_ONCE", 2)
    store = SampleStore([open_file(write_jsonl(tmp_path / "rows.jsonl", ROWS[:5]))])
    assert [store.where(i) for i in range(5)] == [f"rows.jsonl:{line}" for line in range(1, 6)]


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_several_processes_write_the_bytes_that_one_writes(tmp_path, open_file, bad_rows):
    rows = [*ROWS[:1500], {"question": "a"}, *ROWS[1500:]] if bad_rows == "drop" else ROWS
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    alone, together = (
        open_file(path, bad_rows=bad_rows, num_workers=n, cache_dir=tmp_path / f"by_{n}").directory for n in (1, 3)
    )
    assert alone.name == together.name
    for name in ("samples.arrow", "facts.json"):
        assert (alone / name).read_bytes() == (together / name).read_bytes()


def test_several_processes_name_the_rows_that_one_names(tmp_path, open_file):
    rows = [*ROWS[:1100], {"question": "a"}, *ROWS[1100:1200], {"answer": "b"}, *ROWS[1200:], {"question": "c"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for n in (1, 3):
        with pytest.raises(InputError, match=r"2 of 2048 rows.*\n.*jsonl:1101: .*\n.*jsonl:1202: ") as error:
            open_file(path, num_workers=n)
        assert "jsonl:2503" not in str(error.value)
    assert [item.name for item in (tmp_path / "cache").iterdir() if item.is_dir()] == []


@pytest.fixture
def store(tmp_path, open_file):
    """Three samples: question short and long, answer short and long."""
    rows = [
        {"question": "a", "answer": "b"},
        {"question": "a", "answer": "b " * 40},
        {"question": "a " * 40, "answer": "b"},
    ]
    return SampleStore([open_file(write_jsonl(tmp_path / "rows.jsonl", rows))])


def test_what_fits_is_left_alone(store):
    samples, report = fit(store, max_length=1000, truncation="error")
    assert (len(samples), str(report)) == (3, "3 samples")
    assert np.array_equal(samples[1].input_ids, store[1].input_ids)


def test_truncation_error_names_count_and_first_rows(store):
    with pytest.raises(
        InputError, match=r"2 of 3 samples.*max_length=30.*rows.jsonl:2 \(\d+ tokens\).*left\|right\|drop"
    ):
        fit(store, max_length=30, truncation="error")


def test_truncation_right_keeps_the_beginning_and_drops_what_learns_nothing(store):
    samples, report = fit(store, max_length=30, truncation="right")
    assert str(report) == "2 samples, 1 truncated, 1 dropped because truncation left nothing to train"
    assert np.array_equal(samples[1].input_ids, store[1].input_ids[:30])
    assert np.array_equal(samples[1].loss_weights, store[1].loss_weights[:30])
    assert samples.where(1) == "rows.jsonl:2"


def test_truncation_left_keeps_the_end_with_its_weights(store):
    samples, report = fit(store, max_length=30, truncation="left")
    assert str(report) == "3 samples, 2 truncated"
    for index in (1, 2):
        assert np.array_equal(samples[index].input_ids, store[index].input_ids[-30:])
        assert np.array_equal(samples[index].loss_weights, store[index].loss_weights[-30:])


def test_truncation_drop_leaves_long_samples_out(store):
    samples, report = fit(store, max_length=30, truncation="drop")
    assert str(report) == "1 samples, 2 dropped as too long"
    assert samples.where(0) == "rows.jsonl:1"


def test_a_window_that_starts_at_its_only_trained_token_learns_nothing(store):
    """Nothing stands before the window's first token from which it could be predicted."""
    _, report = fit(store, max_length=2, truncation="left")  # "<|im_end|>\n": the stop token comes first
    assert report.dropped_nothing_supervised == 3


def test_the_tokenizer_is_hashed_once_for_any_number_of_files(monkeypatch):
    hashed = []
    monkeypatch.setattr("sft.data.cache.tokenise.tokenizer_fingerprint", lambda tokenizer: hashed.append(1) or "a")
    recipe = Recipe(tiny_tokenizer(), {}, Supervision())
    assert recipe.fingerprint() == recipe.fingerprint() and len(hashed) == 1
