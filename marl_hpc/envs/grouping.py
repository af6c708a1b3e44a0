"""Which agents share a policy: a pure function from agents and their spaces to groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace, GroupSpec


def action_space(space: Any, owner: str) -> ActionSpace:
    """Describe a gymnasium action space. Raises ConfigError for kinds that no policy of ours can act in."""
    if isinstance(space, spaces.Discrete):
        if space.start != 0:
            raise ConfigError(f"{owner}: Discrete(start={space.start}) action space; actions must start at 0")
        return ActionSpace(kind="discrete", n=int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (tuple(float(v) for v in side.ravel()) for side in (space.low, space.high))
        return ActionSpace(kind="box", shape=tuple(space.shape), low=low, high=high)
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1 or np.any(space.start != 0):
            raise ConfigError(f"{owner}: action space {space}; a MultiDiscrete must have one dimension and start at 0")
        return ActionSpace(kind="multi_discrete", nvec=tuple(int(n) for n in space.nvec))
    raise ConfigError(
        f"{owner}: action space {space} is none of Discrete, MultiDiscrete and Box, the kinds that policies can act in"
    )


def observation_shape(space: Any, owner: str) -> tuple[tuple[int, ...], bool]:
    """(shape of the observation, whether it comes as a dict with an action mask)."""
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces and "observation" in space.spaces:
        return tuple(space["observation"].shape or ()), True
    if isinstance(space, spaces.Box):
        return tuple(space.shape), False
    if isinstance(space, spaces.Discrete):  # given to the policy as one number per choice
        return (int(space.n),), False
    raise ConfigError(f"{owner}: observation space {space} is not a Box, a Discrete or a dict of observation and action_mask")


def group_agents(
    agents: Sequence[str],
    observation_spaces: Mapping[str, Any],
    action_spaces: Mapping[str, Any],
    groups: str | Mapping[str, str],
    masked: Sequence[str] = (),
) -> tuple[GroupSpec, ...]:
    """Groups in the order of their first agents; `masked` names agents whose masks come in `info`.

    Raises ConfigError when agents of one group have different spaces or the mapping misses an agent.
    """
    seen = {}
    for agent in agents:
        shape, in_observation = observation_shape(observation_spaces[agent], agent)
        seen[agent] = (shape, action_space(action_spaces[agent], agent), in_observation or agent in masked)
    if groups == "separate":
        names = {agent: agent for agent in agents}
    elif groups == "shared":
        kinds = list(dict.fromkeys(seen.values()))
        members = {kind: [agent for agent in agents if seen[agent] == kind] for kind in kinds}
        label = {kind: "shared" if len(kinds) == 1 else members[kind][0] for kind in kinds}
        names = {agent: label[seen[agent]] for agent in agents}
    elif isinstance(groups, Mapping):
        if set(groups) != set(agents):
            missing, extra = sorted(set(agents) - set(groups)), sorted(set(groups) - set(agents))
            raise ConfigError(f"groups must name every agent once: missing {missing}, unknown {extra}; agents: {list(agents)}")
        names = {agent: str(groups[agent]) for agent in agents}
    else:
        raise ConfigError(f"groups={groups!r} is not a choice; shared, separate, or a mapping agent: group")
    result = []
    for name in dict.fromkeys(names.values()):
        members_of = [agent for agent in agents if names[agent] == name]
        if len({seen[agent] for agent in members_of}) > 1:
            spaces_text = "; ".join(f"{agent}: observation {seen[agent][0]}, action {seen[agent][1]}" for agent in members_of)
            raise ConfigError(f"group {name!r} shares one policy but its agents' spaces differ ({spaces_text}); use groups=shared")
        shape, space, mask = seen[members_of[0]]
        result.append(GroupSpec(name=name, agents=tuple(members_of), observation_shape=shape, action_space=space, action_mask=mask))
    return tuple(result)
