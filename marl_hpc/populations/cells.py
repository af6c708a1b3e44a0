"""Cells of a payoff table, and the episodes that estimate them: all that who simulates them has to know.

A *cell* says which policy each player plays. Players who share a population are exchangeable: their cells are kept with sorted numbers,
and episodes rotate over all ways to seat those policies. *Positions* are places in that sorted cell. Pure NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marl_hpc import keyed_random

Cell = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How cells are estimated from episodes."""

    # of the mean's interval, in units of return: a cell is done when every player's is at most this wide; math.inf: when it has
    # min_episodes, until `PayoffTable.refine` asks for more
    half_width: float
    confidence: float = 0.95  # of that interval; by the normal distribution
    min_episodes: int = 100
    max_episodes: int = 10_000  # done at the latest then, whatever the interval
    batch: int = 100  # episodes of one lease; all numbers of episodes are whole batches
    lease_s: float = 60.0  # after so long without a word of who has it a batch is leased again

    def __post_init__(self) -> None:
        if not (self.half_width > 0 and 0 < self.confidence < 1 and self.lease_s > 0):
            raise ValueError(
                f"half_width={self.half_width}, confidence={self.confidence}, lease_s={self.lease_s}: expected half_width and "
                "lease_s above 0, and confidence between 0 and 1"
            )
        if not (self.batch >= 1 and 2 <= self.min_episodes <= self.max_episodes):
            raise ValueError(
                f"batch={self.batch}, min_episodes={self.min_episodes}, max_episodes={self.max_episodes}: expected a batch of 1 or "
                "more, and 2 ≤ min_episodes ≤ max_episodes, as a variance takes two"
            )


class Lease(NamedTuple):
    """Episodes that one worker simulates: `profiles` says who plays them, `episode_seeds` how they are seeded."""

    cell: Cell
    batch: int
    episodes: int
    deadline_s: float

    @property
    def numbers(self) -> range:
        """The numbers of its episodes in the cell."""
        return range(self.batch * self.episodes, (self.batch + 1) * self.episodes)


def seatings(populations: Sequence[int]) -> list[Cell]:
    """All ways to seat who shares a population: for each position of a cell, the player that it is.

    >>> seatings((0, 0)), seatings((0, 1))
    ([(0, 1), (1, 0)], [(0, 1)])
    """
    groups = sharing(populations)
    found = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        seat = dict(zip(itertools.chain(*groups), itertools.chain(*orders), strict=True))
        found.append(tuple(seat[position] for position in range(len(populations))))
    return found


def canonical(populations: Sequence[int], profile: Sequence[int]) -> Cell:
    """The cell of a profile: numbers sorted among players who share a population.

    >>> canonical((0, 0, 1), (5, 2, 0))
    (2, 5, 0)
    """
    cell = list(profile)
    for players in sharing(populations):
        for player, number in zip(players, sorted(profile[i] for i in players), strict=True):
            cell[player] = number
    return tuple(cell)


def profiles(populations: Sequence[int], cell: Sequence[int], episodes: Iterable[int]) -> np.ndarray:
    """[E, players]: the number of the policy that each player plays in these episodes of a cell; seats rotate from one to the next.

    >>> profiles((0, 0), (3, 7), range(3)).tolist()
    [[3, 7], [7, 3], [3, 7]]
    """
    every = np.empty((len(seatings(populations)), len(cell)), np.int64)
    for row, seats in zip(every, seatings(populations), strict=True):
        row[list(seats)] = cell
    return every[np.array(list(episodes), int) % len(every)]


def episode_seeds(seed: int, cell: Sequence[int], episodes: Iterable[int]) -> list[int]:
    """The seeds of these episodes of a cell, 31 bits each: whoever simulates them draws the same."""
    return [keyed_random.integer(seed, keyed_random.PAYOFF_EPISODE, *cell, episode) for episode in episodes]


def sharing(populations: Sequence[int]) -> list[list[int]]:
    """The players of each population."""
    return [[i for i, own in enumerate(populations) if own == population] for population in sorted(set(populations))]
