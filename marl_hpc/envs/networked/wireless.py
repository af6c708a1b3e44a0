"""Wireless access on a grid (Qu, Wierman & Li 2020; Qu, Lin, Wierman & Li 2020), all copies and users at once.

Users share access points with those around them, and each delivers its own packets before their deadlines: who does what matters only
to those near by, which is what algorithms with κ-hop neighborhoods use. Numbers are drawn by (seed, purpose, step, user or access
point), so copies draw together. May import envs, types and config only, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.envs.networked.batch import Groups, NetworkedBatch, at_least
from marl_hpc.envs.networked.hashing import uniform

# what a number is drawn for: by episode, and by network
ARRIVAL, SUCCESS, ARRIVAL_PROBABILITY, SUCCESS_PROBABILITY = range(4)
NAME = "networked/wireless"
NOWHERE = -1
Probability = float | Sequence[float] | None


class Wireless(NetworkedBatch):
    """Users in the cells of a grid, `users_per_cell` in each, send packets to access points on the corners between four cells.

    A user has as many access points as corners of its cell lie inside the grid: four, on the border two, in a corner of the grid one.
    User i is the (i mod users_per_cell)th in cell i // users_per_cell, cells counted row by row; access points are counted so, too.
    Neighbors are users that share an access point.

    Actions: 0 sends nothing; 1 to 4 send the packet with the earliest deadline, if there is one, to the access point on the upper left,
    upper right, lower left or lower right corner of the cell; those that aren't there are masked. If nobody else sends to access point
    k at the same time the packet is delivered with probability `success`[k], else nothing is. Private reward: 1 for a delivered packet.
    Then all deadlines come a step nearer, a packet whose last step this was is lost, and a new one with `deadline` steps arrives at
    user i with probability `arrival`[i], as at the start.

    Observations [B, N, deadline]: 1 in place m when the user has a packet that may be sent in m + 1 more steps, this one included.
    A continuing task: `episode_steps` cut it off, nothing terminates it. Reported results are mean rewards per user and step, this
    package's return divided by episode_steps (or discounted sums).

    `arrival` and `success`: one probability for all, one for each user or access point, or None: uniform in [0, 1], of `network_seed`.
    Raises ConfigError for values that can't be.
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        height: int = 3,
        width: int = 4,
        users_per_cell: int = 1,
        deadline: int = 2,
        arrival: Probability = None,
        success: Probability = None,
        network_seed: int = 0,
        episode_steps: int = 200,
    ) -> None:
        at_least(NAME, height=(height, 2), width=(width, 2), users_per_cell=(users_per_cell, 1), deadline=(deadline, 1))
        at_least(NAME, network_seed=(network_seed, 0), episode_steps=(episode_steps, 1))
        self.access = access_points(height, width, users_per_cell)
        n, points = len(self.access), (height - 1) * (width - 1)
        super().__init__(NAME, copies, groups, n, deadline, 5, shared(self.access, points), legal=self.access != NOWHERE)
        self.arrival = _probabilities("arrival", arrival, n, network_seed, ARRIVAL_PROBABILITY)
        self.success = _probabilities("success", success, points, network_seed, SUCCESS_PROBABILITY)
        self.episode_steps = episode_steps
        self.queue = np.zeros((deadline, copies, n), bool)  # by steps left, this one not included
        self.seeds = np.zeros((copies, 1), np.uint64)

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        self.seeds[copies, 0] = np.array(seeds, np.uint64)
        self.queue[:, copies] = False
        self.queue[-1, copies] = self._arrivals(self.seeds[copies], np.zeros((len(copies), 1), int))

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points = len(self.success)
        copy, user = np.nonzero((chosen.T > 0) & self.queue.any(0))
        point = self.access[user, chosen[user, copy]]
        line = copy * points + point
        alone = np.bincount(line, minlength=self.copies * points)[line] == 1
        copy, user, point = copy[alone], user[alone], point[alone]
        drawn = uniform(self.seeds[copy, 0], SUCCESS, self.clock[copy], point)
        arrived = drawn < self.success[point]
        delivered = np.zeros((self.copies, len(self.access)), bool)
        delivered[copy[arrived], user[arrived]] = True
        waiting = delivered.copy()
        for packet in self.queue:  # the earliest one leaves
            left = packet & waiting
            packet ^= left
            waiting ^= left
        self.queue[:-1] = self.queue[1:]
        self.queue[-1] = self._arrivals(self.seeds, self.clock[:, None])
        return delivered.astype(float), np.zeros(self.copies, bool), self.clock >= self.episode_steps

    def look(self) -> np.ndarray:
        seen = np.empty((*self.queue.shape[1:], len(self.queue)), np.float32)
        for left, packet in enumerate(self.queue):
            seen[..., left] = packet
        return seen

    def _arrivals(self, seeds: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Who gets a packet, bool [n, N], by seeds and steps [n, 1]."""
        return uniform(seeds, ARRIVAL, clock, np.arange(len(self.arrival))) < self.arrival


def access_points(height: int, width: int, users_per_cell: int) -> np.ndarray:
    """The access point behind each action, [N, 5]; NOWHERE for those that aren't there. Action 0 has one in name only, 0.

    >>> access_points(2, 3, 1).tolist()[:2]
    [[0, -1, -1, -1, 0], [0, -1, -1, 0, 1]]
    """
    row, column = (part.ravel() for part in np.indices((height, width)))
    corners = [np.zeros(height * width, int)]
    for down, right in ((-1, -1), (-1, 0), (0, -1), (0, 0)):
        r, c = row + down, column + right
        inside = (r >= 0) & (r < height - 1) & (c >= 0) & (c < width - 1)
        corners.append(np.where(inside, r * (width - 1) + c, NOWHERE))
    return np.repeat(np.stack(corners, 1), users_per_cell, 0)


def shared(access: np.ndarray, points: int) -> np.ndarray:
    """Pairs of users [·, 2] that share an access point, once for each that they share. Every point has equally many users."""
    user, place = np.nonzero(access[:, 1:] != NOWHERE)
    order = np.argsort(access[user, place + 1], kind="stable")
    members = user[order].reshape(points, -1)
    first, second = np.triu_indices(members.shape[1], 1)
    return np.stack([members[:, first].ravel(), members[:, second].ravel()], 1)


def _probabilities(option: str, value: Probability, n: int, seed: int, purpose: int) -> np.ndarray:
    if value is None:
        return uniform(seed, purpose, np.arange(n))
    try:
        given = np.asarray(value, float)
    except (TypeError, ValueError):
        given = np.full(0, np.nan)
    if given.shape not in ((), (n,)) or not ((given >= 0) & (given <= 1)).all():
        raise ConfigError(f"env={NAME}: {option}={value!r}; give one probability for all, one for each of {n}, or null")
    return np.broadcast_to(given, n)
