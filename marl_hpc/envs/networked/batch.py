"""What environments on a graph have in common: its edges, and equal agents by number. May import envs, types and config only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.envs.edges import each_once
from marl_hpc.envs.vectorized import VectorizedBatch, box, release

Groups = str | Mapping[str, str]


class NetworkedBatch(VectorizedBatch):
    """N agents `agent_0` … with equal spaces: `observed` numbers each, and one of `actions` choices.

    `edges`: int [E, 2], who may talk to whom: places in `spec.agents`, each undirected edge once, the lower place first, in ascending
    order. Subclasses give them as agents' numbers, in any order and as often as they like.

    >>> from marl_hpc.envs import make
    >>> make("networked/cacc", vehicles=4).edges.tolist()
    [[0, 1], [1, 2], [2, 3]]
    """

    def __init__(
        self, name: str, copies: int, groups: Groups, n: int, observed: int, actions: int, edges: np.ndarray, **options: Any
    ) -> None:
        kind = box(observed), spaces.Discrete(actions)
        agents = {f"agent_{i}": kind for i in range(n)}
        super().__init__(name, f"{release()} {name}", copies, agents, groups, **options)
        place = np.empty(n, int)
        place[np.concatenate(list(self._rows.values()))] = np.arange(n)
        self.edges = each_once(place[edges], n)
        self.spec = replace(self.spec, edges=self.edges)


def at_least(name: str, **options: tuple[int, int]) -> None:
    """Raise ConfigError for an option (value, least) that is too small or no whole number."""
    for option, (value, least) in options.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"env={name}: {option}={value!r}; it must be a whole number of at least {least}")
