"""The multi-agent particle environments (Lowe et al. 2017), from the package mpe2: one function a task.

Each takes the keyword arguments of the task's `parallel_env`, for example N, max_cycles, continuous_actions and local_ratio of
simple_spread. Rewards are mpe2's own: with simple_spread's default local_ratio=0.5 a random policy gets about -27 an episode of
25 steps (mean over agents), -53.4 with local_ratio=0.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from marl_hpc.config import ConfigError

RELEASES = {
    "simple": "simple_v3", "simple_adversary": "simple_adversary_v3", "simple_crypto": "simple_crypto_v3",
    "simple_push": "simple_push_v3", "simple_reference": "simple_reference_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4", "simple_spread": "simple_spread_v3", "simple_tag": "simple_tag_v3",
    "simple_world_comm": "simple_world_comm_v3", "simple_formation": "simple_formation_v1", "simple_line": "simple_line_v1",
    "collect_treasure": "collect_treasure_v1",
}  # fmt: skip


def _task(name: str) -> Any:
    def make(**options: Any) -> Any:
        try:
            module = importlib.import_module(f"mpe2.{RELEASES[name]}")
        except ImportError as error:
            raise ConfigError(f"env=mpe/{name} needs the package mpe2 ({error}); pip install 'marl_hpc[mpe]'") from error
        try:
            return module.parallel_env(**options)
        except TypeError as error:
            known = ", ".join(name for name in inspect.signature(module.raw_env.__init__).parameters if name != "self")
            raise ConfigError(f"env=mpe/{name}: {error}; it takes {known}") from error

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"mpe2's {RELEASES[name]}, parallel API."
    return make


simple, simple_adversary, simple_crypto = _task("simple"), _task("simple_adversary"), _task("simple_crypto")
simple_push, simple_reference, simple_spread = _task("simple_push"), _task("simple_reference"), _task("simple_spread")
simple_speaker_listener, simple_tag = _task("simple_speaker_listener"), _task("simple_tag")
simple_world_comm, simple_formation = _task("simple_world_comm"), _task("simple_formation")
simple_line, collect_treasure = _task("simple_line"), _task("collect_treasure")
