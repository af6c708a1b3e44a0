"""Batches of one copy as PettingZoo environments: what their tests say, and that nothing is lost on the way."""

from dataclasses import replace

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from marl_hpc.envs import batch_of, make
from marl_hpc.envs.export import to_pettingzoo
from marl_hpc.testing import env_contract

TASKS = {
    "networked/cacc": {"vehicles": 3, "episode_steps": 20},
    "networked/wireless": {"height": 2, "width": 3, "episode_steps": 20},
    "networked/mdp": {"agents": 3, "states": 4, "episode_steps": 20},
    "matrix/climbing": {},
    "mpe_fast/simple_spread": {"continuous_actions": True},
    "mpe_fast/simple_speaker_listener": {},
    "lbf_fast/8x8-2p-2f-coop": {},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_copy_is_a_pettingzoo_environment_for_those_who_want_one(name):
    parallel_api_test(to_pettingzoo(make(name, **TASKS[name])), num_cycles=60)


@pytest.mark.parametrize("name", TASKS)
def test_there_and_back_the_contract_still_holds(name):
    env_contract(lambda copies: batch_of(name, [to_pettingzoo(make(name, **TASKS[name])) for _ in range(copies)]), 30)


def test_exported_environment_plays_as_the_batch_behind_it():
    native, env = make("networked/wireless", episode_steps=20), to_pettingzoo(make("networked/wireless", episode_steps=20))
    native.reset([0], [7])
    observations, _ = env.reset(seed=7)
    seen, random = native.observe(), np.random.default_rng(0)
    while env.agents:
        parts = [observations[agent] for agent in env.agents]
        assert [part["observation"].tolist() for part in parts] == seen.observation["shared"][0].tolist()
        assert np.array_equal([part["action_mask"] for part in parts], seen.action_mask["shared"][0])
        chosen = np.where(seen.action_mask["shared"], random.random((1, 12, 5)), -1).argmax(-1)
        step = native.step({"shared": chosen})
        observations, rewards, terminations, truncations, _ = env.step(dict(zip(env.agents, chosen[0], strict=True)))
        seen = step.seen
        assert list(rewards.values()) == step.reward["shared"][0].tolist()
        assert not any(terminations.values())
        assert all(truncations.values()) == step.over[0]
        assert np.array_equal(env.state(), native.state()[0])
    assert env.batch.edges.shape == (29, 2)


def test_what_is_no_parallel_environment_is_not_exported():
    with pytest.raises(ValueError, match=r"networked/mdp has 2; make it with copies=1"):
        to_pettingzoo(make("networked/mdp", copies=2))
    env = make("networked/mdp")
    env.spec = replace(env.spec, turn_based=True)
    with pytest.raises(ValueError, match="is turn-based"):
        to_pettingzoo(env)


def test_exported_environment_without_a_seed_goes_on_with_others():
    env = to_pettingzoo(make("networked/mdp"))
    firsts = []
    for seed in (3, None, None, None, 3, None, None, None):
        env.reset(seed=seed)
        firsts.append(env.state().argmax())
    assert firsts[:4] == firsts[4:]
    assert len(set(firsts)) > 1
