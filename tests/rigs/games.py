"""Small environments that MPE doesn't have: masks, several choices at once, boxes, agents that come and go, turns in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Board(ParallelEnv):
    """Two kinds of agents, `x_…` and `y_…`. `x_1` leaves early, `y_1` comes late. `masked`: choices come and go, given in info; `edges`:
    who may talk to whom."""

    metadata = {"name": "board"}

    def __init__(self, kind: str = "discrete", masked: bool = False, length: int = 7, edges: Any = None) -> None:
        self.possible_agents = ["x_0", "x_1", "y_0", "y_1"]
        self.kind, self.masked, self.length, self.edges = kind, masked, length, edges
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (4 if agent < "y" else 3,))

    def action_space(self, agent: str) -> Any:
        return {
            "discrete": spaces.Discrete(4), "several": spaces.MultiDiscrete([3, 2]),
            "box": spaces.Box(-2.0, 1.0, (2,)), "mixed": spaces.Discrete(4) if agent < "y" else spaces.Box(-2.0, 1.0, (2,)),
        }[self.kind]  # fmt: skip

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.random, self.time = np.random.default_rng(seed), 0
        self.agents = ["x_0", "x_1", "y_0"]
        return self._seen(self.agents)

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents)
        if self.masked:
            for agent, action in actions.items():
                starts = np.cumsum([0, *sizes_of(self.action_space(agent))[:-1]])
                assert all(self.masks[agent][starts + np.atleast_1d(action)]), f"{agent} took an illegal choice"
        self.time += 1
        played = list(self.agents)
        over = self.time == self.length
        left = [agent for agent in played if over or (agent == "x_1" and self.time == 3)]
        born = ["y_1"] if self.time == 2 else []
        seen, infos = self._seen(played + born)
        rewards = {agent: float(np.sum(actions[agent])) for agent in played}
        terminated = {agent: agent in left and agent != "y_0" for agent in played}
        truncated = {agent: agent in left and agent == "y_0" for agent in played}
        self.agents = [agent for agent in played + born if agent not in left]
        return seen, rewards, terminated, truncated, infos

    def _seen(self, agents: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = {agent: self.random.normal(size=self.observation_space(agent).shape).astype(np.float32) for agent in agents}
        self.masks = {}
        for agent in agents if self.masked else []:
            space = self.action_space(agent)
            sizes = sizes_of(space)
            mask = self.random.random(sum(sizes)) < 0.4
            mask[np.cumsum([0, *sizes[:-1]]) + self.random.integers(0, sizes)] = True
            self.masks[agent] = mask
        return seen, {agent: {"action_mask": self.masks[agent].astype(np.int8)} if self.masked else {} for agent in agents}


def sizes_of(space: Any) -> list[int]:
    return [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]


def board(**options: Any) -> Board:
    return Board(**options)


class Relay(AECEnv):
    """Who has the baton says by its action who gets it next: the order is anything. Agents are a to d; d is born in move 3.

    Action 4 eliminates the next living agent by name, who loses 5 (the mover wins 1), and keeps the baton; every move pays everyone
    alive 0.5; after 8 moves who lives is truncated. Masks are in the info of who has the baton, and forbid giving it to the dead.
    """

    metadata = {"name": "relay_v0"}
    possible_agents = ["a", "b", "c", "d"]

    def observation_space(self, agent):
        return spaces.Box(0, 100, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(5)

    def reset(self, seed=None, options=None):
        self.moves, self.agents, self.agent_selection = 0, ["a", "b", "c"], "b"
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {agent: {} for agent in self.agents}
        self._skip_agent_selection = None
        self.mask()

    def mask(self):
        for agent in self.agents:
            self.infos[agent].pop("action_mask", None)
        legal = [agent in self.agents and not self.terminations[agent] for agent in self.possible_agents]
        self.infos[self.agent_selection]["action_mask"] = np.array([*legal, sum(legal) > 1])

    def observe(self, agent):
        return np.array([self.moves, 1 + self.possible_agents.index(agent)], np.float32)

    def step(self, action):
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        assert self.infos[mover]["action_mask"][action]
        self._cumulative_rewards[mover] = 0
        self.rewards = dict.fromkeys(self.agents, 0.5)
        self.moves += 1
        if action == 4:
            victim = next(agent for agent in [*self.agents, *self.agents][self.agents.index(mover) + 1 :] if agent != mover)
            self.terminations[victim] = True
            self.rewards[victim], self.rewards[mover] = -5.0, 1.0
        else:
            self.agent_selection = self.possible_agents[action]
        if self.moves == 3:
            self.agents.append("d")
            for values, first in (
                (self.rewards, 0.0),
                (self._cumulative_rewards, 0.0),
                (self.terminations, False),
                (self.truncations, False),
            ):
                values["d"] = first
            self.infos["d"] = {}
        if self.moves == 8:
            self.truncations = {agent: not self.terminations[agent] for agent in self.agents}
        self._accumulate_rewards()
        self.mask()
        self._deads_step_first()


def in_turns(**options: Any) -> Relay:
    return Relay(**options)
