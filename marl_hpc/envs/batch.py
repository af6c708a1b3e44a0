"""What both PettingZoo APIs have in common: B environments, their spec, and the arrays [B, N, …] that agents are written into.

One idea: an agent has one place for good. Who isn't there is inactive, zeros, with everything legal.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from marl_hpc.envs.edges import edges_of
from marl_hpc.envs.grouping import group_agents, padding
from marl_hpc.envs.spaces import action_space, decoder, encoding, flat_mask
from marl_hpc.types import EnvSpec, GroupSpec, Seen, Step


def empty_seen(groups: tuple[GroupSpec, ...], copies: int) -> Seen:
    """Arrays in which nobody is there."""
    return Seen(
        {g.name: np.zeros((copies, len(g.agents), *g.observation_shape), np.float32) for g in groups},
        {g.name: np.ones((copies, len(g.agents), g.action_space.size), bool) for g in groups if g.action_mask},
        {g.name: np.zeros((copies, len(g.agents)), bool) for g in groups},
    )


def empty_step(groups: tuple[GroupSpec, ...], copies: int) -> Step:
    """A step in which nothing happened yet: its arrays are to be filled, its `seen` replaced."""
    shapes = {g.name: (copies, len(g.agents)) for g in groups}
    reward, terminated, truncated = (
        {name: np.zeros(shape, kind) for name, shape in shapes.items()} for kind in (np.float64, bool, bool)
    )
    return Step(Seen({}, {}, {}), reward, terminated, truncated, np.zeros(copies, bool))


def copy_seen(seen: Seen) -> Seen:
    return Seen(*({name: array.copy() for name, array in part.items()} for part in seen))


class PettingZooBatch:
    """The part of an `EnvBatch` that doesn't depend on who acts when. `infos` are the first environment's after a reset."""

    def __init__(
        self, name: str, envs: list[Any], groups: str | Mapping[str, str], infos: Mapping[str, Any], *, turn_based: bool
    ) -> None:
        first = envs[0]
        agents = tuple(first.possible_agents)
        observation_spaces = {agent: first.observation_space(agent) for agent in agents}
        action_spaces = {agent: first.action_space(agent) for agent in agents}
        # in turn-based play only who acts may have a mask, and late agents have no info yet: equal spaces, equal masks
        masks = [(observation_spaces[a], action_spaces[a]) for a in agents if "action_mask" in (infos.get(a) or {})]
        masked = [agent for agent in agents if (observation_spaces[agent], action_spaces[agent]) in masks]
        specs = group_agents(agents, observation_spaces, action_spaces, groups, masked)
        self._own_state = has_state(first)
        shape = (
            np.shape(first.state()) if self._own_state else (sum(math.prod(g.observation_shape) * len(g.agents) for g in specs),)
        )
        self.spec = EnvSpec(
            name=name,
            version=version_of(first) + padding(specs, observation_spaces, action_spaces),
            groups=specs,
            state_shape=shape,
            state_from="environment" if self._own_state else "observations",
            turn_based=turn_based,
            edges=edges_of(name, first, [agent for group in specs for agent in group.agents]),
        )
        self.copies = len(envs)
        self.envs = envs
        self._place = {agent: (group.name, i) for group in specs for i, agent in enumerate(group.agents)}
        self._encoding = {agent: encoding(space, agent) for agent, space in observation_spaces.items()}
        self._decode = {agent: decoder(space) for agent, space in action_spaces.items()}
        self._choices = {agent: action_space(space, agent).choices for agent, space in action_spaces.items()}
        self._current = empty_seen(specs, self.copies)

    def observe(self) -> Seen:
        return copy_seen(self._current)

    def state(self) -> np.ndarray:
        if self._own_state:
            return np.stack([np.asarray(env.state(), np.float32) for env in self.envs])
        return np.concatenate([self._current.observation[g.name].reshape(self.copies, -1) for g in self.spec.groups], 1)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _stranger(self, agent: Any) -> Exception:
        return ValueError(
            f"{self.spec.name}: {agent!r} appears, who isn't among its possible_agents: {', '.join(map(str, self._place))}"
        )

    def _action(self, copy: int, agent: str, actions: Mapping[str, np.ndarray]) -> Any:
        group, i = self._place[agent]
        return self._decode[agent](actions[group][copy, i])

    def _clear(self, copy: int, agent: str) -> None:
        group, i = self._place[agent]
        self._current.observation[group][copy, i] = 0
        self._wait(copy, agent)

    def _wait(self, copy: int, agent: str) -> None:
        """The agent doesn't act: all is legal, since an empty mask would make its unused choice NaN."""
        group, i = self._place[agent]
        self._current.active[group][copy, i] = False
        if group in self._current.action_mask:
            self._current.action_mask[group][copy, i] = True

    def _see(self, copy: int, agent: str, seen: Any) -> None:
        group, i = self._place[agent]
        try:
            vector = self._encoding[agent].encode(seen)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{self.spec.name}: {agent} observed something outside its observation space {self.envs[copy].observation_space(agent)}: {error}"
            ) from error
        self._current.observation[group][copy, i][: len(vector)] = vector  # a padded rest stays zero

    def _act_next(self, copy: int, agent: str, seen: Any, info: Mapping[str, Any]) -> None:
        """The agent acts in the next step, by the mask in its observation or in its info."""
        group, i = self._place[agent]
        self._current.active[group][copy, i] = True
        legal = seen["action_mask"] if self._encoding[agent].masked else info.get("action_mask")
        if group in self._current.action_mask:
            row, choices = self._current.action_mask[group][copy, i], self._choices[agent]
            own = sum(choices)
            row[:own] = True if legal is None else flat_mask(legal, choices, agent)
            row[own:] = False
        elif legal is not None:
            raise ValueError(
                f"{self.spec.name}: {agent} has an action mask in its info now but nobody like it had one after a reset"
            )


def number(reward: Any, agent: Any, name: str) -> float:
    """An agent's reward, however it is wrapped. Raises ValueError for what isn't one number."""
    if type(reward) is float:
        return reward
    try:
        if reward is None:
            raise TypeError
        return float(np.asarray(reward, np.float64).reshape(()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: the reward of {agent} is {reward!r}; expected a number") from error


def has_state(env: Any) -> bool:
    """Whether the environment gives a state of its own: it says its space, or its class defines more than PettingZoo's refusal."""
    own = getattr(type(getattr(env, "unwrapped", env)), "state", None)
    defined = callable(own) and own not in (AECEnv.state, ParallelEnv.state)
    return callable(getattr(env, "state", None)) and (getattr(env, "state_space", None) is not None or defined)


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
