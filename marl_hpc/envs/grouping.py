"""Which agents share a policy: a pure function from agents and their spaces to groups.

Agents with different spaces share one only where the user says so, by a mapping: then shorter vectors are padded with zeros and
fewer choices with masked ones, up to the largest of the group.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from marl_hpc.config import ConfigError
from marl_hpc.envs.spaces import action_space, encoding
from marl_hpc.types import ActionSpace, GroupSpec


class Kind(NamedTuple):
    """What an agent observes and does."""

    shape: tuple[int, ...]
    image: bool
    action_space: ActionSpace
    action_mask: bool


def group_agents(
    agents: Sequence[str],
    observation_spaces: Mapping[str, Any],
    action_spaces: Mapping[str, Any],
    groups: str | Mapping[str, str],
    masked: Container[str] = (),
) -> tuple[GroupSpec, ...]:
    """Groups in the order of their first agents; `masked` names agents whose masks come beside their observations.

    Raises ConfigError when agents of one group have spaces that can't be padded to the same, or the mapping misses an agent.
    """
    kinds: dict[str, Kind] = {}
    # many agents share the same two objects: those are read once, and kept, so that no other gets their id
    known: dict[tuple[int, int, bool], tuple[Kind, Any, Any]] = {}
    for agent in agents:
        observed, done = observation_spaces[agent], action_spaces[agent]
        key = id(observed), id(done), agent in masked
        if key not in known:
            shape, image, in_observation, _ = encoding(observed, agent)
            kind = Kind(shape, image, action_space(done, agent), in_observation or agent in masked)
            known[key] = kind, observed, done
        kinds[agent] = known[key][0]
    if groups == "separate":
        names = {agent: agent for agent in agents}
    elif groups == "shared":
        first = {kind: agent for agent, kind in reversed(kinds.items())}
        names = {agent: "shared" if len(first) == 1 else first[kinds[agent]] for agent in agents}
    elif isinstance(groups, Mapping):
        if set(groups) != set(agents):
            missing, extra = sorted(set(agents) - set(groups)), sorted(set(groups) - set(agents))
            raise ConfigError(f"groups must name every agent once: missing {missing}, unknown {extra}; agents: {list(agents)}")
        names = {agent: str(groups[agent]) for agent in agents}
    else:
        raise ConfigError(f"groups={groups!r} is not a choice; shared, separate, or a mapping agent: group")
    members_of: dict[str, dict[str, Kind]] = {}
    for agent in agents:
        members_of.setdefault(names[agent], {})[agent] = kinds[agent]
    result = []
    for name, members in members_of.items():
        kind = common(name, members)
        result.append(
            GroupSpec(
                name=name, agents=tuple(members), observation_shape=kind.shape, image=kind.image,
                action_space=kind.action_space, action_mask=kind.action_mask,
            )
        )  # fmt: skip
    return tuple(result)


def common(group: str, members: Mapping[str, Kind]) -> Kind:
    """The kind that all members fit into, padded where they differ. Raises ConfigError naming what can't be padded."""
    kinds = list(dict.fromkeys(members.values()))
    if len(kinds) == 1:
        return kinds[0]
    shapes = {(kind.shape, kind.image) for kind in kinds}
    actions = {kind.action_space for kind in kinds}
    if (len(shapes) > 1 and any(len(shape) != 1 for shape, _ in shapes)) or (
        len(actions) > 1 and any(space.kind != "discrete" for space in actions)
    ):
        text = "; ".join(f"{agent}: observation {kind.shape}, action {kind.action_space}" for agent, kind in members.items())
        raise ConfigError(
            f"group {group!r} shares one policy but its agents' spaces differ ({text}); only vectors and discrete actions can be "
            "padded; use groups=shared"
        )
    return Kind(
        shape=max(kind.shape for kind in kinds),
        image=kinds[0].image,
        action_space=max(actions, key=lambda space: space.n),
        action_mask=len(actions) > 1 or any(kind.action_mask for kind in kinds),
    )


def padding(groups: Sequence[GroupSpec], observation_spaces: Mapping[str, Any], action_spaces: Mapping[str, Any]) -> str:
    """What was padded, for the environment's version: results with padding are results of another representation."""
    said = []
    for group in groups:
        parts = []
        if any(encoding(observation_spaces[agent], agent).shape != group.observation_shape for agent in group.agents):
            parts.append(f"observations to {group.observation_shape[0]}")
        if any(action_space(action_spaces[agent], agent) != group.action_space for agent in group.agents):
            parts.append(f"actions to {group.action_space.n}")
        if parts:
            said.append(f"; group {group.name} padded: {', '.join(parts)}")
    return "".join(said)
