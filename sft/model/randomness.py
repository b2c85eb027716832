"""What an architecture draws at random while it trains, which no other trainer repeats to the digit."""

from __future__ import annotations

from transformers import PretrainedConfig

from sft.parallel.world import log

DRAWN = ("dropout", "pdrop", "layerdrop", "jitter")


def say_what_is_drawn(config: PretrainedConfig) -> None:
    """Log the dropout and the noise of routers that config.json asks for: they are trained with, as it says."""
    settings = vars(config.get_text_config())
    drawn = {name: value for name, value in settings.items() if any(part in name for part in DRAWN)}
    if told := [f"{name}={value:g}" for name, value in sorted(drawn.items()) if isinstance(value, float) and value > 0]:
        log.info("drawn at random while training, as config.json asks: %s", ", ".join(told))
