"""The multi-robot warehouse (Papoudakis et al. 2021), from the package rware.

A task's name is its id's middle: tiny-2ag is rware-tiny-2ag-v2; any other id through `warehouse` and env.id. Options are those of
rware's Warehouse, for example max_steps. Rewards are sparse, 0 for a random policy: learning takes millions of steps. Running out of
time (max_steps) is a truncation, being inactive for too long (max_inactivity_steps, off by default) a termination.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marl_hpc.envs.team import TeamEnv, make_team

TASKS = ("tiny-2ag", "tiny-4ag", "small-4ag")


def out_of_time(env: Any) -> bool:
    return bool(env.max_steps) and env._cur_steps >= env.max_steps


def warehouse(*, id: str, **options: Any) -> TeamEnv:
    """Any of rware's registered ids."""
    return make_team("rware/warehouse", "rware", id, options, out_of_time)


def _task(task: str) -> Callable[..., TeamEnv]:
    def make(**options: Any) -> TeamEnv:
        return make_team(f"rware/{task}", "rware", f"rware-{task}-v2", options, out_of_time)

    make.__name__ = make.__qualname__ = task
    make.__doc__ = f"rware's rware-{task}-v2."
    return make


globals().update({task: _task(task) for task in TASKS})
