"""Whether an environment is a zero-sum game among its players, as far as that can be told before anybody learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marl_hpc.envs.openspiel import OpenSpielBatch
from marl_hpc.envs.openspiel_fast import CompiledBatch
from marl_hpc.envs.random_play import random_returns
from marl_hpc.types import EnvBatch, Step

TOLERANCE = 1e-6  # by how much the sum of all returns may vary, as a share of the largest

Places = Sequence[Mapping[str, Sequence[int]]]  # of each player's agents, by group


def earned(step: Step, players: Places) -> np.ndarray:
    """[B, players]: rewards of a step, means over a player's agents."""
    each = [np.concatenate([step.reward[group][:, places] for group, places in own.items()], 1).mean(1) for own in players]
    return np.stack(each, 1)


def zero_sum(env: EnvBatch, players: Places) -> bool:
    """Whether players' returns sum to the same constant: by all endings of a game that is written down whole, by what OpenSpiel says of its
    own; elsewhere over some episodes of random play, which may miss that they don't."""
    if isinstance(env, CompiledBatch):
        return env.game.zero_sum
    if isinstance(env, OpenSpielBatch) and env.constant_sum:
        return True
    returns = random_returns(env, lambda step: earned(step, players))
    if not len(returns):
        return True  # not known: who solves payoffs that turn out otherwise says so
    return bool(np.ptp(returns.sum(1)) <= TOLERANCE * max(np.abs(returns).max(), 1e-300))
