"""Games small enough to be solved on paper, all copies at once: repeated matrix games, the two-step game and a memory task.

Returns are known in closed form, which makes them the first test of an algorithm. Repeated games keep no state: agents see one number,
always 1. They end with termination at the horizon, as published results have it (Papoudakis et al. 2021, 25 repeats): the return is
per agent and undiscounted, not summed over agents. May import types and config only, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.envs.vectorized import VectorizedBatch, box, release

Groups = str | Mapping[str, str]
# Claus & Boutilier 1998, in the orientation of Papoudakis et al. 2021
CLIMBING = [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]


class MatrixGame(VectorizedBatch):
    """A game of N players with payoffs [N, A1, …, AN], played `repeats` times. Observations are the constant 1, [B, N, 1]."""

    def __init__(self, name: str, copies: int, groups: Groups, payoffs: np.ndarray, repeats: int) -> None:
        if repeats < 1:
            raise ConfigError(f"env.name={name!r}: repeats={repeats}; a game is played at least once")
        agents = {f"agent_{i}": (box(1), spaces.Discrete(n)) for i, n in enumerate(payoffs.shape[1:])}
        super().__init__(name, f"{release()} {name}", copies, agents, groups)
        self.payoffs, self.repeats = payoffs, repeats

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        pass

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = self.payoffs[(slice(None), *chosen)].T
        return reward, self.clock >= self.repeats, np.zeros(self.copies, bool)

    def look(self) -> np.ndarray:
        return np.ones((self.copies, len(self.spec.agents), 1), np.float32)


def game(copies: int, groups: Groups, payoff: Any, repeats: int = 25, common: bool = True) -> MatrixGame:
    """A repeated game with payoffs as nested lists: [A1, …, AN] for all N players alike, or [N, A1, …, AN] with common=False.

    Raises ConfigError for lists that aren't such an array of finite numbers.

    >>> env = game(1, "shared", [[3, 0], [0, 2]], repeats=1)
    >>> env.reset([0], [0])
    >>> env.step({"shared": np.array([[1, 1]])}).reward["shared"].tolist()
    [[2.0, 2.0]]
    """
    try:
        array = np.asarray(payoff, float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"env=matrix/game: payoff={payoff!r} is no array of numbers ({error})") from error
    if common:
        array = np.broadcast_to(array, (array.ndim, *array.shape))
    if array.size == 0 or array.ndim < 2 or array.shape[0] != array.ndim - 1 or not np.isfinite(array).all():
        expected = "[A1, …, AN], one axis for each player" if common else "[N, A1, …, AN], one matrix for each of N players"
        raise ConfigError(f"env=matrix/game: payoff={payoff!r} is no array {expected}, of finite numbers")
    return MatrixGame("matrix/game", copies, groups, array, repeats)


def climbing(copies: int, groups: Groups, repeats: int = 25) -> MatrixGame:
    """The climbing game: 11 a round at (0, 0), -30 for whoever goes there alone. 25 rounds: best 275, usual trap 175, safe 125."""
    payoffs = np.broadcast_to(np.array(CLIMBING, float), (2, 3, 3))
    return MatrixGame("matrix/climbing", copies, groups, payoffs, repeats)


def penalty(copies: int, groups: Groups, k: float = -100.0, repeats: int = 25) -> MatrixGame:
    """The penalty game [[k, 0, 10], [0, 2, 0], [10, 0, k]]: two optima, and a payoff k for missing each other. 25 rounds: best 250,
    safe 50. Source: Claus & Boutilier 1998. Raises ConfigError for k > 0, which would be no penalty."""
    if not k <= 0:
        raise ConfigError(f"env=matrix/penalty: k={k} is the payoff of missing each other and can't be positive; write k=-{k}")
    payoffs = np.broadcast_to(np.array([[k, 0, 10], [0, 2, 0], [10, 0, k]], float), (2, 3, 3))
    return MatrixGame("matrix/penalty", copies, groups, payoffs, repeats)


class TwoStep(VectorizedBatch):
    """Agent 0's first action leads to 2A, which pays 7 whatever is done, or to 2B, which pays [[0, 1], [1, 8]]. Best return 8, safe 7.

    Both agents and the state see one-hot where they are: 1, 2A or 2B; zeros when it is over. The second step terminates.
    Source: Rashid et al. 2018, section 5.
    """

    PAYOFF = np.array([[[0, 0], [0, 0]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]], float)  # [place, action of agent 0, of agent 1]
    SIGHT = np.vstack([np.eye(3), np.zeros(3)]).astype(np.float32)

    def __init__(self, copies: int, groups: Groups) -> None:
        agents = {f"agent_{i}": (box(3), spaces.Discrete(2)) for i in range(2)}
        name = "matrix/two_step"
        super().__init__(name, f"{release()} {name}", copies, agents, groups, state_from="environment", state_shape=(3,))
        self.place = np.zeros(copies, int)  # 0: the first step, 1: 2A, 2: 2B, 3: the end

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        self.place[copies] = 0

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = self.place == 0
        reward = self.PAYOFF[np.minimum(self.place, 2), chosen[0], chosen[1]]
        self.place = np.where(first, 1 + chosen[0], 3)
        return np.stack([reward, reward], 1), ~first, np.zeros(self.copies, bool)

    def look(self) -> np.ndarray:
        return np.stack([self.SIGHT[self.place]] * 2, 1)

    def state(self) -> np.ndarray:
        return self._everything()[:, 0].copy()


class Memory(VectorizedBatch):
    """Each agent sees a cue once, then nothing for `delay` steps, and has to name it when asked: a task for recurrent policies.

    Observations [B, N, cues + 1]: one-hot the agent's own cue in step 0, then zeros, and a 1 in the last place in the last step. Only the
    action of that step counts: 1 for an agent that names its cue, else 0. It ends with termination after delay + 2 steps. A policy
    without memory gets 1 / cues on average, one with memory 1. Cues are uniform and independent, drawn from the episode's seed.
    """

    def __init__(self, copies: int, groups: Groups, agents: int = 2, cues: int = 4, delay: int = 20) -> None:
        for option, value, least in (("agents", agents, 1), ("cues", cues, 2), ("delay", delay, 0)):
            if value < least:
                raise ConfigError(f"env=matrix/memory: {option}={value}; it must be at least {least}")
        spaces_of_all = {f"agent_{i}": (box(cues + 1), spaces.Discrete(cues)) for i in range(agents)}
        super().__init__("matrix/memory", f"{release()} matrix/memory", copies, spaces_of_all, groups)
        self.cues, self.delay = cues, delay
        self.cue = np.zeros((copies, agents), int)

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            self.cue[copy] = np.random.default_rng(seed).integers(0, self.cues, self.cue.shape[1])

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        asked = self.clock == self.delay + 2
        return asked[:, None] * (self.cue == chosen.T).astype(float), asked, np.zeros(self.copies, bool)

    def look(self) -> np.ndarray:
        seen = np.zeros((*self.cue.shape, self.cues + 1), np.float32)
        seen[..., :-1] = np.eye(self.cues)[self.cue] * (self.clock == 0)[:, None, None]
        seen[..., -1] = (self.clock == self.delay + 1)[:, None]
        return seen
