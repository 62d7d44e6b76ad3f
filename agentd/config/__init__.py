"""The daemon's configuration: TOML, strictly checked, as frozen values. docs/configuration.md has every key."""

from agentd.config.addresses import split_address
from agentd.config.checks import uids_of_tenants
from agentd.config.engines import engine_config
from agentd.config.errors import ConfigError, ConfigInvalid, ConfigSyntaxError, ConfigUnreadable, Problem
from agentd.config.host import host_config
from agentd.config.load import load, loads, parse_override
from agentd.config.model import REFUSE, Config, EngineSection, TenantSection
from agentd.config.reload import Changes, diff, effective
from agentd.config.schema import reference, schema

__all__ = [
    "REFUSE",
    "Changes",
    "Config",
    "ConfigError",
    "ConfigInvalid",
    "ConfigSyntaxError",
    "ConfigUnreadable",
    "EngineSection",
    "Problem",
    "TenantSection",
    "diff",
    "effective",
    "engine_config",
    "host_config",
    "load",
    "loads",
    "parse_override",
    "reference",
    "schema",
    "split_address",
    "uids_of_tenants",
]
