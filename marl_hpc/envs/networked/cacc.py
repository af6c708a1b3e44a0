"""Cooperative adaptive cruise control of a platoon (Chu, Chinchali & Katti 2020), all copies and vehicles at once.

The same task as the authors' (github.com/cts198859/deeprl_network, envs/cacc_env.py): an episode of a seed starts where theirs starts,
and the same actions lead to the same observations, rewards and endings, up to rounding. Numbers inside are float64, arrays [B, N].

Units: meters, seconds. May import envs, types and config only, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.envs.networked.batch import Groups, NetworkedBatch, at_least

DT = 0.1  # seconds of a step
HEADWAY_STOP, HEADWAY_GO = 5.0, 35.0  # between these the wanted speed rises from 0 to SPEED_MAX
HEADWAY_TARGET, SPEED_TARGET, SPEED_MAX, ACCELERATION_MAX = 20.0, 15.0, 30.0, 2.5
HEADWAY_CRASH, CRASH_REWARD = 1.0, -1000.0
HEADWAY_NEAR = 10.0  # nearer than this costs, in training
SPEED_COST, ACCELERATION_COST = 1.0, 0.1
SPEED_SCALE, SPEED_CLIP = 5.0, 2.0  # of differences of speed in observations
SLOWDOWN_STEPS = 300
# gains of the car-following model by action: for the wanted speed, for the speed of who is ahead
ALPHA, BETA = np.array([0.0, 0.5, 0.0, 0.5]), np.array([0.0, 0.0, 0.5, 0.5])


class CACC(NetworkedBatch):
    """N vehicles in a line behind a leader; each chooses the gains (α, β) of its car-following controller, out of four.

    Actions: 0 (0, 0), 1 (0.5, 0), 2 (0, 0.5), 3 (0.5, 0.5). Acceleration is α (V(h) - v) + β (v_ahead - v), within ±2.5 m/s², speed
    within 0 … 30 m/s; V is the optimal velocity model's wanted speed at headway h. Vehicle 0 follows the leader, vehicle i vehicle
    i - 1; neighbors are those next to each other.

    scenario: "catchup": all drive 15 m/s at 20 m headway, but vehicle 0 is 30 to 50 m behind the leader; "slowdown": all drive 22.5 to
    37.5 m/s, and the leader slows down to 15 m/s within 30 s. The drawn number is the legacy generator's first of the episode's seed.

    Observations [B, N, 5], each vehicle's own: speed (v - 15) / 15; speed of who is ahead minus own, and wanted minus own, by 5 m/s and
    within ±2; headway expected after this step (h - 20) / 20; acceleration by 2.5 m/s².

    Private rewards -(h - 20)² - (v - 15)² - 0.1 u² - near (10 - h)² where h < 10. `near` is 5 in the authors' training; their evaluation
    has 0. When any headway falls below 1 m, everybody gets -1000 in that step and in all that follow, and nothing moves any more; the
    episode terminates with the next step whose number is a multiple of `batch_steps`. Else it is cut off after `episode_steps`, which
    the authors' code doesn't tell from a termination.

    Returns in the literature are means over steps of the sum over vehicles: this package's (sum over steps, mean over agents) times
    N / episode_steps, by default 8 / 600 (after a crash, N by the episode's length). On that scale action 3 at every step, which never
    crashes, has an expectation of -81.4 in catchup and -491.3 in slowdown (standard deviation between episodes 44 and 311: a few
    episodes say little).
    Raises ConfigError for values that can't be.
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        vehicles: int = 8,
        scenario: str = "catchup",
        episode_steps: int = 600,
        batch_steps: int = 60,
        near: float = 5.0,
    ) -> None:
        name = "networked/cacc"
        at_least(name, vehicles=(vehicles, 1), episode_steps=(episode_steps, 1), batch_steps=(batch_steps, 1))
        if scenario not in ("catchup", "slowdown"):
            raise ConfigError(f"env={name}: scenario={scenario!r} is not a choice; catchup or slowdown")
        if not 0 <= near < np.inf:
            raise ConfigError(f"env={name}: near={near} is the weight of a penalty; 0 or more")
        line = np.stack([np.arange(vehicles - 1), np.arange(1, vehicles)], 1)
        super().__init__(name, copies, groups, vehicles, 5, len(ALPHA), line)
        self.scenario, self.episode_steps, self.batch_steps, self.near = scenario, episode_steps, batch_steps, near
        shape = copies, vehicles
        self.headway, self.speed, self.acceleration = np.full(shape, HEADWAY_TARGET), np.full(shape, SPEED_TARGET), np.zeros(shape)
        self.wanted, self.ahead = wanted_speed(self.headway), self.speed.copy()  # ahead: the speed of who is ahead
        self.crashed = np.zeros(copies, bool)
        self._fastest = np.full(copies, SPEED_TARGET)  # the leader's speed at the start

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        drawn = np.array([np.random.RandomState(seed).rand() for seed in seeds]) + 1.5
        self.headway[copies] = HEADWAY_TARGET
        self._fastest[copies] = SPEED_TARGET
        if self.scenario == "catchup":
            self.headway[copies, 0] = HEADWAY_TARGET * drawn
        else:
            self._fastest[copies] = SPEED_TARGET * drawn
        self.speed[copies] = self.ahead[copies] = self._fastest[copies, None]
        self.wanted[copies] = wanted_speed(self.headway[copies])
        self.acceleration[copies], self.crashed[copies] = 0, False

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        action = chosen.T
        aim = ALPHA[action] * (self.wanted - self.speed) + BETA[action] * (self.ahead - self.speed)
        push = np.clip(aim, -ACCELERATION_MAX, ACCELERATION_MAX)
        speed = np.clip(self.speed + push * DT, 0, SPEED_MAX)
        acceleration = (speed - self.speed) / DT
        ahead = np.empty_like(speed)
        ahead[:, 0], ahead[:, 1:] = self._leader(), speed[:, :-1]
        headway = self.headway + 0.5 * DT * (self.ahead + ahead - self.speed - speed)
        if self.crashed.any():  # nothing moves there any more, but the leader's speed goes on
            still = self.crashed[:, None]
            headway, acceleration = np.where(still, self.headway, headway), np.where(still, self.acceleration, acceleration)
            speed = np.where(still, self.speed, speed)
            ahead[:, 1:] = speed[:, :-1]
        self.headway, self.speed, self.acceleration, self.ahead = headway, speed, acceleration, ahead
        self.wanted = wanted_speed(headway)
        self.crashed = self.crashed | (headway.min(1) < HEADWAY_CRASH)

        reward = -((headway - HEADWAY_TARGET) ** 2) - SPEED_COST * (speed - SPEED_TARGET) ** 2 - ACCELERATION_COST * acceleration**2
        if self.near:
            reward -= self.near * np.minimum(headway - HEADWAY_NEAR, 0) ** 2
        reward[self.crashed] = CRASH_REWARD
        late = self.clock >= self.episode_steps
        return reward, self.crashed & ((self.clock % self.batch_steps == 0) | late), late

    def look(self) -> np.ndarray:
        seen = np.empty((*self.speed.shape, 5), np.float32)
        seen[..., 0] = (self.speed - SPEED_TARGET) / SPEED_TARGET
        closing = self.ahead - self.speed
        seen[..., 1] = np.clip(closing / SPEED_SCALE, -SPEED_CLIP, SPEED_CLIP)
        seen[..., 2] = np.clip((self.wanted - self.speed) / SPEED_SCALE, -SPEED_CLIP, SPEED_CLIP)
        seen[..., 3] = (self.headway + closing * DT - HEADWAY_TARGET) / HEADWAY_TARGET
        seen[..., 4] = self.acceleration / ACCELERATION_MAX
        return seen

    def _leader(self) -> np.ndarray:
        """The leader's speed [B] at the end of this step: linearly down to 15 m/s within SLOWDOWN_STEPS states."""
        share = np.minimum(self.clock / (SLOWDOWN_STEPS - 1), 1)
        return self._fastest + (SPEED_TARGET - self._fastest) * share


def wanted_speed(headway: np.ndarray) -> np.ndarray:
    """The optimal velocity model's speed at a headway, m/s (Bando et al. 1995, in the form of Chu et al. 2020).

    >>> wanted_speed(np.array([0.0, 5.0, 20.0, 35.0, 100.0])).round(6).tolist()
    [0.0, 0.0, 15.0, 30.0, 30.0]
    """
    share = np.clip((headway - HEADWAY_STOP) / (HEADWAY_GO - HEADWAY_STOP), 0, 1)
    return SPEED_MAX / 2 * (1 - np.cos(np.pi * share))
