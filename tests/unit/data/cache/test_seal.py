"""What was sealed and changed afterwards is found, whatever the change."""

import os
import random

import pytest

from sft.data.cache.seal import SEAL, problem_of, seal

NAMES = ("samples.arrow", "facts.json")
FLIPS = 200


@pytest.fixture
def sealed(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(random.Random(name).randbytes(500))
    seal(tmp_path, NAMES)
    assert problem_of(tmp_path, NAMES) is None
    return tmp_path


def test_every_flipped_bit_is_found_and_its_file_named(sealed):
    dice = random.Random(7)
    for _ in range(FLIPS):
        file = sealed / dice.choice([*NAMES, SEAL])
        before = file.read_bytes()
        damaged = bytearray(before)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        problem = problem_of(sealed, NAMES)
        assert problem and "not what was written" in problem
        assert file.name in problem or file.name == SEAL
        file.write_bytes(before)
    assert problem_of(sealed, NAMES) is None


def test_a_missing_file_is_named(sealed):
    for name in (*NAMES, SEAL):
        before = (sealed / name).read_bytes()
        (sealed / name).unlink()
        assert problem_of(sealed, NAMES) == f"{name} is missing"
        (sealed / name).write_bytes(before)
    assert problem_of(sealed / "nowhere", NAMES) is not None


@pytest.mark.timeout(10)
def test_what_is_no_file_is_not_read(sealed):
    for name in (*NAMES, SEAL):
        (sealed / name).rename(sealed / "kept")
        os.mkfifo(sealed / name)  # without a writer: reading it never ends
        assert problem_of(sealed, NAMES) == f"{name} is no file"
        (sealed / "kept").replace(sealed / name)
