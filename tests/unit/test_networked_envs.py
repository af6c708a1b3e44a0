"""Environments on a graph: each one beside a plain simulation of its rules, one agent after the other."""

import math

import numpy as np
import pytest
from scipy import stats

from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.envs import make
from marl_hpc.testing import env_contract
from marl_hpc.types import EnvSpec


def mean_by_step(env, action, seeds):
    """Episodes of one action for all: per episode, the mean over steps of the sum over agents; and the last step."""
    env.reset(list(range(env.copies)), list(seeds))
    total, steps, over = np.zeros(env.copies), np.zeros(env.copies), np.zeros(env.copies, bool)
    actions = {"shared": np.full((env.copies, len(env.spec.agents)), action)}
    while not over.all():
        steps += ~over
        step = env.step(actions)
        total += step.reward["shared"].sum(1)
        over = step.over
    return total / steps, step


class Platoon:
    """One platoon in plain Python, by section 5 of Chu, Chinchali & Katti 2020 and their published settings."""

    GAINS = ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5))

    def __init__(self, n, scenario, seed, near, batch, limit):
        x = 1.5 + np.random.RandomState(seed).rand()
        self.n, self.near, self.batch, self.limit, self.t, self.crashed = n, near, batch, limit, 0, False
        fast = 15 * x if scenario == "slowdown" else 15
        self.h, self.v, self.u = [20.0] * n, [fast] * n, [0.0] * n
        if scenario == "catchup":
            self.h[0] = 20 * x
        slowing = [float(v) for v in np.linspace(fast, 15, 300)]
        self.leader = slowing + [15.0] * limit

    @staticmethod
    def wanted(h):
        if h <= 5:
            return 0.0
        return 30.0 if h >= 35 else 15 * (1 - math.cos(math.pi * (h - 5) / 30))

    def ahead(self, i, speeds, t):
        return speeds[i - 1] if i else self.leader[t]

    def step(self, actions):
        """(rewards, terminated, truncated)"""
        if not self.crashed:
            speeds, self.u = [], []
            for i, (alpha, beta) in enumerate(self.GAINS[a] for a in actions):
                u = alpha * (self.wanted(self.h[i]) - self.v[i]) + beta * (self.ahead(i, self.v, self.t) - self.v[i])
                speeds.append(min(max(self.v[i] + min(max(u, -2.5), 2.5) * 0.1, 0), 30))
                self.u.append((speeds[i] - self.v[i]) / 0.1)
            for i in range(self.n):
                self.h[i] += 0.05 * (self.ahead(i, self.v, self.t) + self.ahead(i, speeds, self.t + 1) - self.v[i] - speeds[i])
            self.v = speeds
            self.crashed = min(self.h) < 1
        self.t += 1
        rewards = []
        for h, v, u in zip(self.h, self.v, self.u, strict=True):
            close = self.near * min(h - 10, 0) ** 2
            rewards.append(-1000 if self.crashed else -((h - 20) ** 2) - (v - 15) ** 2 - 0.1 * u**2 - close)
        late = self.t == self.limit
        return rewards, self.crashed and (self.t % self.batch == 0 or late), late and not self.crashed

    def see(self):
        seen = []
        for i in range(self.n):
            v, h = self.v[i], self.h[i]
            closing = self.ahead(i, self.v, self.t) - v
            ahead, wanted = (min(max(d / 5, -2), 2) for d in (closing, self.wanted(h) - v))
            seen.append([(v - 15) / 15, ahead, wanted, (h + closing * 0.1 - 20) / 20, self.u[i] / 2.5])
        return seen


