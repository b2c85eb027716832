"""A secret is known by its name and by its value, and is masked wherever it stands."""

import pytest

from sft.config.secrets import is_secret, masked_argument, presentable, redacted, without_secrets

VALUE = "hf_SEKRETENV"


@pytest.fixture(autouse=True)
def secret_in_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", VALUE)
    monkeypatch.setenv("SOME_API_KEY", "1")


@pytest.mark.parametrize(
    "name",
    [
        "hub_token",
        "wandb_passwd",
        "aws_secret_access_key",
        "credential",
        "credentials",
        "private_key",
        "DB_PWD",
        "apikey",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "prompt_key", "max_tokens_per_gpu", "tokenizer", "add_generation_key"]
)
def test_names_of_no_secrets(name):
    assert not is_secret(name)


def test_a_value_is_masked_under_any_name_at_any_depth():
    config = {"name": VALUE, "deep": {"list": [{"x": f"a-{VALUE}-b"}, {"password": "p"}]}, "n": 1, "one": "1"}
    assert without_secrets(config) == {
        "name": "***", "deep": {"list": [{"x": "a-***-b"}, {"password": "***"}]}, "n": 1, "one": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://a.b/c?token=xyz&n=1", "https://a.b/c?token=***&n=1"),
        ("see https://a.b/c?n=1&X-Amz-Signature=0ab#top", "see https://a.b/c?n=1&X-Amz-Signature=***#top"),
        ("https://me:pass@a.b/c", "https://***@a.b/c"),
        (f"said {VALUE}.", "said ***."),
        ("trainer.balance=true", "trainer.balance=true"),
    ],
)
def test_lines(text, told):
    assert redacted(text) == told


def test_overrides():
    assert masked_argument("data.x", "{hub_token: abc, style: plain}") == "{hub_token: ***, style: plain}"
    assert masked_argument("data.balance_dp_token", "true") == "true"
    assert masked_argument("+hf_token", "abc") == "***"


def test_a_line_for_people_has_neither_secrets_nor_escapes():
    assert presentable(f"\x1b[2J{VALUE}") == "␛[2J***"
