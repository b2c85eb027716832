"""What comes from elsewhere as text: templates that never end, escapes in rows and names, secrets in any value."""

import json
import random
import re

import pytest

from sft.data.chat import limits
from sft.data.chat.apply import EndlessTemplateError
from sft.data.chat.encode import encode_batch
from sft.data.types import Conversation
from tests.assets import CHATML, tiny_model_dir, tiny_tokenizer, write_jsonl
from tests.chats import assistant, user
from tests.fault.faults import FAULTS
from tests.launch import train

ENDLESS, ESCAPES, SECRETS = "endless template", "escape sequence in a row or a name", "secret in a value"


def endless_template(dice):
    """Return markup that would take hours, or gigabytes; each time another one."""
    n = dice.randrange(5_000, 99_999)
    body = dice.choice(["", "x", "{{ messages|length }}", "{{ 'abc'|upper|replace('A', 'b') }}", "{% set y = i %}"])
    return dice.choice(
        [
            "{% for i in range(N) %}{% for j in range(N) %}BODY{% endfor %}{% endfor %}",
            "{% for i in range(N) %}{% for j in range(9) %}{% for k in range(N) %}BODY"
            "{% endfor %}{% endfor %}{% endfor %}",
            "{% macro m(i) %}{% for j in range(N) %}BODY{% endfor %}{% endmacro %}"
            "{% for i in range(N) %}{{ m(i) }}{% endfor %}",
            "{% set s = namespace(t='ab') %}"
            "{% for i in range(N) %}{% set s.t = s.t + s.t[:100000] %}{% endfor %}{{ s.t }}",
            "{% set s = namespace(n=3) %}{% for i in range(N) %}{% set s.n = s.n * s.n %}{% endfor %}",
            "{{ 'xyz' * N * 1000 }}",
            "{{ ('x' * N * 100)|center(N * 2000) }}",
            "{{ 7 ** N ** N }}",
            "{% for i in range(N) %}{% for j in range(N) %}{% if (messages[0].content * j)|length == 7 %}BODY"
            "{% endif %}{% endfor %}{% endfor %}",
        ]
    ).replace("BODY", body).replace("N", str(n))  # fmt: skip


def test_templates_that_do_not_end_are_said_with_the_row(monkeypatch, rows):
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(limits, "TICK_S", 0.05)
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 1_000_000)
    dice, row = random.Random(15), rows[ENDLESS]
    for number in range(FAULTS):
        markup = "{% if 'Natalia' in messages[0].content %}" + endless_template(dice) + "{% endif %}"
        conversation = Conversation([user("Natalia?"), assistant("So.")], where=f"rows.jsonl:{number + 1}")
        row.injected += 1
        # What stands in it as a constant is computed when the template is first read, for no row.
        told = rf"^(rows\.jsonl:{number + 1}|probe of the chat template): the chat template|power in its line"
        with pytest.raises(EndlessTemplateError, match=told):
            encode_batch([conversation], tiny_tokenizer(markup + CHATML))
        row.survived += 1


def escape_sequence(dice):
    """Return what a terminal, a page or a reader would obey; each time another one."""
    text = f"{dice.randrange(10**6):06d}"
    return dice.choice(
        [
            f"\x1b]52;c;{text}\x07",
            f"\x1b]0;{text}\x1b\\",
            f"\x1b[{text[0]}J\x1b[{text[1]}m",
            f"\x9b{text[0]}J",
            f"\x9d0;{text}\x9c",
            f"\x90q{text}\x9c",
            f"{text}\rover",
            f"{text}\x08\x08",
            f"\u202e{text}\u202c",
            f"\u2066{text}\u2069",
            f"\x0e{text}\x0f",
            f"\x1bc{text}",
        ]
    )


OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_escapes_in_rows_and_names_reach_neither_terminal_nor_file_for_people(tmp_path, rows):
    """By rows that are fine, by rows with mistakes, and by names of files and directories."""
    dice, row = random.Random(16), rows[ESCAPES]
    sequences = [escape_sequence(dice) for _ in range(FAULTS)]
    model = tiny_model_dir(tmp_path / "model")
    good = [{"question": f"Why {one}?", "answer": f"So {one}."} for one in sequences]
    name = "".join(sequences[:3]).replace("/", "_")
    path = write_jsonl(tmp_path / f"dir {name}" / f"rows {name}.jsonl", good)
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"question": one, f"answer{one}": ["no text"]} for one in sequences])
    run_dir = tmp_path / f"run {name}"
    options = [f"model.partial_pretrain={model}", f"data.cache_dir={tmp_path / 'cache'}"]
    options += ["data.train_batch_size=1", "data.micro_batch_size_per_gpu=1"]
    row.injected += len(sequences)
    told = [
        train([*options, f'data.train_files="{path}"'], ranks=0, cwd=tmp_path, module="sft.inspect"),
        train([*options, f"data.train_files={bad}"], ranks=0, cwd=tmp_path, module="sft.inspect"),
        train(
            [
                *options,
                f'data.train_files="{path}"',
                f'trainer.default_local_dir="{run_dir}"',
                "trainer.total_training_steps=1",
                "trainer.generate_freq=1",
            ],
            ranks=0,
            cwd=tmp_path,
        ),
    ]
    assert [done.returncode for done in told] == [0, 3, 0], [done.stderr for done in told]
    for_people = [run_dir / "training.log", run_dir / "README.md"]
    for text in [*(done.stdout + done.stderr for done in told), *(file.read_text() for file in for_people)]:
        assert not OBEYED.search(text), repr(OBEYED.search(text))
    row.survived += len(sequences)


def test_secrets_of_the_environment_stand_in_no_file_and_no_line(tmp_path, rows):
    dice, row = random.Random(17), rows[SECRETS]
    names = ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "wandb_passwd", "DB_PASSWORD", "X_CREDENTIAL"]
    names += ["MY_PRIVATE_KEY", "service_auth_token", "GIT_PASSPHRASE"]
    secrets = {f"{name[:2]}{n}{name[2:]}": f"{dice.choice(['hf_', 'sk-', ''])}{dice.getrandbits(96):x}"
               for n, name in enumerate(dice.choices(names, k=FAULTS))}  # fmt: skip
    tiny_model_dir(tmp_path / "model")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}] * 2)
    given = [f"${{oc.env:{name}}}" for name in secrets]
    done = train(
        [
            f"model.partial_pretrain={tmp_path / 'model'}",
            f"data.train_files={path}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"trainer.default_local_dir={tmp_path / 'run'}",
            f'trainer.experiment_name="run {" and ".join(given[::3])}"',
            f'trainer.project_name="{"-".join(given[1::3])}"',
            f'data.apply_chat_template_kwargs={{note:"{"/".join(given[2::3])}"}}',
            "data.train_batch_size=1",
            "data.micro_batch_size_per_gpu=1",
            "trainer.total_training_steps=1",
        ],
        ranks=0,
        cwd=tmp_path,
        env=secrets,
    )
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    texts = [done.stdout.encode(), done.stderr.encode(), *(file.read_bytes() for file in files)]
    for name, secret in secrets.items():
        row.injected += 1
        assert not [text for text in texts if secret.encode() in text], name
        assert not [text for text in texts if json.dumps(secret)[1:-1].encode() in text], name
        row.survived += 1
