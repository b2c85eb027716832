"""Keep secrets out of every file that a run writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# Only names that end so: max_tokens_per_gpu and balance_dp_token=true hold no secret and must stay readable.
SECRET_NAME = re.compile(r"(token|secret|password|api[_-]?key)$", re.IGNORECASE)
TOKENS_OF_TEXT = re.compile(r"(.*[._])?(bos|eos|eot|pad|sep|cls|unk|mask|max|min|num|image|stop)_token", re.IGNORECASE)
SECRET_VALUE = re.compile(r"[\w.-]{16,}|(hf|sk|ghp)[_-].+")
NO_SECRETS = {"", "true", "false", "null", "none"}
PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping with the values of secret names masked."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else masked(name, value)
        for name, value in config.items()
    }


def is_secret(name: str) -> bool:
    """Return True if a key's name suggests that its value is a secret."""
    return SECRET_NAME.search(name) is not None


def holds_secret(name: str, value: Any) -> bool:
    """Return True if name and value together look like a secret: an api key does, `pad_token=<pad>` does not."""
    if not is_secret(name) or str(value).lower() in NO_SECRETS or not isinstance(value, str):
        return False
    return TOKENS_OF_TEXT.fullmatch(name) is None or SECRET_VALUE.fullmatch(value) is not None


def masked(name: str, value: Any) -> Any:
    """Return the value; *** if its name suggests a secret; a URL without its password."""
    if is_secret(name) and str(value).lower() not in NO_SECRETS:
        return MASK
    if isinstance(value, list | tuple):
        return [masked(name, item) for item in value]
    return PASSWORD_IN_URL.sub(f"{MASK}@", value) if isinstance(value, str) else value
