"""Overrides to a typed configuration, by hydra's compose API. Torch-free.

`hydra.main` isn't used: it would make a folder for every rank and exit with 1 where the contract says 2.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marl_hpc.config import Config, ConfigError, validate

CONFIGS = Path(__file__).parent / "configs"
# sections that are typed later, beside the code they configure: any key may be set there
OPEN_SECTIONS = re.compile(r"^(env|algorithm)\.[\w.]+=")


def compose(overrides: list[str]) -> Config:
    """The configuration that these overrides ask for. Raises ConfigError naming key, value and choices."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=OmegaConf.create(OmegaConf.to_container(_schema())))
    opened = [f"++{item}" if OPEN_SECTIONS.match(item) else item for item in overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra_compose("train", opened)
        return validate(OmegaConf.to_object(OmegaConf.merge(_schema(), composed)))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def explain(error: Exception) -> str:
    """Hydra's message with the cause that it wraps, and the keys that exist where one was misspelled."""
    cause: BaseException = error
    lines = []
    while True:
        lines.append(str(cause).strip())
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    text = "\n".join(dict.fromkeys(lines))
    if "not in struct" in text or "Key '" in text:
        text += (
            f"\nknown sections and keys: {', '.join(f.name for f in fields(Config))}; see marl_hpc/config.py for what each holds"
        )
    return text


def from_record(record: dict) -> Config:
    """The configuration back from its plain form (config.yaml, or what rank 0 sends)."""
    try:
        return validate(OmegaConf.to_object(OmegaConf.merge(_schema(), record)))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _schema() -> Any:
    """The typed configuration, open for merging: OmegaConf makes a frozen dataclass's nodes read-only, each by itself."""
    schema = OmegaConf.structured(Config)
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        OmegaConf.set_readonly(node, False)
        nodes += [node[key] for key in node if OmegaConf.is_dict(node[key])]
    return schema
