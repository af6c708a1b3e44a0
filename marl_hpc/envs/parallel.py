"""PettingZoo's parallel API, stepped in batches: all living agents of a copy act in each step.

One idea: a copy is a plain PettingZoo environment; this class only moves its dicts into preallocated [B, N, …] arrays and back.
Dead agents keep their place with zeros and `active` false. Episodes end for a copy when no agent is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from marl_hpc.envs.batch import PettingZooBatch, empty_step
from marl_hpc.types import Step


class ParallelBatch(PettingZooBatch):
    """B copies of a PettingZoo parallel environment as an `EnvBatch`."""

    def __init__(self, name: str, envs: list[Any], groups: str | Mapping[str, str] = "shared") -> None:
        _, infos = envs[0].reset(seed=0)
        super().__init__(name, envs, groups, infos, turn_based=False)

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            for agent in self._place:
                self._clear(copy, agent)
            observations, infos = self.envs[copy].reset(seed=seed)
            for agent in self.envs[copy].agents:
                self._write(copy, agent, observations[agent], infos)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        result = empty_step(self.spec.groups, self.copies)
        _, reward, terminated, truncated, over = result
        for copy, env in enumerate(self.envs):
            living = list(env.agents)
            for agent in self._place:
                if agent not in living:
                    self._clear(copy, agent)
            if not living:  # waits for its reset
                over[copy] = True
                continue
            chosen = {agent: self._action(copy, agent, actions) for agent in living}
            observations, rewards, terminations, truncations, infos = env.step(chosen)
            for agent in living:
                group, i = self._place[agent]
                reward[group][copy, i] = rewards.get(agent, 0.0)
                ended, cut = bool(terminations.get(agent, False)), bool(truncations.get(agent, False))
                terminated[group][copy, i], truncated[group][copy, i] = ended, cut and not ended
                if agent not in env.agents and agent in observations and not (ended or cut):
                    truncated[group][copy, i] = True  # it left unsaid: cut it off from the next episode, but not its future
                # an agent that leaves without an observation of its own bootstraps from nothing: it counts as terminated
                if agent not in observations:
                    if agent in env.agents and not (ended or cut):
                        raise ValueError(f"{self.spec.name}: {agent} lives on after the step but has no observation in it")
                    self._clear(copy, agent)
                    terminated[group][copy, i], truncated[group][copy, i] = True, False
                elif ended or cut or agent not in env.agents:
                    self._see(copy, agent, observations[agent])
                    self._wait(copy, agent)
                else:
                    self._write(copy, agent, observations[agent], infos)
            for agent in env.agents:
                if agent not in living:  # born in this step
                    self._write(copy, agent, observations[agent], infos)
            over[copy] = not env.agents or all(terminations.get(a, False) or truncations.get(a, False) for a in env.agents)
        return result._replace(seen=self.observe())

    def _write(self, copy: int, agent: str, seen: Any, infos: Mapping[str, Any]) -> None:
        self._see(copy, agent, seen)
        self._act_next(copy, agent, seen, infos.get(agent) or {})
