"""Who may talk to whom: what an environment says by its attribute `edges`, as places in a spec. May import config only.

One idea: neighbors are so both ways, and each pair stands once, the lower place first, in ascending order, however it was given.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError

SHOWN = 8  # agents in an error


def edges_of(name: str, env: Any, agents: Sequence[Any]) -> np.ndarray | None:
    """Neighbors as places in `agents`, int [E, 2]; None where a PettingZoo environment has no attribute `edges`, or None there.

    `edges` are pairs of agents' names, or of places in `possible_agents`; where names are numbers themselves, numbers are names. Raises
    ConfigError for what is no pair, for an agent that isn't there and for an agent paired with itself.

    >>> from types import SimpleNamespace
    >>> env = SimpleNamespace(possible_agents=["x", "y", "z"], edges=[("z", "x"), (0, 2), (0, 1)])
    >>> edges_of("mine:env", env, ("x", "z", "y")).tolist()
    [[0, 1], [0, 2]]
    """
    given = getattr(env, "edges", None)
    if given is None:
        return None
    try:
        pairs = [tuple(pair) for pair in given]
    except TypeError as error:
        raise ConfigError(f"{name}: edges={given!r:.100} aren't pairs of agents; give them as [(agent, agent), …]") from error
    place = {agent: i for i, agent in enumerate(agents)}
    by_number = [place[agent] for agent in env.possible_agents]
    found = np.empty((len(pairs), 2), int)
    for row, pair in zip(found, pairs, strict=True):
        if len(pair) != 2:
            raise ConfigError(f"{name}: {pair} among edges has {len(pair)} agents; expected pairs, [(agent, agent), …]")
        for side, agent in enumerate(pair):
            if isinstance(agent, Hashable) and agent in place:
                row[side] = place[agent]
            elif isinstance(agent, int | np.integer) and 0 <= agent < len(by_number):
                row[side] = by_number[agent]
            else:
                known = ", ".join(map(str, env.possible_agents[:SHOWN])) + (", …" if len(place) > SHOWN else "")
                raise ConfigError(
                    f"{name}: {pair} among edges names {agent!r}, who isn't among possible_agents: {known}; "
                    f"edges are pairs of their names or of their places, 0 to {len(place) - 1}"
                )
        if row[0] == row[1]:
            raise ConfigError(f"{name}: {pair} among edges pairs an agent with itself; leave it out")
    return each_once(found, len(place))


def each_once(pairs: np.ndarray, agents: int) -> np.ndarray:
    """Pairs of places [E, 2], each once, the lower place first, in ascending order.

    >>> each_once(np.array([[2, 1], [0, 2], [1, 2]]), 3).tolist()
    [[0, 2], [1, 2]]
    """
    low, high = np.sort(pairs.reshape(-1, 2), axis=1).T
    code = np.sort(low * agents + high)
    code = code[np.diff(code, prepend=-1) > 0]  # several times as fast as np.unique
    return np.stack([code // agents, code % agents], 1)
