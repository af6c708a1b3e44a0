"""PettingZoo's parallel API, stepped in batches: all living agents of a copy act in each step.

One idea: a copy is a plain PettingZoo environment; this class only moves its dicts into preallocated [B, N, …] arrays and back.
Dead agents keep their place with zeros and `active` false. Episodes end for a copy when no agent is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from marl_hpc.envs.batch import PettingZooBatch, empty_step, number
from marl_hpc.types import Step


class ParallelBatch(PettingZooBatch):
    """B copies of a PettingZoo parallel environment as an `EnvBatch`."""

    def __init__(self, name: str, envs: list[Any], groups: str | Mapping[str, str] = "shared") -> None:
        _, infos = start(name, envs[0], 0)
        super().__init__(name, envs, groups, infos, turn_based=False)

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            for agent in self._place:
                self._clear(copy, agent)
            observations, infos = start(self.spec.name, self.envs[copy], seed)
            for agent in self.envs[copy].agents:
                self._enter(copy, agent, observations, infos)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        result = empty_step(self.spec.groups, self.copies)
        _, reward, terminated, truncated, over, _ = result
        for copy, env in enumerate(self.envs):
            living = list(env.agents)
            for agent in self._place:
                if agent not in living:
                    self._clear(copy, agent)
            if not living:  # waits for its reset
                over[copy] = True
                continue
            chosen = {agent: self._action(copy, agent, actions) for agent in living}
            stepped = env.step(chosen)
            if len(stepped) != 5:
                raise TypeError(
                    f"{self.spec.name}: step() returned {len(stepped)} values; expected 5: observations, rewards, terminations, truncations, infos"
                )
            observations, rewards, terminations, truncations, infos = stepped
            for agent in living:
                group, i = self._place[agent]
                reward[group][copy, i] = number(rewards.get(agent, 0.0), agent, self.spec.name)
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
                    self._enter(copy, agent, observations, infos)
            over[copy] = not env.agents or all(terminations.get(a, False) or truncations.get(a, False) for a in env.agents)
        return result._replace(seen=self.observe())

    def _enter(self, copy: int, agent: str, observations: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        """An agent's first observation in an episode, or of its next life in it."""
        if agent not in self._place:
            raise self._stranger(agent)
        if agent not in observations:
            raise ValueError(f"{self.spec.name}: {agent} is among agents but has no observation to begin with")
        self._write(copy, agent, observations[agent], infos)

    def _write(self, copy: int, agent: str, seen: Any, infos: Mapping[str, Any]) -> None:
        self._see(copy, agent, seen)
        self._act_next(copy, agent, seen, (infos or {}).get(agent) or {})


def start(name: str, env: Any, seed: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(observations, infos) of a new episode."""
    begun = env.reset(seed=seed)
    if not isinstance(begun, tuple) or len(begun) != 2:
        raise TypeError(f"{name}: reset() returned {type(begun).__name__}; expected a pair: observations, infos")
    return begun[0], begun[1] or {}
