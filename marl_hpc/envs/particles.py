"""Two of the multi-agent particle environments (Lowe et al. 2017), all copies at once: ports of mpe2 1.1.1.

A port is the same task as the original: an episode of a seed starts where mpe2's `reset(seed=seed)` starts, and the same actions lead to
the same observations, rewards and endings, up to rounding (tested over 10,000 random steps each). Numbers inside are float64, as there.

Physics of a step, in this order: forces from actions and from contacts at the present positions; positions move on by the old velocity;
velocities are damped and take up the forces. The inner loop runs over copies: arrays are [2, N, B] (x and y, agents, copies) and
are turned into [B, N, …] last. May import types and config only, besides third-party packages.
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
PORTED = "port of mpe2 1.1.1"
# mpe2's world: seconds a step, share of velocity lost in a step, force of full throttle, mass 1
DT, DAMPING, THROTTLE = 0.1, 0.25, 5.0
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
SPREAD_RADIUS, COVERED = 0.15, 0.1  # of agents in simple_spread; an agent so near covers a landmark
# force of discrete actions: none, left, right, down, up
MOVES = THROTTLE * np.array([[0, -1, 1, 0, 0], [0, 0, 0, -1, 1]], float)
COLORS = np.array(
    [[0.65, 0.15, 0.15], [0.15, 0.65, 0.15], [0.15, 0.15, 0.65]], np.float32
)  # of simple_speaker_listener's landmarks


def throttle(chosen: np.ndarray, continuous: bool) -> np.ndarray:
    """Forces [2, …] of actions: integers […], or floats […, 5], clipped to [0, 1]: (unused, left, right, down, up)."""
    if not continuous:
        return MOVES[:, chosen]
    clipped = np.clip(chosen, 0.0, 1.0)
    # subtracted in the actions' own precision, as the original does
    pushes = np.stack([clipped[..., 2] - clipped[..., 1], clipped[..., 4] - clipped[..., 3]])
    return THROTTLE * pushes.astype(float)


def move(position: np.ndarray, velocity: np.ndarray, force: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of bodies of mass 1: (position, velocity) afterwards, all [2, …]."""
    return position + velocity * DT, velocity * (1 - DAMPING) + force * DT


