"""VMAS (Bettini et al. 2022), from the package vmas: all copies of a scenario are stepped together, as tensors.

One function a scenario; options are `make_env`'s continuous_actions and multidiscrete_actions, and the scenario's own. Episodes are cut
off after max_steps. A copy starts by its own seed; noise that a scenario draws while it runs comes from one stream for all copies,
and vmas's collisions aren't exactly the same for a copy alone as for one among others (balance: a jump of 0.03 where others touch).
vmas pins old packages (gym 0.26, pyglet 1.5.27), which stand beside gymnasium and numpy 2 but for a warning when gym is imported.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.envs.batch import copy_seen, empty_seen, empty_step
from marl_hpc.envs.family import load
from marl_hpc.envs.grouping import group_agents
from marl_hpc.types import EnvBatch, EnvSpec, Seen, Step

TASKS = ("simple_spread", "balance", "transport", "navigation", "dispersion", "flocking", "wheel")


class VmasBatch:
    """A vmas environment as an `EnvBatch`. `env` has been made with terminated_truncated=True and tensors as observations."""

    def __init__(self, name: str, env: Any, scenario: str, groups: str | Mapping[str, str]) -> None:
        agents = [agent.name for agent in env.agents]
        sees = {agent: _gymnasium(space, name) for agent, space in zip(agents, env.observation_space, strict=True)}
        does = {agent: _gymnasium(space, name) for agent, space in zip(agents, env.action_space, strict=True)}
        specs = group_agents(agents, sees, does, groups)
        self.spec = EnvSpec(
            name=name,
            version=f"vmas {importlib.metadata.version('vmas')} {scenario}",
            groups=specs,
            state_shape=(sum(int(np.prod(space.shape)) for space in sees.values()),),
            state_from="observations",
        )
        self.copies = int(env.num_envs)
        self._env = env
        place = {agent: (group.name, i) for group in specs for i, agent in enumerate(group.agents)}
        self._places = [place[agent] for agent in agents]
        self._waits = np.ones(self.copies, bool)  # for a reset
        self._current = empty_seen(specs, self.copies)

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            self._env.seed(seed)  # vmas keeps generators apart from torch's own
            self._env.reset_at(copy, return_observations=False)
            self._waits[copy] = False
        (observations,) = self._env.get_from_scenario(get_observations=True, get_rewards=False, get_infos=False, get_dones=False)
        for (group, i), observation in zip(self._places, observations, strict=True):
            self._current.observation[group][copies, i] = observation.cpu().numpy()[copies]
            self._current.active[group][copies, i] = True

    def observe(self) -> Seen:
        return copy_seen(self._current)

    def state(self) -> np.ndarray:
        return np.concatenate([self._current.observation[g.name].reshape(self.copies, -1) for g in self.spec.groups], 1)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        import torch

        result = empty_step(self.spec.groups, self.copies)
        chosen = [torch.as_tensor(np.ascontiguousarray(actions[group][:, i]), device=self._env.device) for group, i in self._places]
        observations, rewards, terminated, truncated, _ = self._env.step(chosen)
        running = ~self._waits
        ended, cut = terminated.cpu().numpy() & running, truncated.cpu().numpy() & running
        for (group, i), observation, reward in zip(self._places, observations, rewards, strict=True):
            self._current.observation[group][:, i] = np.where(running[:, None], observation.cpu().numpy(), 0)
            self._current.active[group][:, i] = running & ~ended & ~cut
            result.reward[group][:, i] = np.where(running, reward.cpu().numpy().reshape(-1), 0)  # some give [B, 1]
            result.terminated[group][:, i], result.truncated[group][:, i] = ended, cut & ~ended
        self._waits |= ended | cut
        result.over[:] = self._waits
        return result._replace(seen=self.observe())

    def close(self) -> None:
        pass


def _gymnasium(space: Any, name: str) -> Any:
    """vmas describes its spaces with the old package gym."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(space.nvec)
    if kind == "Box" and len(space.shape) == 1:
        return spaces.Box(space.low, space.high, space.shape, np.float32)
    raise ConfigError(
        f"env={name}: {space} is not a vector, Discrete or MultiDiscrete; choose options of the scenario that give these"
    )


def _task(task: str) -> Callable[..., EnvBatch]:
    def make(
        *, copies: int, groups: str | Mapping[str, str], max_steps: int = 100, device: str = "cpu", **options: Any
    ) -> EnvBatch:
        name = f"vmas/{task}"
        vmas = load(name, "vmas", "vmas")
        options = {"clamp_actions": True, **options}  # otherwise a Gaussian's tail is an error
        try:
            env = vmas.make_env(task, num_envs=copies, device=device, max_steps=max_steps, terminated_truncated=True, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"env={name}: {error}") from error
        return VmasBatch(name, env, task, groups)

    make.__name__ = make.__qualname__ = task
    make.__doc__ = f"vmas's scenario {task}."
    return make


globals().update({task: _task(task) for task in TASKS})
