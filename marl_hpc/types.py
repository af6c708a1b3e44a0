"""The nouns that every layer shares: what a group of agents sees and does, and what replicas of a learner exchange.

A *group* is a set of agents that share one policy. Arrays of a group are [B, N, …]: B copies of the environment, N agents of the
group, always in the order of `GroupSpec.agents`. Imports nothing of ours, and no torch: supervisors read these too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

AGENT_ID = "agent_id"


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """One agent's action space: `discrete` with n choices, or `box` with a shape and, where bounded, its limits (flattened)."""

    kind: str
    n: int = 0
    shape: tuple[int, ...] = ()
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """Agents that share one policy, with the spaces that they have in common."""

    name: str
    agents: tuple[str, ...]
    observation_shape: tuple[int, ...]
    action_space: ActionSpace
    action_mask: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> GroupSpec:
        space = record["action_space"]
        limits = {side: None if space[side] is None else tuple(space[side]) for side in ("low", "high")}
        return GroupSpec(
            name=record["name"],
            agents=tuple(record["agents"]),
            observation_shape=tuple(record["observation_shape"]),
            action_space=ActionSpace(kind=space["kind"], n=space["n"], shape=tuple(space["shape"]), **limits),
            action_mask=record["action_mask"],
        )


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """An environment as learners need to know it, without importing it."""

    name: str
    version: str
    groups: tuple[GroupSpec, ...]

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(agent for group in self.groups for agent in group.agents)

    def group(self, name: str) -> GroupSpec:
        return next(group for group in self.groups if group.name == name)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "groups": [group.to_json() for group in self.groups]}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> EnvSpec:
        groups = tuple(GroupSpec.from_json(group) for group in record["groups"])
        return EnvSpec(name=record["name"], version=record["version"], groups=groups)


class Step(NamedTuple):
    """What one step of B copies gives, by group. `observation` is what the action led to, never the next episode's first one."""

    observation: dict[str, np.ndarray]  # [B, N, *observation_shape]
    action_mask: dict[str, np.ndarray]  # [B, N, n] bool, only for groups with masks
    active: dict[str, np.ndarray]  # [B, N] bool: alive after this step
    reward: dict[str, np.ndarray]  # [B, N]
    terminated: dict[str, np.ndarray]  # [B, N] bool
    truncated: dict[str, np.ndarray]  # [B, N] bool
    over: np.ndarray  # [B] bool: no agent is left, the copy waits for its reset


class EnvBatch(Protocol):
    """B copies of an environment, stepped together. The caller resets the copies that are over, with the seeds it wants."""

    spec: EnvSpec
    copies: int

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        """Start new episodes in the given copies."""
        ...

    def observe(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(observation, action_mask, active) by group, as the agents see it now."""
        ...

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        """Act with [B, N] integers (discrete) or [B, N, *shape] floats (box), by group."""
        ...

    def close(self) -> None: ...


class Exchange(Protocol):
    """Sums a tensor over the replicas of one learner, in place. A learner alone has `size` 1 and sums nothing."""

    size: int
    index: int

    def sum_(self, tensor: Any) -> None: ...
