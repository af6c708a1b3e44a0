"""Level-based foraging (Albrecht & Ramamoorthy 2013; Papoudakis et al. 2021), all copies at once: a port of lbforaging 2.0.0.

Players walk a grid and load food together; food is loaded when the levels of the loaders beside it add up to its own. The port is the
same task as the original: an episode of a seed starts where a new ForagingEnv's `reset(seed=seed)` starts (one that has played before
also keeps its food off the places where players stood last, which no seed says), and the same actions lead to the same observations,
rewards and endings. That includes its quirk that a player may step onto a cell whose player was going to leave and couldn't.

Arrays are [P, B], [F, B] or [P, F, B] (players, food, copies); they are turned into [B, P, …] last. May import types and config only,
besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from marl_hpc.config import ConfigError
from marl_hpc.envs.vectorized import VectorizedBatch, box, release

Groups = str | Mapping[str, str]
Level = int | Sequence[int]
LOAD = 5
# none, north, south, west, east, load
DOWN, RIGHT = np.array([0, -1, 1, 0, 0, 0]), np.array([0, 0, 0, -1, 1, 0])
ATTEMPTS = 1000  # at finding a free place; food that finds none is left out


class Foraging(VectorizedBatch):
    """ForagingEnv with its arguments, defaults those of Foraging-8x8-2p-2f-coop-v3; grid observations are left out.

    size: of the square grid (the original fails on others). Levels are one number, or one for each player or food. max_food_level: None
    for the sum of the three lowest players' levels. Observations [B, P, 3 F + 3 P]: row, column and level of the food in sight, then of
    oneself, then of the others in sight; (-1, -1, 0) fills up; rows and columns count from the corner of what is in sight (without
    `observe_agent_levels` players have no level). Actions: none, north, south, west, east, load; what is impossible counts as none.

    Rewards: a loader gets its level's share of the food's share of all food's levels (of the level itself without `normalize_reward`),
    so that an episode pays at most 1 over all players: random play gets 0.005 in the default task, mean over players. Who loads in vain
    pays `penalty`. Episodes terminate when no food is left and, as in the original, after max_episode_steps;
    truncate_at_limit=True makes the latter a truncation. Raises ConfigError for values that can't be.
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        players: int = 2,
        size: int = 8,
        max_num_food: int = 2,
        sight: int | None = None,
        force_coop: bool = True,
        max_episode_steps: int = 50,
        min_player_level: Level = 1,
        max_player_level: Level = 2,
        min_food_level: Level = 1,
        max_food_level: Level | None = None,
        normalize_reward: bool = True,
        observe_agent_levels: bool = True,
        penalty: float = 0.0,
        truncate_at_limit: bool = False,
    ) -> None:
        self.size, self.sight = size, size if sight is None else sight
        self.players, self.food, self.force_coop = players, max_num_food, force_coop
        self.normalize, self.penalty = normalize_reward, penalty
        self.limit, self.truncate_at_limit = max_episode_steps, truncate_at_limit
        for option, value, least in (
            ("players", players, 1), ("size", size, 3), ("max_num_food", max_num_food, 1),
            ("sight", self.sight, 1), ("max_episode_steps", max_episode_steps, 1),
        ):  # fmt: skip
            if value < least:
                raise ConfigError(f"env=lbf_fast: {option}={value}; it must be at least {least}")
        self.player_levels = _limits("player_level", min_player_level, max_player_level, players)
        ceiling = min_food_level if max_food_level is None else max_food_level
        low, high = _limits("food_level", min_food_level, ceiling, max_num_food)
        self.food_levels = low, None if max_food_level is None else high

        width = 3 if observe_agent_levels else 2
        observed = 3 * max_num_food + width * players
        agents = {f"agent_{i}": (box(observed), spaces.Discrete(6)) for i in range(players)}
        whole = self.sight >= size
        name = f"{'' if whole else f'{self.sight}s-'}{size}x{size}-{players}p-{max_num_food}f{'-coop' * force_coop}"
        usual = (
            min_player_level,
            max_player_level,
            min_food_level,
            max_food_level,
            normalize_reward,
            observe_agent_levels,
            penalty,
        )
        registered = (*usual, max_episode_steps) == (1, 2, 1, None, True, True, 0, 50) and (whole or self.sight == 2)
        registered &= 5 <= size < 20 and 2 <= players < 10 and max_num_food < 5
        version = f"{release()} port of lbforaging 2.0.0 {f'Foraging-{name}-v3' if registered else 'ForagingEnv'}"
        super().__init__(f"lbf_fast/{name}", version, copies, agents, groups)

        self.row, self.column, self.level = (np.zeros((players, copies), int) for _ in range(3))
        self.food_row, self.food_column, self.food_level = (np.zeros((max_num_food, copies), int) for _ in range(3))
        self.spawned = np.ones(copies)  # sum of all food's levels at the start
        self._order = np.array([[i, *(j for j in range(players) if j != i)] for i in range(players)])  # oneself first
        self._blank = np.zeros((players, observed, 1), np.float32)
        self._blank[:, : 3 * max_num_food].reshape(players, -1, 3)[..., :2] = -1
        self._blank[:, 3 * max_num_food :].reshape(players, -1, width)[..., :2] = -1
        self._width = width

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            # the original's draws in the original's order
            random = seeding.np_random(int(seed))[0]
            players = self._place_players(random)
            food = self._place_food(random, players)
            self.row[:, copy], self.column[:, copy], self.level[:, copy] = zip(*players, strict=True)
            # in the order in which they are observed; level 0 means that it isn't there
            food = sorted(food) + [(0, 0, 0)] * (self.food - len(food))
            self.food_row[:, copy], self.food_column[:, copy], self.food_level[:, copy] = zip(*food, strict=True)
            self.spawned[copy] = max(sum(level for _, _, level in food), 1)

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        there = self.food_level > 0
        down, right = self.food_row - self.row[:, None], self.food_column - self.column[:, None]  # [P, F, B]
        # food is never so near to other food that a player could stand beside both
        beside = (np.abs(down) + np.abs(right) == 1) & there
        step_down, step_right = DOWN[chosen], RIGHT[chosen]
        blocked = ((down == step_down[:, None]) & (right == step_right[:, None]) & there).any(1)
        row, column = self.row + step_down, self.column + step_right
        blocked |= (row < 0) | (row >= self.size) | (column < 0) | (column >= self.size)
        row, column = np.where(blocked, self.row, row), np.where(blocked, self.column, column)
        cell = row * self.size + column
        alone = (cell[:, None] == cell).sum(1) == 1  # who wants the same cell, also to stay there, stays
        self.row, self.column = np.where(alone, row, self.row), np.where(alone, column, self.column)

        loading = beside & (chosen == LOAD)[:, None]
        strength = (loading * self.level[:, None]).sum(0)  # [F, B]
        loaded = loading.any(0) & (strength >= self.food_level)
        whole = strength * self.spawned if self.normalize else np.ones_like(strength)
        worth = np.where(loaded, self.food_level / np.where(loaded, whole, 1), 0.0)  # for each level of a loader
        reward = self.level * (loading * worth).sum(1) - self.penalty * (loading & ~loaded).sum(1)
        self.food_level = np.where(loaded, 0, self.food_level)

        empty = self.food_level.sum(0) == 0
        late = self.clock >= self.limit
        return reward.T, empty if self.truncate_at_limit else empty | late, late

    def look(self) -> np.ndarray:
        out = np.repeat(self._blank, self.copies, 2)
        corner_row, corner_column = np.maximum(self.row - self.sight, 0), np.maximum(self.column - self.sight, 0)
        down, right = self.food_row - self.row[:, None], self.food_column - self.column[:, None]
        seen = (np.abs(down) <= self.sight) & (np.abs(right) <= self.sight) & (self.food_level > 0)
        levels = np.broadcast_to(self.food_level, seen.shape)
        _fill(out, 0, seen, [self.food_row - corner_row[:, None], self.food_column - corner_column[:, None], levels])
        row = self.row[self._order] - corner_row[:, None]  # [P, P, B]
        column = self.column[self._order] - corner_column[:, None]
        # at an edge the original sees players, though not food, up to twice as far
        seen = (np.minimum(row, column) >= 0) & (np.maximum(row, column) <= 2 * self.sight)
        _fill(out, 3 * self.food, seen, [row, column, self.level[self._order]][: self._width])
        return np.ascontiguousarray(out.transpose(2, 0, 1))

    def _place_players(self, random: np.random.Generator) -> list[tuple[int, int, int]]:
        """(row, column, level) of each player."""
        order = random.permutation(self.players)
        placed: list[tuple[int, int, int]] = []
        for low, high in zip(self.player_levels[0][order].tolist(), self.player_levels[1][order].tolist(), strict=True):
            for _ in range(ATTEMPTS):
                row, column = int(random.integers(0, self.size)), int(random.integers(0, self.size))
                if all((row, column) != player[:2] for player in placed):
                    placed.append((row, column, int(random.integers(low, high + 1))))
                    break
            else:
                raise ValueError(f"no place for {self.players} players was found on {self.size} x {self.size} cells")
        return placed

    def _place_food(self, random: np.random.Generator, players: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """(row, column, level) of the food: not at the edge, and not so near to other food that a player could reach both."""
        low, high = self.food_levels
        if high is None:
            high = np.full(self.food, sum(sorted(level for _, _, level in players)[:3]))
        low = high if self.force_coop else low
        order = random.permutation(self.food)
        levels = list(zip(low[order].tolist(), high[order].tolist(), strict=True))
        placed: list[tuple[int, int, int]] = []
        for _ in range(ATTEMPTS):
            if len(placed) == self.food:
                break
            row, column = int(random.integers(1, self.size - 1)), int(random.integers(1, self.size - 1))
            apart = [(abs(row - r), abs(column - c)) for r, c, level in placed if level > 0]
            near = any(max(d) <= 1 or (min(d) == 0 and max(d) <= 2) for d in apart)
            if near or any((row, column) == player[:2] for player in players):
                continue
            least, most = levels[len(placed)]
            placed.append((row, column, least if least == most else int(random.integers(least, most + 1))))
        return placed


def _limits(name: str, low: Level, high: Level, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest levels [n]. Raises ConfigError when there aren't as many, or one is above the other."""
    both = []
    for side, value in (("min", low), ("max", high)):
        levels = [value] * n if isinstance(value, int) else list(value)
        if len(levels) != n or min(levels) < 0:
            raise ConfigError(f"env=lbf_fast: {side}_{name}={value}; give one number of at least 0, or {n} of them")
        both.append(np.array(levels, int))
    if (both[0] > both[1]).any():
        raise ConfigError(f"env=lbf_fast: min_{name}={low} is above max_{name}={high}")
    return both[0], both[1]


def _fill(out: np.ndarray, start: int, seen: np.ndarray, parts: list[np.ndarray]) -> None:
    """Write what is seen [P, K, B], one entry of `parts` after the other and without gaps, into columns of out [P, D, B]."""
    width = len(parts)
    if seen.all():
        for offset, part in enumerate(parts):
            out[:, start + offset : start + width * seen.shape[1] : width] = part
        return
    i, k, b = np.nonzero(seen)
    place = start + width * (seen.cumsum(1)[i, k, b] - 1)
    for offset, part in enumerate(parts):
        out[i, place + offset, b] = part[i, k, b]
