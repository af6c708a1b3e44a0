"""The nouns that every layer shares: what a group of agents sees and does, and what replicas of a learner exchange.

A *group* is a set of agents that share one policy. Arrays of a group are [B, N, …]: B copies of the environment, N agents of the
group, always in the order of `GroupSpec.agents`. Imports nothing of ours, and no torch: supervisors read these too.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import numpy as np

AGENT_ID = "agent_id"


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """One agent's action space: `discrete` with n choices, `multi_discrete` with several choices at once, or `box`.

    A box has a shape and its limits, flattened; where a side is unbounded its limit is infinite. In batches, actions of an agent have
    `action_shape`: () discrete, (len(nvec),) multi-discrete, (size,) box.
    """

    kind: str
    n: int = 0
    nvec: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def choices(self) -> tuple[int, ...]:
        """How many choices each part of the action has; () for a box."""
        return (self.n,) if self.kind == "discrete" else self.nvec

    @property
    def size(self) -> int:
        """How many numbers describe the choice: one per choice (also an action mask's length), or one per dimension of a box."""
        return math.prod(self.shape) if self.kind == "box" else sum(self.choices)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return {"discrete": (), "multi_discrete": (len(self.nvec),), "box": (math.prod(self.shape),)}[self.kind]


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """Agents that share one policy, with the spaces that they have in common."""

    name: str
    agents: tuple[str, ...]
    observation_shape: tuple[int, ...]
    action_space: ActionSpace
    action_mask: bool = False
    image: bool = False  # observes images, three dimensions of 0 … 255

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> GroupSpec:
        space: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record["action_space"].items()
        }
        return GroupSpec(
            name=record["name"],
            agents=tuple(record["agents"]),
            observation_shape=tuple(record["observation_shape"]),
            action_space=ActionSpace(**space),
            action_mask=record["action_mask"],
            image=record["image"],
        )


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """An environment as learners need to know it, without importing it.

    `state_from` says what the state is: the `environment`'s own, or all agents' `observations` in the order of `agents`, flattened and
    one after the other, zeros for who isn't there.
    """

    name: str
    version: str
    groups: tuple[GroupSpec, ...]
    state_shape: tuple[int, ...]
    state_from: str
    turn_based: bool = False  # agents act one after the other
    edges: np.ndarray | None = field(
        default=None, compare=False
    )  # [E, 2] places in `agents`: who may talk to whom, where there are any

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(agent for group in self.groups for agent in group.agents)

    def group(self, name: str) -> GroupSpec:
        return next(group for group in self.groups if group.name == name)

    def to_json(self) -> dict[str, Any]:
        edges = None if self.edges is None else base64.b64encode(self.edges.astype("<i4").tobytes()).decode()
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**own, "groups": [group.to_json() for group in self.groups], "edges": edges}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> EnvSpec:
        groups = tuple(GroupSpec.from_json(group) for group in record["groups"])
        edges = record.get("edges")
        if edges is not None:
            edges = np.frombuffer(base64.b64decode(edges), "<i4").reshape(-1, 2)
        return EnvSpec(**{**record, "groups": groups, "state_shape": tuple(record["state_shape"]), "edges": edges})


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec:
    """What one AgentInterface trains: groups of agents, and how they belong together (see `marl_hpc.paradigms`)."""

    name: str
    paradigm: str
    groups: tuple[GroupSpec, ...]
    team_reward: str = "individual"  # mean | sum over the interface's agents | individual: what is optimized
    critic_sees: str = "own"  # own | state | joint
    joint_policy: bool = False  # the agents are one policy
    stacked: bool = False  # each agent has parameters of its own
    mix: str = "none"  # what of those agents average with their neighbors: critic | all | none
    # pairs (i, j), agent i hears agent j, where they talk or critics see neighbors; of all ranks' agents
    neighbors: tuple[tuple[int, int], ...] = ()
    part_of: str = ""  # the interface that this is a rank's part of, where its agents are spread over ranks
    turns: int = 1  # steps from one turn of an agent to its next, about: 1 where all act at once
    state_size: int = 0
    modes: bool = False  # agents act in one of two ways, by episode: see `algorithms.nfsp`
    joint_agents: tuple[str, ...] = ()  # whose actions, in this order, critics see as the joint action; () where none does
    # in populations several policies of the same agents may learn side by side; those of line 0 are what agents act by outside
    line: int = 0

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(agent for group in self.groups for agent in group.agents)

    @property
    def whole(self) -> str:
        """The name that the configuration knows it by."""
        return self.part_of or self.name

    @property
    def foremost(self) -> str:
        """The name of the interface of line 0."""
        return self.name.removesuffix(f"+{self.line}")

    @property
    def policies(self) -> dict[str, tuple[GroupSpec, ...]]:
        """The groups that each policy plays."""
        end = f"+{self.line}" if self.line else ""
        return {self.name: self.groups} if self.joint_policy else {group.name + end: (group,) for group in self.groups}


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What an algorithm wants of its table."""

    capacity: int  # environment steps, over all shards
    batch: int  # items of one gradient step, over all shards and replicas
    length: int  # L
    stride: int = 1  # items start at multiples of this: where memories of policies are known
    samples_per_insert: float = 1.0  # how many times a step is drawn, on average; decides the gradient steps of an iteration
    starts: int = 0  # environment steps to be there before anything is drawn
    priority_exponent: float = 0.0  # 0: uniform
    importance_exponent: float = 0.0

    def updates(self, steps: int) -> int:
        """Gradient steps for an iteration of so many environment steps."""
        return max(1, round(self.samples_per_insert * steps / (self.batch * self.length)))


@dataclass(frozen=True, kw_only=True)
class ReservoirConfig:
    """What an algorithm wants of its reservoir."""

    capacity: int  # actions of agents, over all shards
    batch: int  # of one gradient step, over all shards and replicas


class Seen(NamedTuple):
    """What agents see before they act, by group."""

    observation: dict[str, np.ndarray]  # [B, N, *observation_shape]
    action_mask: dict[str, np.ndarray]  # [B, N, size] bool, only for groups with masks
    active: dict[str, np.ndarray]  # [B, N] bool: acts now: alive and, in turn-based play, its turn


class Step(NamedTuple):
    """What one step of B copies gives, by group. `seen` is what the action led to, never the next episode's first observation."""

    seen: Seen
    reward: dict[str, np.ndarray]  # [B, N]
    terminated: dict[str, np.ndarray]  # [B, N] bool
    truncated: dict[str, np.ndarray]  # [B, N] bool
    over: np.ndarray  # [B] bool: the episode has ended, the copy waits for its reset
    earned: np.ndarray | None = None  # [B, G] rewards summed over all agents of groups, where those here are a part of them


class EnvBatch(Protocol):
    """B copies of an environment, stepped together. The caller resets the copies that are over, with the seeds it wants."""

    spec: EnvSpec
    copies: int

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        """Start new episodes in the given copies."""
        ...

    def observe(self) -> Seen:
        """What the agents see now."""
        ...

    def state(self) -> np.ndarray:
        """The state [B, *state_shape] as it is now, float32: computed only for those who ask."""
        ...

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        """Act with integers [B, N] (discrete) or [B, N, len(nvec)] (multi-discrete), or floats [B, N, *shape] (box), by group.

        Rewards [B, N] are this step's, also of agents that didn't act in it; `terminated` and `truncated` [B, N] are true in the one
        step in which an agent's episode ends, also by another's action.
        """
        ...

    def close(self) -> None: ...


class Exchange(Protocol):
    """Sums a tensor over the replicas of one learner, in place. A learner alone has `size` 1 and sums nothing."""

    size: int
    index: int

    def sum_(self, tensor: Any) -> None: ...
