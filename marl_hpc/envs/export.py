"""The way back: one copy of an `EnvBatch` as a PettingZoo environment, for tools that expect one. May import types and config only.

Meant for few agents: PettingZoo's dictionaries name every agent in every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from marl_hpc.types import ActionSpace, EnvBatch, GroupSpec, Seen


class ExportedEnv(ParallelEnv):
    """What `to_pettingzoo` returns; `batch` is the environment behind it, with all that it has besides. Where agents have neighbors, `edges`
    are pairs of their names."""

    def __init__(self, batch: EnvBatch) -> None:
        self.batch = batch
        self.metadata = {"name": batch.spec.name, "render_modes": []}
        self.possible_agents = list(batch.spec.agents)
        edges = batch.spec.edges
        self.edges = None if edges is None else [(self.possible_agents[i], self.possible_agents[j]) for i, j in edges]
        self.agents: list[str] = []
        self.render_mode = None
        self._place = {agent: (group, i) for group in batch.spec.groups for i, agent in enumerate(group.agents)}
        kinds = {group.name: (_observation_space(group), _action_space(group.action_space)) for group in batch.spec.groups}
        self.observation_spaces = {agent: kinds[group.name][0] for agent, (group, _) in self._place.items()}
        self.action_spaces = {agent: kinds[group.name][1] for agent, (group, _) in self._place.items()}
        self.state_space = _box(batch.spec.state_shape)
        self._random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. Without a seed it gets one by the generator that the last seed began."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.batch.reset([0], [int(self._random.integers(2**31)) if seed is None else seed])
        seen = self.batch.observe()
        self.agents = self._active(seen)
        return self._observations(seen, self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """(observations, rewards, terminations, truncations, infos), by agent; who has ended is in them for the last time."""
        present, chosen = self.agents, {}
        for group in self.batch.spec.groups:
            space = group.action_space
            chosen[group.name] = np.zeros((1, len(group.agents), *space.action_shape), np.float32 if space.kind == "box" else int)
        for agent in present:
            group, i = self._place[agent]
            chosen[group.name][0, i] = np.reshape(actions[agent], group.action_space.action_shape)
        step = self.batch.step(chosen)
        self.agents = self._active(step.seen)
        rewards, terminations, truncations = {}, {}, {}
        for agent in present:
            group, i = self._place[agent]
            rewards[agent] = float(step.reward[group.name][0, i])
            terminations[agent] = bool(step.terminated[group.name][0, i])
            truncations[agent] = bool(step.truncated[group.name][0, i])
        infos: dict[str, Any] = {agent: {} for agent in present}
        return self._observations(step.seen, present), rewards, terminations, truncations, infos

    def state(self) -> np.ndarray:
        return self.batch.state()[0]

    def close(self) -> None:
        self.batch.close()

    def _active(self, seen: Seen) -> list[str]:
        return [agent for agent, (group, i) in self._place.items() if seen.active[group.name][0, i]]

    def _observations(self, seen: Seen, agents: list[str]) -> dict[str, Any]:
        observations = {}
        for agent in agents:
            group, i = self._place[agent]
            observations[agent] = seen.observation[group.name][0, i]
            if group.action_mask:
                mask = seen.action_mask[group.name][0, i].astype(np.int8)
                observations[agent] = {"observation": observations[agent], "action_mask": mask}
        return observations


def to_pettingzoo(batch: EnvBatch) -> ExportedEnv:
    """A batch of one copy as a parallel environment; where there are masks, observations are {"observation": …, "action_mask": …}.

    Raises ValueError for several copies, or where agents take turns.

    >>> from marl_hpc.envs import make
    >>> env = to_pettingzoo(make("networked/cacc", vehicles=3))
    >>> observations, _ = env.reset(seed=0)
    >>> sorted(observations), env.action_space("agent_2")
    (['agent_0', 'agent_1', 'agent_2'], Discrete(4))
    """
    if batch.copies != 1:
        raise ValueError(f"a PettingZoo environment is one copy, and {batch.spec.name} has {batch.copies}; make it with copies=1")
    if batch.spec.turn_based:
        raise ValueError(f"{batch.spec.name} is turn-based, and a parallel environment isn't; use the environment it was made from")
    return ExportedEnv(batch)


def _box(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _observation_space(group: GroupSpec) -> spaces.Space[Any]:
    if not group.action_mask:
        return _box(group.observation_shape)
    return spaces.Dict(
        {"observation": _box(group.observation_shape), "action_mask": spaces.Box(0, 1, (group.action_space.size,), np.int8)}
    )


def _action_space(space: ActionSpace) -> spaces.Space[Any]:
    if space.kind == "discrete":
        return spaces.Discrete(space.n)
    if space.kind == "multi_discrete":
        return spaces.MultiDiscrete(list(space.nvec))
    low, high = (np.array(side, np.float32).reshape(space.shape) for side in (space.low, space.high))
    return spaces.Box(low, high, space.shape, np.float32)
