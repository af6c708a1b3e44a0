"""Level-based foraging (Papoudakis et al. 2021), from the package lbforaging.

A task's name is its id's middle: 8x8-2p-2f-coop is Foraging-8x8-2p-2f-coop-v3; any other id through `foraging` and env.id. Options are
those of lbforaging's ForagingEnv, for example max_episode_steps. Each agent's reward is its own share of the food, 1 in all for
everyone together; a random policy gets about 0.005 in 8x8-2p-2f-coop. Running out of time is a truncation unless no food is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marl_hpc.envs.team import TeamEnv, make_team

TASKS = ("8x8-2p-2f-coop", "8x8-2p-2f", "10x10-3p-3f", "15x15-3p-4f", "15x15-4p-3f")


def out_of_time(env: Any) -> bool:
    return bool(env.field.sum() > 0)


def forget(env: Any) -> None:
    """lbforaging's reset places players around where they stood at the end of the last episode, so that a seed wouldn't tell all."""
    for player in env.players:
        player.position = None


def foraging(*, id: str, **options: Any) -> TeamEnv:
    """Any of lbforaging's registered ids."""
    return make_team("lbf/foraging", "lbforaging", id, options, out_of_time, forget)


def _task(task: str) -> Callable[..., TeamEnv]:
    def make(**options: Any) -> TeamEnv:
        return make_team(f"lbf/{task}", "lbforaging", f"Foraging-{task}-v3", options, out_of_time, forget)

    make.__name__ = make.__qualname__ = task
    make.__doc__ = f"lbforaging's Foraging-{task}-v3."
    return make


globals().update({task: _task(task) for task in TASKS})
