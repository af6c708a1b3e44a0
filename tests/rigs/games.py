"""Small environments that MPE doesn't have: masks, several choices at once, boxes, agents that come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Board(ParallelEnv):
    """Two kinds of agents, `x_…` and `y_…`. `x_1` leaves early, `y_1` comes late. `masked`: choices come and go, given in info."""

    metadata = {"name": "board"}

    def __init__(self, kind: str = "discrete", masked: bool = False, length: int = 7) -> None:
        self.possible_agents = ["x_0", "x_1", "y_0", "y_1"]
        self.kind, self.masked, self.length = kind, masked, length
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
