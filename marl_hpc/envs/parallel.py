"""PettingZoo's parallel API, stepped in batches.

One idea: a copy is a plain PettingZoo environment; this class only moves its dicts into preallocated [B, N, …] arrays and back.
Dead agents keep their place with zeros and `active` false. Episodes end for a copy when no agent is left.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from marl_hpc.envs.grouping import group_agents
from marl_hpc.types import EnvSpec, GroupSpec, Seen, Step


class ParallelBatch:
    """B copies of a PettingZoo parallel environment as an `EnvBatch`."""

    def __init__(self, name: str, envs: list[Any], groups: str | Mapping[str, str] = "shared") -> None:
        first = envs[0]
        if not hasattr(first, "possible_agents") or not hasattr(first, "observation_space"):
            raise TypeError(
                f"env.name={name!r} returned {type(first).__name__}; expected a PettingZoo parallel environment "
                "(possible_agents, observation_space(agent), reset, step) or a function that takes copies and groups"
            )
        if not callable(getattr(first, "step", None)) or hasattr(first, "agent_iter"):
            raise TypeError(f"env.name={name!r} is a turn-based (AEC) environment; return its parallel version")
        agents = tuple(first.possible_agents)
        _, infos = first.reset(seed=0)
        observation_spaces = {agent: first.observation_space(agent) for agent in agents}
        action_spaces = {agent: first.action_space(agent) for agent in agents}
        masked = [agent for agent in agents if "action_mask" in infos.get(agent, {})]
        # who isn't there yet is like those with the same spaces
        kinds = [(observation_spaces[agent], action_spaces[agent]) for agent in masked]
        masked += [a for a in agents if a not in infos and (observation_spaces[a], action_spaces[a]) in kinds]
        self.spec = EnvSpec(
            name=name,
            version=version_of(first),
            groups=group_agents(agents, observation_spaces, action_spaces, groups, masked),
            state_shape=(0,),
            state_from="observations",
        )
        self._own_state = callable(getattr(first, "state", None)) and getattr(first, "state_space", None) is not None
        shape = np.shape(first.state()) if self._own_state else (sum(math.prod(s) * n for s, n in self._sizes()),)
        self.spec = replace(self.spec, state_shape=shape, state_from="environment" if self._own_state else "observations")
        self.copies = len(envs)
        self.envs = envs
        self._place = {agent: (group.name, i) for group in self.spec.groups for i, agent in enumerate(group.agents)}
        self._discrete = {agent: self.spec.group(g).action_space.kind == "discrete" for agent, (g, _) in self._place.items()}
        self._one_hot = {agent: getattr(observation_spaces[agent], "n", 0) for agent in agents}
        self._starts = {agent: int(getattr(observation_spaces[agent], "start", 0)) for agent in agents}
        self._current = self._empty()

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            for place in self._place.values():
                self._clear(copy, *place, self._current)
            observations, infos = self.envs[copy].reset(seed=seed)
            for agent in self.envs[copy].agents:
                self._write(copy, agent, observations[agent], infos.get(agent, {}), self._current)

    def observe(self) -> Seen:
        return Seen(*({name: array.copy() for name, array in part.items()} for part in self._current))

    def state(self) -> np.ndarray:
        if self._own_state:
            return np.stack([np.asarray(env.state(), np.float32) for env in self.envs])
        return np.concatenate([self._current[0][g.name].reshape(self.copies, -1) for g in self.spec.groups], 1)

    def _sizes(self) -> list[tuple[tuple[int, ...], int]]:
        return [(g.observation_shape, len(g.agents)) for g in self.spec.groups]

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        groups = self.spec.groups
        reward = {g.name: np.zeros((self.copies, len(g.agents)), np.float64) for g in groups}
        terminated = {g.name: np.zeros((self.copies, len(g.agents)), bool) for g in groups}
        truncated = {g.name: np.zeros((self.copies, len(g.agents)), bool) for g in groups}
        over = np.zeros(self.copies, bool)
        for copy, env in enumerate(self.envs):
            living = list(env.agents)
            for agent, place in self._place.items():
                if agent not in living:
                    self._clear(copy, *place, self._current)
            chosen = {}
            for agent in living:
                group, i = self._place[agent]
                action = actions[group][copy, i]
                chosen[agent] = int(action) if self._discrete[agent] else action
            observations, rewards, terminations, truncations, infos = env.step(chosen)
            for agent in living:
                group, i = self._place[agent]
                reward[group][copy, i] = rewards.get(agent, 0.0)
                ended, cut = bool(terminations.get(agent, False)), bool(truncations.get(agent, False))
                terminated[group][copy, i], truncated[group][copy, i] = ended, cut and not ended
                if agent not in env.agents and agent in observations and not (ended or cut):
                    truncated[group][copy, i] = True  # it left unsaid: cut it off from the next episode, but not its future
                # an agent that leaves without an observation of its own bootstraps from nothing: it counts as terminated
                if agent in observations:
                    self._write(copy, agent, observations[agent], infos.get(agent, {}), self._current)
                elif not ended:
                    terminated[group][copy, i], truncated[group][copy, i] = True, False
                if ended or cut or agent not in env.agents:
                    self._current[2][group][copy, i] = False
            for agent in env.agents:
                if agent not in living:  # born in this step
                    self._write(copy, agent, observations[agent], infos.get(agent, {}), self._current)
            over[copy] = not env.agents or all(terminations.get(a, False) or truncations.get(a, False) for a in env.agents)
        return Step(self.observe(), reward, terminated, truncated, over)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _empty(self) -> Seen:
        def zeros(group: GroupSpec, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.zeros((self.copies, len(group.agents), *shape), dtype)

        groups = self.spec.groups
        return Seen(
            {g.name: zeros(g, g.observation_shape, np.float32) for g in groups},
            {g.name: zeros(g, (g.action_space.size,), bool) for g in groups if g.action_mask},
            {g.name: zeros(g, (), bool) for g in groups},
        )

    def _clear(self, copy: int, group: str, i: int, where: Seen) -> None:
        observation, mask, active = where
        observation[group][copy, i] = 0
        active[group][copy, i] = False
        if group in mask:
            mask[group][copy, i] = True  # a dead agent's choice is thrown away; an empty mask would make it NaN

    def _write(self, copy: int, agent: str, seen: Any, info: Mapping[str, Any], where: Seen) -> None:
        observation, mask, active = where
        group, i = self._place[agent]
        if group in mask:
            legal = seen["action_mask"] if isinstance(seen, Mapping) else info.get("action_mask")
            mask[group][copy, i] = True if legal is None else np.asarray(legal, bool)
        if isinstance(seen, Mapping):
            seen = seen["observation"]
        if self._one_hot[agent]:
            seen = np.eye(self._one_hot[agent], dtype=np.float32)[int(seen) - self._starts[agent]]
        observation[group][copy, i] = seen
        active[group][copy, i] = True


def version_of(env: Any) -> str:
    """Package, its version and the environment's own name, for results: published numbers depend on all three."""
    inner = getattr(env, "unwrapped", env)
    package = type(inner).__module__.partition(".")[0]
    try:
        release = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        release = "local"
    named = (getattr(env, "metadata", None) or {}).get("name") or type(inner).__name__
    return f"{package} {release} {named}"