class SimpleSpread(VectorizedBatch):
    """simple_spread_v3: N agents cover N landmarks and avoid each other.

    Observations: own velocity and position, landmarks and other agents relative to it (the nearest ones when their number is limited,
    padded with zeros), and zeros for the silent others' messages. Reward: minus the distances of landmarks to their nearest agents, and
    -1 for each contact of the agent, mixed by `local_ratio`: with the defaults a random policy gets about -27.1 an episode (mean over
    agents). The state is all observations. Takes mpe2's arguments except `curriculum` and what is about drawing; raises ConfigError for
    values that can't be.
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        N: int = 3,
        local_ratio: float = 0.5,
        max_cycles: int = 25,
        continuous_actions: bool = False,
        terminate_on_success: bool = False,
        num_agent_neighbors: int | None = None,
        num_landmark_neighbors: int | None = None,
    ) -> None:
        name = "mpe_fast/simple_spread"
        neighbors = {"num_agent_neighbors": num_agent_neighbors, "num_landmark_neighbors": num_landmark_neighbors}
        _at_least_one(name, N=N, max_cycles=max_cycles, **neighbors)
        if not 0 <= local_ratio <= 1:
            raise ConfigError(f"env={name}: local_ratio={local_ratio} is a share of the reward, between 0 and 1")
        self.n, self.local_ratio, self.max_cycles = N, local_ratio, max_cycles
        self.continuous, self.terminate_on_success = continuous_actions, terminate_on_success
        self.near_agents, self.near_landmarks = num_agent_neighbors, num_landmark_neighbors
        agent_slots = N - 1 if num_agent_neighbors is None else num_agent_neighbors
        self._others_start = 4 + 2 * (N if num_landmark_neighbors is None else num_landmark_neighbors)
        size = self._others_start + 4 * agent_slots  # two numbers of place and two of message each
        agents = {f"agent_{i}": (box(size), _action_space(5, continuous_actions)) for i in range(N)}
        super().__init__(name, f"{release()} {PORTED} simple_spread_v3", copies, agents, groups, state_from="environment")
        self.position, self.velocity, self.landmarks = (np.zeros((2, N, copies)) for _ in range(3))
        self.position[0] = np.arange(N)[:, None]  # never two bodies in one place, also before the first reset
        self._others = np.array([[j for j in range(N) if j != i] for i in range(N)], int).reshape(N, N - 1)
        self._canvas = np.zeros((N, size, copies), np.float32)
        self._measured = False

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            drawn = seeding.np_random(int(seed))[0].uniform(-1, 1, (2 * self.n, 2)).T
            self.position[:, :, copy], self.landmarks[:, :, copy] = drawn[:, : self.n], drawn[:, self.n :]
        self.velocity[:, :, copies] = 0
        self._measured = False

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._measure()
        force = throttle(chosen, self.continuous) + self._contacts()
        self.position, self.velocity = move(self.position, self.velocity, force)
        self._measured = False
        self._measure()
        shortest = self._landmark_distance.min(0)  # [N landmarks, B]
        contacts = (self._distance < 2 * SPREAD_RADIUS).sum(1)  # [N, B]
        reward = -shortest.sum(0) * (1 - self.local_ratio) - contacts * self.local_ratio
        cut = self.clock >= self.max_cycles
        done = (shortest < COVERED).all(0) & ~cut if self.terminate_on_success else np.zeros(self.copies, bool)
        return reward.T, done, cut

    def look(self) -> np.ndarray:
        self._measure()
        out = self._canvas
        out[:, 0:2], out[:, 2:4] = self.velocity.swapaxes(0, 1), self.position.swapaxes(0, 1)
        rows = np.arange(self.n)[:, None]
        others = self._apart[:, rows, self._others]  # [2, N, N - 1, B]
        far = self._distance[rows, self._others]
        for entities, distance, near, start in (
            (self._to_landmarks, self._landmark_distance, self.near_landmarks, 4),
            (others, far, self.near_agents, self._others_start),
        ):
            if near is not None:
                order = distance.argsort(1)[None, :, :near]
                entities = np.take_along_axis(entities, order, 2)
            end = start + 2 * entities.shape[2]
            out[:, start:end:2], out[:, start + 1 : end : 2] = entities
        return np.ascontiguousarray(out.transpose(2, 0, 1))

    def _measure(self) -> None:
        """Distances between agents [N, N, B], infinite to oneself, and to landmarks, with what they are of."""
        if self._measured:
            return
        self._apart = self.position[:, None] - self.position[:, :, None]  # from the first agent to the second
        self._distance = np.sqrt(self._apart[0] ** 2 + self._apart[1] ** 2)
        self._distance[np.arange(self.n), np.arange(self.n)] = np.inf
        self._to_landmarks = self.landmarks[:, None] - self.position[:, :, None]
        self._landmark_distance = np.sqrt(self._to_landmarks[0] ** 2 + self._to_landmarks[1] ** 2)
        self._measured = True

    def _contacts(self) -> np.ndarray:
        """Forces [2, N, B] of bodies pushing each other apart, by a softened depth of overlap."""
        touching = 2 * SPREAD_RADIUS
        # beyond 50 margins the force is below 1e-20
        first, second, copy = np.nonzero(self._distance < touching + 50 * CONTACT_MARGIN)
        distance = self._distance[first, second, copy]
        depth = np.logaddexp(0, -(distance - touching) / CONTACT_MARGIN) * CONTACT_MARGIN
        push = -CONTACT_FORCE * self._apart[:, first, second, copy] / distance * depth
        place = first * self.copies + copy
        sums = [np.bincount(place, along, self.n * self.copies) for along in push]
        return np.stack(sums).reshape(2, self.n, self.copies)


class SimpleSpeakerListener(VectorizedBatch):
    """simple_speaker_listener_v4: the speaker sees the color of the goal among three landmarks, and tells the listener, who moves.

    Observations: the speaker's is the goal's color (3); the listener's is its velocity, the landmarks relative to it and the speaker's
    message (11). Both get minus the squared distance of listener and goal. The state is both observations.
    Takes mpe2's arguments except what is about drawing; raises ConfigError for values that can't be.
    """

    def __init__(self, copies: int, groups: Groups, max_cycles: int = 25, continuous_actions: bool = False) -> None:
        name = "mpe_fast/simple_speaker_listener"
        _at_least_one(name, max_cycles=max_cycles)
        agents = {
            "speaker_0": (box(3), _action_space(3, continuous_actions)),
            "listener_0": (box(11), _action_space(5, continuous_actions)),
        }
        super().__init__(name, f"{release()} {PORTED} simple_speaker_listener_v4", copies, agents, groups, state_from="environment")
        self.max_cycles, self.continuous = max_cycles, continuous_actions
        self.position, self.velocity = np.zeros((2, copies)), np.zeros((2, copies))  # of the listener
        self.landmarks, self.message = np.zeros((2, 3, copies)), np.zeros((copies, 3))
        self.goal = np.zeros(copies, int)

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            random = seeding.np_random(int(seed))[0]
            self.goal[copy] = random.integers(3)
            drawn = random.uniform(-1, 1, (5, 2)).T  # the speaker's place is drawn first, and seen by nobody
            self.position[:, copy], self.landmarks[:, :, copy] = drawn[:, 1], drawn[:, 2:]
        self.velocity[:, copies], self.message[copies] = 0, 0

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        force = throttle(chosen[1], self.continuous)
        self.position, self.velocity = move(self.position, self.velocity, force)
        self.message = np.clip(chosen[0], 0.0, 1.0).astype(float) if self.continuous else np.eye(3)[chosen[0]]
        goal = self.landmarks[:, self.goal, np.arange(self.copies)]
        reward = -((self.position - goal) ** 2).sum(0)
        return np.stack([reward, reward], 1), np.zeros(self.copies, bool), self.clock >= self.max_cycles

    def look(self) -> list[np.ndarray]:
        heard = np.empty((self.copies, 11), np.float32)
        heard[:, :2] = self.velocity.T
        heard[:, 2:8] = (self.landmarks - self.position[:, None]).transpose(2, 1, 0).reshape(self.copies, 6)
        heard[:, 8:] = self.message
        return [COLORS[self.goal], heard]


def _action_space(size: int, continuous: bool) -> spaces.Space[Any]:
    return spaces.Box(0.0, 1.0, (size,)) if continuous else spaces.Discrete(size)


def _at_least_one(name: str, **options: int | None) -> None:
    for option, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"env={name}: {option}={value}; it must be at least 1")
