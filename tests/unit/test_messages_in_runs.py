"""Agents that talk in whole runs: from the configuration to the exported policy."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from rigs.inline import train

import marl_hpc
from marl_hpc import paradigms
from marl_hpc.building import make_env
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.train import evaluate_run

TALKING = ("env=networked/cue", "paradigm=networked", "algorithm=a2c", "algorithm.gru=6", "algorithm.chunk=5")
LEARNING = (
    "algorithm.hidden=[32]", "algorithm.gru=32", "algorithm.lr=3e-3", "algorithm.entropy=0.2", "env.hops=1", "env.agents=2", "env.symbols=2",
    "algorithm.chunk=2", "rollout.fragment=2", "rollout.envs=128", "budget.env_steps=8000", "evaluate.greedy=true", "evaluate.final_episodes=100",
)  # fmt: skip


def planned(*overrides):
    config = compose([*TALKING, "algorithm.hidden=[8]", *overrides])
    return paradigms.plan(config, make_env(config, 1).spec)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm.messages=shout"], "'shout' is not a choice; none, neurcomm, commnet, dial"),
        (["algorithm.messages=dial", "algorithm.gru=0"], "set algorithm.gru=64"),
        (["algorithm.messages=dial", "algorithm.message_size=0"], "1 bit or more"),
        (["algorithm.messages=commnet", "algorithm.message_size=4"], "is about algorithm.messages=dial"),
        (["algorithm.messages=commnet", "paradigm=independent"], "only paradigm=networked has one; got paradigm=independent"),
    ],
)
def test_messages_that_cant_be_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        planned(*overrides)


def test_who_hears_whom_is_the_topologys_business():
    (line,), (ring,) = planned("algorithm.messages=dial"), planned("algorithm.messages=dial", "topology=ring")
    assert len(line.interface.neighbors) == 8
    assert set(ring.interface.neighbors) - set(line.interface.neighbors) == {(0, 4), (4, 0)}
    assert planned()[0].interface.neighbors == ()


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize("kind", ["neurcomm", "commnet", "dial"])
def test_a_policy_that_talks_is_exported_with_who_hears_whom_and_acts_for_all(tmp_path, kind, algorithm):
    run = tmp_path / "run"
    overrides = [*TALKING, f"algorithm={algorithm}", f"algorithm.messages={kind}", "rollout.max_lag=0", "topology.mix=all"]
    lines = train(run, *overrides)
    deviations = [value for line in lines for name, value in line.items() if name.endswith("first_ratio_deviation")]
    assert deviations
    assert max(deviations) < 1e-4  # what is learned from is what acted
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(compose(overrides))))
    policy = marl_hpc.load_policy(run, "agent_3", seed=0)
    names = [f"agent_{i}" for i in range(5)]
    seen = {name: np.zeros(5) for name in names}
    actions, state = policy.act(seen)
    assert set(actions) == set(names)
    told = {**seen, "agent_0": np.eye(5)[1]}
    heard, after = policy.act(told, state=state)
    same, _ = policy.act({name: np.stack([x, x]) for name, x in told.items()}, state=torch.cat([state, state]))
    assert all((same[name] == heard[name]).all() for name in names)
    assert not torch.equal(after, state)
    for wrong, got in ((np.zeros(5), "ndarray"), ({}, "nobody's"), ({**seen, "stranger": np.zeros(5)}, "stranger")):
        with pytest.raises(ValueError, match=f"give a dict with the observations of agent_0, agent_1.*; got .*{got}"):
            policy.act(wrong)
    # who has left does nothing, is remembered as it was, and heard so
    few = {name: x for name, x in told.items() if name != "agent_2"}
    acted, without = policy.act(few, state=after)
    assert set(acted) == set(few)
    assert torch.equal(without[:, 2], after[:, 2])
    assert not torch.equal(without[:, 3], after[:, 3])
    nothing, same = policy.act({**few, "agent_2": None}, state=after)
    assert nothing == acted
    assert torch.equal(same, without)
    record = json.loads(evaluate_run(run, ["episodes=20"]))
    assert 0 <= record["return_mean"] <= 1


def test_an_agent_learns_to_act_on_what_its_neighbor_tells_it(tmp_path):
    """Chance is 1/2, with independent agents too."""
    told = train(tmp_path / "told", *TALKING, *LEARNING, "algorithm.messages=commnet")
    alone = train(tmp_path / "alone", *TALKING, *LEARNING)
    assert told[-1]["evaluate/return_mean"] == 1
    assert alone[-1]["evaluate/return_mean"] < 0.7