@pytest.mark.parametrize("scenario", ["catchup", "slowdown"])
@pytest.mark.parametrize(
    ("vehicles", "steps", "near", "habit", "crash"),
    [
        (8, 600, 5, 3, {"catchup": 1, "slowdown": 1}),
        (3, 250, 0, 2, {"catchup": 0, "slowdown": 1}),
        (4, 250, 5, 1, {"catchup": 2, "slowdown": 0}),
        (1, 90, 5, None, {"catchup": 0, "slowdown": 0}),
        (5, 130, 2, 0, {"catchup": 0, "slowdown": 3}),
    ],
)
def test_platoon_moves_and_pays_as_in_a_plain_simulation(scenario, vehicles, steps, near, habit, crash):
    """`habit` is an action that half of the vehicles keep to, the others act at random; `crash` is how many of three episodes do."""
    env = make("networked/cacc", copies=3, vehicles=vehicles, scenario=scenario, near=near, episode_steps=steps)
    seeds, random = [12, 10_000, 7], np.random.default_rng(vehicles)
    env.reset([0, 1, 2], seeds)
    platoons = [Platoon(vehicles, scenario, seed, near, 60, steps) for seed in seeds]
    over, crashes = np.zeros(3, bool), 0
    for _ in range(steps):
        actions = random.integers(0, 4, (3, vehicles))
        if habit is not None:
            actions[:, ::2] = habit
        step = env.step({"shared": actions})
        for b, platoon in enumerate(platoons):
            if over[b]:
                continue
            rewards, terminated, truncated = platoon.step(actions[b].tolist())
            np.testing.assert_allclose(step.reward["shared"][b], rewards, rtol=1e-9, atol=1e-6)
            np.testing.assert_allclose(step.seen.observation["shared"][b], platoon.see(), rtol=0, atol=2e-6)  # float32
            np.testing.assert_allclose(env.headway[b], platoon.h, rtol=0, atol=1e-9)
            assert (step.terminated["shared"][b] == terminated).all()
            assert (step.truncated["shared"][b] == truncated).all()
            over[b] = step.over[b]
            assert over[b] == (terminated or truncated)
            crashes += terminated
    assert over.all()
    assert crashes == crash[scenario]


def test_crashed_platoon_stands_still_and_pays_until_its_batch_of_steps_ends():
    env = make("networked/cacc", scenario="slowdown", batch_steps=60)
    env.reset([0], [3])
    rewards, headways = [], []
    for t in range(1, 601):
        step = env.step({"shared": np.zeros((1, 8), int)})  # nobody brakes
        rewards.append(step.reward["shared"][0])
        headways.append(env.headway[0].copy())
        if step.over[0]:
            break
    first = next(i for i, reward in enumerate(rewards) if (reward == -1000).all())
    assert headways[first].min() < 1 <= headways[first - 1].min()
    assert t == math.ceil((first + 1) / 60) * 60 < 600
    assert all((reward == -1000).all() for reward in rewards[first:])
    assert all((headway == headways[first]).all() for headway in headways[first:])
    assert step.terminated["shared"].all()


def stratified_seeds(n):
    """Seeds whose draws are the nearest that there are to the middles of n equal parts of [0, 1]."""
    draws = np.array([np.random.RandomState(seed).rand() for seed in range(20 * n)])
    return [int(np.abs(draws - (k + 0.5) / n).argmin()) for k in range(n)]


@pytest.mark.parametrize(("scenario", "expected", "spread", "few"), [("catchup", -81.4, 44, -72), ("slowdown", -491.3, 311, -428)])
def test_constant_action_3_scores_its_known_mean_and_never_crashes(scenario, expected, spread, few):
    env = make("networked/cacc", copies=200, scenario=scenario)
    scores, step = mean_by_step(env, 3, stratified_seeds(200))
    assert step.truncated["shared"].all()  # no crash
    assert scores.mean() == pytest.approx(expected, rel=0.01)
    assert scores.std() == pytest.approx(spread, rel=0.03)
    # what few episodes give scatters around it: the first eight of the authors' own seeds
    eight = mean_by_step(make("networked/cacc", copies=8, scenario=scenario), 3, range(12, 20))[0]
    low, high = stats.t.interval(0.95, 7, eight.mean(), stats.sem(eight))
    assert low < expected < high
    assert low < few < high
    assert eight.mean() == pytest.approx(few, rel=0.02)


def test_constant_actions_without_both_gains_are_worse_than_action_3():
    for scenario in ("catchup", "slowdown"):
        env = make("networked/cacc", copies=20, scenario=scenario)
        score = {action: mean_by_step(env, action, range(20))[0].mean() for action in range(4)}
        assert max(score, key=score.get) == 3


def test_return_of_the_package_becomes_the_literatures_by_agents_over_steps():
    env = make("networked/cacc", copies=2)
    scores, _ = mean_by_step(env, 3, [1, 2])
    env.reset([0, 1], [1, 2])
    returns = sum(env.step({"shared": np.full((2, 8), 3)}).reward["shared"].mean(1) for _ in range(600))
    np.testing.assert_allclose(returns * 8 / 600, scores)
