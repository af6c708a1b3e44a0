"""What users' own environments get wrong, or do in ways of their own: it works, or the error says what to do."""

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from marl_hpc.envs.parallel import ParallelBatch


class Odd(ParallelEnv):
    """Three agents, seven steps, a reward of 1 a step; `change` may replace what `reset` (t = 0) or `step` returns."""

    metadata = {"name": "odd_v0"}
    possible_agents = ["a", "b", "c"]

    def __init__(self, change=lambda env, t, result: result):
        self.change, self.agents = change, []

    def observation_space(self, agent):
        return spaces.Box(-1, 1, (3,))

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, list(self.possible_agents)
        return self.change(self, 0, (self.seen(), {}))

    def seen(self):
        return {agent: np.full(3, self.t / 10, np.float32) for agent in self.agents}

    def step(self, actions):
        self.t += 1
        over = dict.fromkeys(self.agents, self.t == 7)
        result = (self.seen(), dict.fromkeys(self.agents, 1.0), over, dict.fromkeys(self.agents, False), {})
        self.agents = [] if self.t == 7 else self.agents
        return self.change(self, self.t, result)


def batch_of(change, steps=4):
    """A batch after so many steps, and each step's result."""
    batch = ParallelBatch("odd", [Odd(change)])
    batch.reset([0], [1])
    return batch, [batch.step({"shared": np.zeros((1, 3), int)}) for _ in range(steps)]


def rewarding(reward):
    return lambda env, t, result: (result[0], dict.fromkeys(result[1], reward), *result[2:]) if t else result


@pytest.mark.parametrize("reward", [2, np.float32(2), np.array(2.0), np.array([2.0]), [2.0]])
def test_rewards_are_numbers_however_they_are_wrapped(reward):
    _, steps = batch_of(rewarding(reward))
    assert steps[0].reward["shared"].tolist() == [[2.0, 2.0, 2.0]]


@pytest.mark.parametrize("reward", [None, "much", np.ones(2)])
def test_rewards_that_are_no_number_are_refused(reward):
    with pytest.raises(ValueError, match=r"odd: the reward of a is .*; expected a number"):
        batch_of(rewarding(reward))


def test_infos_may_be_left_out():
    _, steps = batch_of(lambda env, t, result: (*result[:-1], None))
    assert steps[-1].seen.active["shared"].all()


def masked(env, t, result):
    return (*result[:-1], {agent: {"action_mask": [0, 0, 0] if t == 2 else [0, 1, 1]} for agent in env.possible_agents})


def test_where_nothing_is_legal_the_first_choice_remains():
    _, steps = batch_of(masked)
    assert steps[0].seen.action_mask["shared"].tolist() == [[[False, True, True]] * 3]
    assert steps[1].seen.action_mask["shared"].tolist() == [[[True, False, False]] * 3]


def returning(env, t, result):
    """`b` dies in step 2 and is back from step 4 on."""
    if t == 2:
        result[2]["b"] = True
        env.agents = ["a", "c"]
    if t == 4:
        env.agents = ["a", "b", "c"]
        result[0]["b"] = np.full(3, 0.5, np.float32)
    return result


def test_agent_that_returns_within_an_episode_acts_again_and_ends_again():
    _, steps = batch_of(returning, 7)
    assert [bool(step.seen.active["shared"][0, 1]) for step in steps] == [True, False, False, True, True, True, False]
    assert [bool(step.terminated["shared"][0, 1]) for step in steps] == [False, True, False, False, False, False, True]
    assert [float(step.reward["shared"][0, 1]) for step in steps] == [1, 1, 0, 0, 1, 1, 1]


def forgetting(env, t, result):
    return result if t else ({agent: seen for agent, seen in result[0].items() if agent != "b"}, {})


def strange(env, t, result):
    env.agents = [*env.agents, "zed"] if t == 3 else env.agents
    return result


def oversized(env, t, result):
    return ({**result[0], "c": np.zeros(4, np.float32)}, *result[1:]) if t == 2 else result


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (forgetting, ValueError, "odd: b is among agents but has no observation to begin with"),
        (strange, ValueError, "odd: 'zed' appears, who isn't among its possible_agents: a, b, c"),
        (oversized, ValueError, r"odd: c observed something outside its observation space Box.*size 4 into shape \(3,\)"),
        (lambda env, t, result: result if t else result[0], TypeError, r"odd: reset\(\) returned dict; expected a pair"),
        (lambda env, t, result: result[:4], TypeError, r"odd: step\(\) returned 4 values; expected 5: observations, rewards,"),
    ],
)
def test_what_does_not_keep_to_pettingzoos_interface_is_named(change, error, said):
    with pytest.raises(error, match=said):
        batch_of(change)
