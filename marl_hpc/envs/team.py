"""Gymnasium environments whose observation, action and reward are one entry an agent, and which end for all at once: as PettingZoo's
parallel API. Level-based foraging and the warehouse are made this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
from pettingzoo import ParallelEnv

from marl_hpc.config import ConfigError
from marl_hpc.envs.family import load


class TeamEnv(ParallelEnv):
    """One registered environment; `out_of_time(env)` says of an end whether only the time limit made it: then it is a truncation.

    The packages report their time limit as a termination, after which nothing would be worth anything. `forget(env)` is called before
    each reset, for what the environment would otherwise carry over from the last episode.
    """

    def __init__(
        self, env: gymnasium.Env, out_of_time: Callable[[Any], bool], forget: Callable[[Any], None] = lambda env: None
    ) -> None:
        self.env, self._out_of_time, self._forget = env, out_of_time, forget
        assert isinstance(env.observation_space, gymnasium.spaces.Tuple)
        assert isinstance(env.action_space, gymnasium.spaces.Tuple)
        self.possible_agents = [f"agent_{i}" for i in range(len(env.action_space))]
        self.agents: list[str] = []
        self._spaces = dict(zip(self.possible_agents, zip(env.observation_space, env.action_space, strict=True), strict=True))
        self.metadata = {"name": env.spec.id if env.spec else type(env.unwrapped).__name__}

    @property
    def unwrapped(self) -> Any:
        return self.env.unwrapped

    def observation_space(self, agent: str) -> Any:
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> Any:
        return self._spaces[agent][1]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self._forget(self.env.unwrapped)
        observations, _ = self.env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return self._each(observations), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        observations, rewards, done, truncated, _ = self.env.step([actions[agent] for agent in self.possible_agents])
        truncated = bool(truncated or (done and self._out_of_time(self.env.unwrapped)))
        terminated = bool(done) and not truncated
        result = (
            self._each(observations), {agent: float(reward) for agent, reward in self._each(rewards).items()},
            dict.fromkeys(self.agents, terminated), dict.fromkeys(self.agents, truncated), {agent: {} for agent in self.agents},
        )  # fmt: skip
        if terminated or truncated:
            self.agents = []
        return result

    def close(self) -> None:
        self.env.close()

    def _each(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))


def make_team(
    name: str,
    package: str,
    id: str,
    options: dict[str, Any],
    out_of_time: Callable[[Any], bool],
    forget: Callable[[Any], None] = lambda env: None,
) -> TeamEnv:
    """The environment registered as `id`. Raises ConfigError when the package, the id or an option doesn't exist."""
    load(name, package, name.partition("/")[0])
    try:
        env = gymnasium.make(id, disable_env_checker=True, **options)
    except (gymnasium.error.Error, TypeError) as error:
        raise ConfigError(f"env={name}: {error}") from error
    return TeamEnv(env, out_of_time, forget)
