"""Turn overrides and YAML into a frozen SftConfig. Imports no torch.

`load_config(overrides)` is the door, `cli(run)` the same door for a command, conf/ holds every value.
"""

from sft.config.cli import cli
from sft.config.door import config_to_yaml, load_config, read_config
from sft.config.problems import ConfigError
from sft.config.schema import DataConfig, FsdpConfig, ModelConfig, SftConfig, SourceConfig, TrainerConfig

__all__ = [
    "ConfigError",
    "DataConfig",
    "FsdpConfig",
    "ModelConfig",
    "SftConfig",
    "SourceConfig",
    "TrainerConfig",
    "cli",
    "config_to_yaml",
    "load_config",
    "read_config",
]
