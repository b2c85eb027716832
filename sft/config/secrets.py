"""Keep secrets out of every file that a run writes, and out of every line that it says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sft.config.visible import visible

MASK = "***"
# Only names that end so: max_tokens_per_gpu and balance_dp_token=true hold no secret and must stay readable; nor do
# PWD, the working directory, and prompt_key, a column.
NAMES = (
    r"(?:token|secret|password|passwd|passphrase|(?<=[_-])pwd|credentials?|authorization|"
    r"(?:api|access|private|secret|account|signing|encryption|ssh)[_-]?key)"
)
SECRET_NAME = re.compile(f"{NAMES}$", re.IGNORECASE)
TOKENS_OF_TEXT = re.compile(r"(.*[._])?(bos|eos|eot|pad|sep|cls|unk|mask|max|min|num|image|stop)_token", re.IGNORECASE)
SECRET_VALUE = re.compile(r"[\w.-]{16,}|(hf|sk|ghp)[_-].+")
NO_SECRETS = {"", "true", "false", "null", "none"}
PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
SECRET_IN_QUERY = re.compile(rf"([?&][^=&\s]*?(?:{NAMES}|sig|signature)=)[^&#\s'\"]+", re.IGNORECASE)
SECRET_IN_DICT = re.compile(rf"([\w.-]*{NAMES}['\"]?\s*[:=]\s*['\"]?)([^\s,'\"{{}}\[\]]+)", re.IGNORECASE)
SHORTEST = 4
"""Characters of a value that is masked where it stands alone: less is no secret, and "1" is everywhere."""

SHORTEST_WITHIN = 8
"""The same, where it stands within other text."""


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same nested mapping with the values of secret names, and secret values, masked."""
    return {name: masked(name, value) for name, value in config.items()}


def is_secret(name: str) -> bool:
    """Return True if a key's name suggests that its value is a secret."""
    return SECRET_NAME.search(name) is not None


def holds_secret(name: str, value: Any) -> bool:
    """Return True if name and value together look like a secret: an api key does, `pad_token=<pad>` does not."""
    if not is_secret(name) or str(value).lower() in NO_SECRETS or not isinstance(value, str):
        return False
    return TOKENS_OF_TEXT.fullmatch(name) is None or SECRET_VALUE.fullmatch(value) is not None


def not_on_a_command_line(name: str) -> str:
    """Return the problem of a key that holds a secret."""
    return (
        f"{name} looks like a secret, and others can read a command line: leave it out and set what the library "
        "reads from the environment (WANDB_API_KEY, HF_TOKEN, MLFLOW_TRACKING_TOKEN, ...)."
    )


def masked(name: str, value: Any) -> Any:
    """Return the value, or *** where its name says that it is a secret; what is secret within it is masked too."""
    if isinstance(value, Mapping):
        return without_secrets(value)
    if is_secret(name) and str(value).lower() not in NO_SECRETS:
        return MASK
    if isinstance(value, list | tuple):
        return [masked(name, item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def masked_argument(name: str, value: str) -> str:
    """As `masked`, of an override as it was typed, where a value may be a dict: `key={hub_token: abc}`."""
    shown = str(masked(name, value))
    if value[:1] in ("{", "["):
        return SECRET_IN_DICT.sub(lambda pair: pair[0] if pair[2].lower() in NO_SECRETS else pair[1] + MASK, shown)
    return shown


def redacted(text: str) -> str:
    """Return the text without passwords and tokens of URLs, and without the value of any secret of the environment."""
    for value in secret_values():
        if text == value:
            return MASK
        if len(value) >= SHORTEST_WITHIN:
            text = text.replace(value, MASK)
    return SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", PASSWORD_IN_URL.sub(f"{MASK}@", text))


def secret_values() -> list[str]:
    """Return the values of all environment variables whose names say that they are secrets, the longest first."""
    return _secret_values(tuple(os.environ.items()))


@lru_cache(maxsize=1)  # asked of every line that is shown, and of every value that is written
def _secret_values(environment: tuple[tuple[str, str], ...]) -> list[str]:
    values = {value.strip() for name, value in environment if is_secret(name)}
    long = (value for value in values if len(value) >= SHORTEST and value.lower() not in NO_SECRETS)
    return sorted(long, key=len, reverse=True)


def presentable(text: object) -> str:
    """Return a text as everybody may read it, on a terminal or in a log: without secrets, and with nothing to obey."""
    return visible(redacted(str(text)))
