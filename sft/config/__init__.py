"""Turn overrides and YAML into a frozen SftConfig. Imports no torch.

`load_config(overrides)` is the door, `cli(run)` the same door for a command, conf/ holds every value.
"""

from sft.config.cli import cli
from sft.config.door import config_to_yaml, load_config, read_config
from sft.config.problems import ConfigError
from sft.config.schema import (
    CustomClassConfig,
    DataConfig,
    FsdpConfig,
    ModelConfig,
    MultiturnConfig,
    OptimConfig,
    SftConfig,
    SourceConfig,
    TrainerConfig,
    WrapPolicyConfig,
)

__all__ = [
    "ConfigError",
    "CustomClassConfig",
    "DataConfig",
    "FsdpConfig",
    "ModelConfig",
    "MultiturnConfig",
    "OptimConfig",
    "SftConfig",
    "SourceConfig",
    "TrainerConfig",
    "WrapPolicyConfig",
    "cli",
    "config_to_yaml",
    "load_config",
    "read_config",
]
