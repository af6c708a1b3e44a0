"""Ports of other packages' environments against the originals, step by step over random play."""

import numpy as np
import pytest
from mpe2 import simple_speaker_listener_v4, simple_spread_v3

from marl_hpc.envs import make
from marl_hpc.types import EnvSpec

STEPS = 10_000
ORIGINALS = {"simple_spread": simple_spread_v3, "simple_speaker_listener": simple_speaker_listener_v4}


def random_actions(env, random, share_of_still=0.0):
    """Actions of every group, uniform; of a box also a little beyond its limits."""
    chosen = {}
    for group in env.spec.groups:
        shape = (env.copies, len(group.agents))
        if group.action_space.kind == "discrete":
            chosen[group.name] = random.integers(0, group.action_space.n, shape)
        else:
            chosen[group.name] = random.uniform(-0.1, 1.1, (*shape, group.action_space.size)).astype(np.float32)
    return chosen


def compare_with_mpe2(task, copies=8, steps=STEPS, groups="shared", **options):
    """Play `steps` environment steps on both sides; how often each thing happened that has to be compared."""
    env = make(f"mpe_fast/{task}", copies=copies, groups=groups, **options)
    plain = [ORIGINALS[task].parallel_env(**options) for _ in range(copies)]
    places = {agent: (group.name, i) for group in env.spec.groups for i, agent in enumerate(group.agents)}
    random, seed = np.random.default_rng(0), 0
    counts = {"terminated": 0, "truncated": 0, "touched": 0}
    over = np.ones(copies, bool)
    for t in range(steps // copies):
        ended = np.flatnonzero(over).tolist()
        seeds = list(range(seed, seed := seed + len(ended)))
        env.reset(ended, seeds)
        observation = env.observe().observation
        for b, s in zip(ended, seeds, strict=True):
            seen = plain[b].reset(seed=s)[0]
            for agent, (group, i) in places.items():
                np.testing.assert_allclose(observation[group][b, i], seen[agent], rtol=0, atol=1e-6)
        actions = random_actions(env, random)
        step = env.step(actions)
        state = env.state()
        over = step.over
        for b, original in enumerate(plain):
            chosen = {agent: actions[group][b, i] for agent, (group, i) in places.items()}
            if not options.get("continuous_actions"):
                chosen = {agent: int(action) for agent, action in chosen.items()}
            seen, rewards, terminations, truncations, _ = original.step(chosen)
            for agent, (group, i) in places.items():
                np.testing.assert_allclose(step.seen.observation[group][b, i], seen[agent], rtol=0, atol=1e-6)
                assert abs(step.reward[group][b, i] - rewards[agent]) < 1e-6
                assert step.terminated[group][b, i] == terminations[agent]
                assert step.truncated[group][b, i] == truncations[agent]
                counts["terminated"] += bool(terminations[agent])
                counts["truncated"] += bool(truncations[agent])
            if t % 10 == 0:
                np.testing.assert_allclose(state[b], original.state(), rtol=0, atol=1e-6)
            counts["touched"] += len(set(rewards.values())) > 1
            assert over[b] == (not original.agents)
    return counts


@pytest.mark.filterwarnings("ignore:Action")
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("simple_spread", {}),
        ("simple_spread", {"continuous_actions": True}),
        ("simple_speaker_listener", {}),
        ("simple_speaker_listener", {"continuous_actions": True}),
    ],
)
def test_port_is_mpe2_step_by_step(task, options):
    counts = compare_with_mpe2(task, **options)
    assert counts["truncated"] >= STEPS // 25
    if task == "simple_spread":
        assert counts["touched"] > STEPS / 20


@pytest.mark.parametrize(
    "options",
    [
        {"N": 1, "max_cycles": 7},
        {"N": 2, "local_ratio": 0.0, "groups": {"agent_0": "a", "agent_1": "b"}},
        {"N": 7, "local_ratio": 1.0},
        {"N": 5, "num_agent_neighbors": 2, "num_landmark_neighbors": 3},
        {"N": 3, "num_agent_neighbors": 4, "num_landmark_neighbors": 5, "groups": "separate"},
    ],
    ids=str,
)
def test_port_of_simple_spread_follows_the_options_of_mpe2(options):
    assert compare_with_mpe2("simple_spread", steps=800, **options)["truncated"]


def test_port_of_simple_spread_terminates_on_success_as_mpe2_does():
    counts = compare_with_mpe2("simple_spread", steps=4000, N=1, max_cycles=50, terminate_on_success=True)
    assert counts["terminated"] > 5
    assert counts["truncated"] > 5


@pytest.mark.parametrize("task", ["simple_spread", "simple_speaker_listener"])
def test_spec_is_the_originals_but_for_name_and_version(task):
    for options in ({}, {"continuous_actions": True}, {"groups": "separate"}):
        ours, theirs = make(f"mpe_fast/{task}", **options).spec, make(f"mpe/{task}", **options).spec
        assert {**ours.to_json(), "name": "", "version": ""} == {**theirs.to_json(), "name": "", "version": ""}
        assert ours.version.startswith("marl_hpc ")
        assert ours.version.endswith(f" port of mpe2 1.1.1 {task}_v{4 if 'speaker' in task else 3}")
        assert EnvSpec.from_json(ours.to_json()) == ours
