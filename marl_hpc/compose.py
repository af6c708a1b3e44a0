"""Overrides to a typed configuration, by hydra's compose API. Torch-free.

`hydra.main` isn't used: it would make a folder for every rank and exit with 1 where the contract says 2.
"""

from __future__ import annotations

import difflib
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
OPEN_SECTIONS = re.compile(r"^((env|algorithm)\.[\w.]+|(topology\.options|population\.meta_options)\.\w+)=")


def compose(overrides: list[str]) -> Config:
    """The configuration that these overrides ask for. Raises ConfigError naming key, value and choices."""
    for item in overrides:
        check_override(item)
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


def check_override(item: str) -> None:
    """Raise ConfigError for a key or a choice that doesn't exist, naming those that do; hydra names neither below the top."""
    key, given, value = item.partition("=")
    if key.startswith(("+", "~")):
        return
    if not given:
        raise ConfigError(f"{item!r} is no override; give key=value, for example budget.env_steps=100000")
    if OPEN_SECTIONS.match(item) or key.startswith("hydra."):
        return
    options = (
        sorted(str(path.relative_to(CONFIGS / key).with_suffix("")) for path in (CONFIGS / key).rglob("*.yaml")) if key else []
    )
    if options:
        if value not in (*options, "null"):
            raise ConfigError(f"{key}={value!r} is not a choice{_near(value, options)} known: {', '.join(options)}")
        return
    section: Any = OmegaConf.to_container(_schema())
    path = key.split(".")
    for depth, part in enumerate(path):
        if not isinstance(section, dict) or part not in section:
            known = sorted(section) if isinstance(section, dict) else []
            where = ".".join(path[:depth]) or "the configuration"
            raise ConfigError(f"unknown key {key!r}{_near(part, known)} {where} has: {', '.join(known) or 'no keys'}")
        section = section[part]
        if key.startswith("groups."):
            return


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ";"


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
