"""Environments, stepped in batches. `make` is the one entry; `ENVS` maps names to functions, and a name with a colon is imported.

An environment is a function that returns a PettingZoo environment (parallel API), or an `EnvBatch` when it takes `copies` and
`groups` itself because it is vectorized. May import types and config only, besides third-party packages.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from marl_hpc.config import ConfigError
from marl_hpc.envs.parallel import ParallelBatch
from marl_hpc.types import EnvBatch

# name -> "module:function"; imported only when asked for, since families are optional extras
ENVS: dict[str, str | Callable[..., Any]] = {
    f"mpe/{task}": f"marl_hpc.envs.mpe:{task}"
    for task in (
        "simple", "simple_adversary", "simple_crypto", "simple_push", "simple_reference", "simple_speaker_listener",
        "simple_spread", "simple_tag", "simple_world_comm", "simple_formation", "simple_line", "collect_treasure",
    )
}  # fmt: skip
ENVS |= {f"matrix/{task}": f"marl_hpc.envs.matrix:{task}" for task in ("climbing", "penalty", "game")}
ENVS |= {
    "matrix/two_step": "marl_hpc.envs.matrix:TwoStep",
    "matrix/memory": "marl_hpc.envs.matrix:Memory",
    "mpe_fast/simple_spread": "marl_hpc.envs.particles:SimpleSpread",
    "mpe_fast/simple_speaker_listener": "marl_hpc.envs.particles:SimpleSpeakerListener",
    "lbf_fast/8x8-2p-2f-coop": "marl_hpc.envs.foraging:Foraging",
    "lbf_fast/foraging": "marl_hpc.envs.foraging:Foraging",
}


def resolve(name: str) -> Callable[..., Any]:
    """The function behind an environment's name. Raises ConfigError with the nearest names."""
    target = ENVS.get(name, name if ":" in name else None)
    if target is None:
        near = difflib.get_close_matches(name, ENVS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown environment env.name={name!r}{hint} known: {', '.join(sorted(ENVS))}; or my_module:function")
    if callable(target):
        return target
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"env.name={name!r} could not be imported from {target!r}: {error}") from error


def make(name: str, *, copies: int = 1, groups: str | Mapping[str, str] = "shared", **options: Any) -> EnvBatch:
    """B = `copies` copies of an environment as one `EnvBatch`.

    `groups` says which agents share a policy: "shared" (agents with equal spaces), "separate", or {agent: group}. Other options go
    to the environment's function. Raises ConfigError when the name, an option or a group doesn't exist.

    >>> env = make("mpe/simple_spread", copies=2, max_cycles=5)
    >>> env.spec.agents, env.spec.groups[0].action_space.n
    (('agent_0', 'agent_1', 'agent_2'), 5)
    """
    function = resolve(name)
    options = dict(options)
    options.update(options.pop("kwargs", None) or {})
    vectorized = "copies" in inspect.signature(function).parameters
    batch = {"copies": copies, "groups": groups} if vectorized else {}
    try:
        inspect.signature(function).bind(**options, **batch)
    except TypeError as error:
        raise ConfigError(f"env.name={name!r}: {error}; it takes {inspect.signature(function)}") from error
    if vectorized:
        return function(**options, **batch)
    return ParallelBatch(name, [function(**options) for _ in range(copies)], groups)
