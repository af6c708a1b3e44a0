"""Environments, stepped in batches. `make` is the one entry; `ENVS` maps names to functions, and a name with a colon is imported.

An environment is a function that returns a PettingZoo environment, parallel or turn-based (AEC), or an `EnvBatch` when it takes
`copies` and `groups` itself because it is vectorized. PettingZoo environments may have an attribute `edges`, pairs of agents: who are
neighbors under paradigm=networked (see `envs.edges`). May import compiled games, types and config only, besides third-party packages.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from marl_hpc.config import ConfigError
from marl_hpc.envs.parallel import ParallelBatch
from marl_hpc.envs.turns import TurnBatch
from marl_hpc.types import EnvBatch

TASKS = {
    "mpe": (
        "simple", "simple_adversary", "simple_crypto", "simple_push", "simple_reference", "simple_speaker_listener",
        "simple_spread", "simple_tag", "simple_world_comm", "simple_formation", "simple_line", "collect_treasure",
    ),
    "classic": (
        "tictactoe", "connect_four", "leduc_holdem", "texas_holdem", "texas_holdem_no_limit", "rps", "chess", "go", "hanabi",
    ),
    "sisl": ("pursuit", "multiwalker"),
    "butterfly": ("knights_archers_zombies", "cooperative_pong", "pistonball"),
    "lbf": ("8x8-2p-2f-coop", "8x8-2p-2f", "10x10-3p-3f", "15x15-3p-4f", "15x15-4p-3f", "foraging"),
    "rware": ("tiny-2ag", "tiny-4ag", "small-4ag", "warehouse"),
    "magent2": ("battle", "battlefield", "combined_arms", "gather", "adversarial_pursuit", "tiger_deer"),
    "openspiel": (
        "kuhn_poker", "leduc_poker", "liars_dice", "tic_tac_toe", "connect_four", "goofspiel", "tiny_hanabi", "hanabi",
        "backgammon", "game",
    ),
    "openspiel_fast": (
        "kuhn_poker", "leduc_poker", "liars_dice", "tic_tac_toe", "goofspiel", "tiny_hanabi", "game",
    ),
    "vmas": ("simple_spread", "balance", "transport", "navigation", "dispersion", "flocking", "wheel"),
}  # fmt: skip
# name -> "module:function"; imported only when asked for, since families are optional extras
ENVS: dict[str, str | Callable[..., Any]] = {
    f"{family}/{task}": f"marl_hpc.envs.{family}:{task}" for family, tasks in TASKS.items() for task in tasks
}
# ours, vectorized
ENVS |= {f"matrix/{task}": f"marl_hpc.envs.matrix:{task}" for task in ("climbing", "penalty", "game")}
ENVS |= {
    "matrix/two_step": "marl_hpc.envs.matrix:TwoStep",
    "matrix/memory": "marl_hpc.envs.matrix:Memory",
    "mpe_fast/simple_spread": "marl_hpc.envs.particles:SimpleSpread",
    "mpe_fast/simple_speaker_listener": "marl_hpc.envs.particles:SimpleSpeakerListener",
    "lbf_fast/8x8-2p-2f-coop": "marl_hpc.envs.foraging:Foraging",
    "lbf_fast/foraging": "marl_hpc.envs.foraging:Foraging",
    "networked/cacc": "marl_hpc.envs.networked.cacc:CACC",
    "networked/wireless": "marl_hpc.envs.networked.wireless:Wireless",
    "networked/mdp": "marl_hpc.envs.networked.mdp:NetworkedMDP",
    "networked/cue": "marl_hpc.envs.networked.cue:Cue",
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

    `groups` says which agents share a policy: "shared" (agents with equal spaces), "separate", or {agent: group}. A mapping may put
    agents with different vectors or numbers of discrete actions into one group: they are padded to the largest, by zeros and masked
    actions, and `spec.version` says so. Images of 0 … 255 are cast to float32, not scaled: the network scales them. Other options go
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
    return batch_of(name, [function(**options) for _ in range(copies)], groups)


def batch_of(name: str, envs: list[Any], groups: str | Mapping[str, str] = "shared") -> EnvBatch:
    """PettingZoo environments, all alike, as one `EnvBatch`. Raises TypeError for anything else."""
    if all(hasattr(envs[0], part) for part in ("possible_agents", "observation_space", "action_space", "reset", "step")):
        turn_based = hasattr(envs[0], "agent_iter") or hasattr(envs[0], "last")
        return (TurnBatch if turn_based else ParallelBatch)(name, envs, groups)
    what = f"the class {envs[0].__name__} itself" if isinstance(envs[0], type) else type(envs[0]).__name__
    raise TypeError(
        f"env.name={name!r} returned {what}; expected a PettingZoo environment, parallel or turn-based "
        "(possible_agents, observation_space(agent), reset, step), or a function that takes copies and groups"
    )
