"""PettingZoo's turn-based (AEC) API, stepped in batches: in each step one agent of each copy makes its move.

Who moves is `Seen.active`; the others wait, and see too if the environment lets them. Rewards come in the step that caused them, for
everyone, and add up to what `last()` would have said at each agent's turns: nothing is lost, nothing counted twice. Dead agents are
stepped with None in here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from marl_hpc.envs.batch import PettingZooBatch, empty_step, number
from marl_hpc.types import Step


class TurnBatch(PettingZooBatch):
    """B copies of a PettingZoo AEC environment as a turn-based `EnvBatch`.

    An agent that waits and can't be observed has zeros, which is said once by a warning; one that acts or ends must be observable.
    Raises RuntimeError when dead agents aren't removed by stepping them with None.
    """

    def __init__(self, name: str, envs: list[Any], groups: str | Mapping[str, str] = "shared") -> None:
        envs[0].reset(seed=0)
        super().__init__(name, envs, groups, envs[0].infos, turn_based=True)
        self._ended: list[set[str]] = [set() for _ in envs]  # also those whom the environment still keeps
        self._given: list[dict[str, float]] = [{} for _ in envs]  # rewards since the agent's last move
        self._said = False

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            self._ended[copy], self._given[copy] = set(), {}
            for agent in self._place:
                self._clear(copy, agent)
            self.envs[copy].reset(seed=seed)
            self._show(copy)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        result = empty_step(self.spec.groups, self.copies)
        for copy, env in enumerate(self.envs):
            for agent in self._place:
                if agent not in env.agents or agent in self._ended[copy]:
                    self._clear(copy, agent)
            if env.agents:
                self._move(copy, actions, result)
                self._show(copy)
            result.over[copy] = not env.agents
        return result._replace(seen=self.observe())

    def _move(self, copy: int, actions: Mapping[str, np.ndarray], result: Step) -> None:
        env, given, ended = self.envs[copy], self._given[copy], self._ended[copy]
        before = [agent for agent in env.agents if agent not in ended]
        self._settle(copy, env.agent_selection, result)
        given[env.agent_selection] = 0.0
        env.step(self._action(copy, env.agent_selection, actions))
        for _ in range(2 * len(self._place) + 1):
            terminations, truncations, rewards = env.terminations, env.truncations, env.rewards
            for agent in list(env.agents):
                if agent not in self._place:
                    raise self._stranger(agent)
                group, i = self._place[agent]
                reward = number(rewards.get(agent, 0.0), agent, self.spec.name)
                result.reward[group][copy, i] += reward
                given[agent] = given.get(agent, 0.0) + reward
                if agent not in ended and (terminations[agent] or truncations[agent]):
                    self._end(copy, agent, bool(terminations[agent]), env.observe(agent), result)
            if not env.agents:
                break
            self._settle(copy, env.agent_selection, result)
            if env.agent_selection not in ended:
                break
            given[env.agent_selection] = 0.0
            env.step(None)
        else:
            raise RuntimeError(
                f"{self.spec.name}: {env.agent_selection} is dead and still there after {2 * len(self._place)} steps with None; a step "
                "of a dead agent must remove it (PettingZoo's _was_dead_step)"
            )
        for agent in before:
            if agent not in env.agents and agent not in ended:
                # it left unsaid: cut it off from the next episode, but not its future, if it has an observation to bootstrap from
                seen = self._try_to_see(copy, agent)
                self._end(copy, agent, seen is None, seen, result)

    def _settle(self, copy: int, agent: str, result: Step) -> None:
        """At an agent's turn PettingZoo's own account is due: what `rewards` didn't say, or said twice, is put right."""
        owed = number(self.envs[copy]._cumulative_rewards[agent], agent, self.spec.name) - self._given[copy].get(agent, 0.0)
        if abs(owed) > 1e-6:
            group, i = self._place[agent]
            result.reward[group][copy, i] += owed
            self._given[copy][agent] = self._given[copy].get(agent, 0.0) + owed

    def _end(self, copy: int, agent: str, terminated: bool, seen: Any, result: Step) -> None:
        group, i = self._place[agent]
        self._ended[copy].add(agent)
        (result.terminated if terminated else result.truncated)[group][copy, i] = True
        self._clear(copy, agent)
        if seen is not None:
            self._see(copy, agent, seen)

    def _show(self, copy: int) -> None:
        env = self.envs[copy]
        for agent in env.agents:
            if agent in self._ended[copy]:
                continue
            if agent == env.agent_selection:
                seen = env.observe(agent)
                self._see(copy, agent, seen)
                self._act_next(copy, agent, seen, env.infos.get(agent) or {})
            else:
                seen = self._try_to_see(copy, agent)
                self._clear(copy, agent) if seen is None else self._see(copy, agent, seen)
                self._wait(copy, agent)

    def _try_to_see(self, copy: int, agent: str) -> Any:
        try:
            return self.envs[copy].observe(agent)
        except Exception as error:  # whatever an environment does when asked about another than who acts
            if not self._said:
                self._said = True
                warnings.warn(
                    f"{self.spec.name} can't be observed by {agent} out of its turn, who waits sees zeros ({error!r})", stacklevel=2
                )
            return None
