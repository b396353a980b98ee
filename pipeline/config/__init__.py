"""What can be set, what a run is made with, and how the two are stored."""

from pipeline.config.run_config import DEFAULT_MODEL, STARTER, RunConfig, load_config, read_settings, resolved
from pipeline.config.settings import LOSS_TYPES, TASK_NAMES, Settings, parse_scales
from storage.errors import ConfigError

__all__ = [
    "DEFAULT_MODEL",
    "LOSS_TYPES",
    "STARTER",
    "TASK_NAMES",
    "ConfigError",
    "RunConfig",
    "Settings",
    "load_config",
    "parse_scales",
    "read_settings",
    "resolved",
]
