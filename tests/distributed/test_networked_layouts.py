"""Networked learning gives the same policies however agents are divided over ranks, and goes on with another division."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rigs import program

import marl_hpc
from marl_hpc.policies import load_networks

RUN = (
    "env=networked/cacc", "env.episode_steps=60", "paradigm=networked", "algorithm=ppo", "algorithm.hidden=[16]", "algorithm.epochs=2",
    "algorithm.minibatches=2", "dtype=float64", "budget.env_steps=1000", "rollout.envs=4", "rollout.fragment=50",
    "checkpoint.every_steps=400", "evaluate.final_episodes=4", "seed=3",
)  # fmt: skip
TALKATIVE = ("topology=ring", "topology.mix=all", "topology.rounds=2", "topology.reward_discount=0.5", "topology.reward_hops=2")
DIVIDED = ("roles.learner=2", "roles.rollout=2", "topology.partition=rcm")


def train(tmp_path: Path, *overrides: str) -> Path:
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *overrides), cwd=tmp_path)
    return run_dir


def rows(run_dir: Path) -> torch.Tensor:
    (network,) = load_networks(run_dir).values()
    return torch.cat([parameter.detach() for parameter in network.parameters()])


def returned(run_dir: Path) -> float:
    return json.loads((run_dir / "summary.json").read_text())["evaluate"]["return_mean"]


def said(run_dir: Path, *names: str) -> np.ndarray:
    """[batches, names], of metrics.jsonl."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in names] for line in lines if names[0] in line])


CONSENSUS = ("consensus/error", "consensus/distance")
EXCHANGE = ("exchange/bytes", "exchange/messages", "exchange/ranks")
TELLING = ("algorithm.gru=8", "algorithm.chunk=10", "algorithm.messages=neurcomm")
KINDS = {
    "consensus critics": (), "all, over a ring, for neighbors' rewards": TALKATIVE, "agents that talk": TELLING,
    "rows summed by the compiled kernel": ("topology.kernel=compiled",),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def whole(request, tmp_path_factory):
    return request.param, train(tmp_path_factory.mktemp("whole"), "world=inline", *request.param)


def test_agents_divided_over_two_learners_and_two_workers_learn_the_same(tmp_path, whole):
    overrides, alone = whole
    divided = train(tmp_path, *DIVIDED, *overrides)
    assert len(list((divided / "policies").glob("*.safetensors"))) == 2  # no rank has all of them
    assert (rows(divided) - rows(alone)).abs().max() < 1e-9
    np.testing.assert_allclose(returned(divided), returned(alone), rtol=1e-9)
    np.testing.assert_allclose(said(divided, *CONSENSUS), said(alone, *CONSENSUS), rtol=1e-6)
    assert (said(alone, *EXCHANGE) == 0).all()
    sent = said(divided, *EXCHANGE)
    assert (sent[:, 0] > 0).all()
    assert (sent[:, 1:] == [0, 1]).all()  # in shared memory, each to the other
    observation = np.linspace(-1, 1, 5)
    for agent in () if overrides == TELLING else ("agent_0", "agent_7"):
        actions = {marl_hpc.load_policy(run_dir, agent).act(observation) for run_dir in (alone, divided)}
        assert len(actions) == 1


def test_metrics_of_a_graph_are_of_all_its_agents_with_one_on_each_learner(tmp_path):
    """None is apart from those of its own rank; messages are all learners'."""
    three = ("env.vehicles=3", "topology.mix=all", "budget.env_steps=400")
    divided = ("roles.learner=3", "roles.rollout=3", "topology.transport=point_to_point")
    for name, layout in {"inline": ("world=inline",), "three": divided}.items():
        printed = program.run(program.train(tmp_path / name, *RUN, *three, *layout), cwd=tmp_path)
    line = "shared: 3 agents on environment (4 directed edges); 3 ranks with 1 agents each (keep): 100.0 % of edges cross ranks"
    assert printed.count(line) == 1
    assert "transport: point-to-point, kernel: torch" in printed
    assert json.loads((tmp_path / "three" / "summary.json").read_text())["graphs"] == {
        "shared": {
            "topology": "environment", "agents": 3, "edges": 4, "learners": 3, "partition": "keep", "edges_cut": 4, "halo_rows": 4,
            "transport": "point-to-point", "kernel": "torch",
        }
    }  # fmt: skip
    inline = said(tmp_path / "inline", *CONSENSUS)
    assert (inline > 0).all()
    np.testing.assert_allclose(said(tmp_path / "three", *CONSENSUS), inline, rtol=1e-6)
    # four gradient steps mix parameters and the statistics of values; on the line of vehicles the middle one tells two
    assert (said(tmp_path / "three", "exchange/ranks") == 2).all()
    messages = said(tmp_path / "three", "exchange/messages")
    assert (messages == messages[0]).all()
    assert messages[0] > 0
    assert messages[0] % (4 * (1 + 2 + 1)) == 0


def test_a_run_goes_on_alike_however_its_agents_are_divided_from_then_on(tmp_path):
    first = tmp_path / "first"
    program.run(program.train(first, *RUN, *TALKATIVE, *DIVIDED, "budget.env_steps=400"), cwd=tmp_path)
    for name, layout in (("whole", ("world=inline",)), ("divided", DIVIDED)):
        resumed = program.train(tmp_path / name, *RUN, *TALKATIVE, *layout, f"run.resume={first}")
        program.run(resumed, cwd=tmp_path)
    assert (rows(tmp_path / "whole") - rows(tmp_path / "divided")).abs().max() < 1e-9
    assert (rows(tmp_path / "whole") - rows(first)).abs().max() > 1e-3
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["env_steps"] == 1000


@pytest.mark.parametrize("role", ["rollout/1", "learner/1"])
def test_a_killed_part_comes_back_and_nothing_is_lost(tmp_path, role):
    def run(name: str) -> list[str]:
        return program.train(tmp_path / name, *RUN, *DIVIDED, "budget.env_steps=6000")

    program.run(run("undisturbed"), cwd=tmp_path)
    started = program.start(run("hit"), cwd=tmp_path)
    program.until_learned(tmp_path / "hit", 1000)
    os.kill(program.pids(tmp_path / "hit", role)[-1], signal.SIGKILL)
    program.join([started])
    summary = json.loads((tmp_path / "hit" / "summary.json").read_text())
    assert role in summary["faults"][0]
    assert len(program.pids(tmp_path / "hit", "learner/0")) == 2  # a team has lost one of its own: all began again
    assert torch.equal(rows(tmp_path / "hit"), rows(tmp_path / "undisturbed"))


LEAVERS = """
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

class Leavers(ParallelEnv):
    metadata = {"name": "leavers"}
    possible_agents = ["a", "b", "c", "d"]
    edges = [("a", "b"), ("b", "c"), ("c", "d")]
    state_space = spaces.Box(-9, 9, (2,))

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (2,))

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        random = np.random.default_rng(seed)
        self.agents, self.x, self.t = list(self.possible_agents), random.normal(), 0
        self.stay = dict(zip(self.agents, random.integers(2, 9, 4)))
        return self.see(), {agent: {} for agent in self.agents}

    def see(self):
        return {agent: self.state() for agent in self.agents}

    def state(self):
        return np.array([np.sin(self.x), self.t / 9], np.float32)

    def step(self, actions):
        self.t += 1
        self.x += 0.3 * sum(actions.values())
        rewards = {agent: np.cos(self.x) + action for agent, action in actions.items()}
        left = {agent: bool(self.t >= self.stay[agent]) for agent in self.agents}
        seen, none = self.see(), {agent: False for agent in self.agents}
        self.agents = [agent for agent in self.agents if not left[agent]]
        return seen, rewards, none, left, {agent: {} for agent in rewards}
"""


def test_agents_who_leave_one_after_another_learn_the_same_however_they_are_divided(tmp_path):
    (tmp_path / "leavers.py").write_text(LEAVERS)
    common = (
        "env.name=leavers:Leavers", "paradigm=networked", "algorithm=networked_ac", "dtype=float64", "budget.env_steps=400", "rollout.envs=4",
        "rollout.fragment=20", "seed=3",
    )  # fmt: skip
    for name, layout in {"alone": ("world=inline",), "divided": DIVIDED}.items():
        program.run(program.train(tmp_path / name, *common, *layout), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert (rows(tmp_path / "divided") - rows(tmp_path / "alone")).abs().max() < 1e-9
    names = "loss/policy", "loss/value"
    np.testing.assert_allclose(said(tmp_path / "divided", *names), said(tmp_path / "alone", *names), rtol=1e-6)


def test_a_plan_says_how_much_of_a_graph_would_cross_ranks_and_makes_no_run(tmp_path):
    plan = [sys.executable, "-m", "marl_hpc", "plan", "env=networked/cacc", "paradigm=networked", "roles.learner=2"]
    said = program.run(plan, cwd=tmp_path)
    assert "2  rollout/0" in said
    assert "2 ranks with 4 agents each (keep): 14.3 % of edges cross ranks, 2 rows do (25.0 % of all); kernel: torch" in said
    refused = program.run([*plan, "topology=star", "topology.weights=uniform"], cwd=tmp_path, code=2)
    assert "take topology.weights=metropolis_hastings" in refused
    assert not list(tmp_path.glob("runs"))


def test_learners_without_whole_teams_of_workers_are_refused(tmp_path):
    said = program.run(program.train(tmp_path / "run", *RUN, "roles.learner=2", "roles.rollout=3"), cwd=tmp_path, code=2)
    assert "set roles.rollout to a multiple of 2" in said


def test_a_kernel_that_no_compiler_makes_is_refused_before_ranks_start(tmp_path):
    run = program.train(tmp_path / "run", *RUN, "topology.kernel=compiled")
    said = program.run(run, cwd=tmp_path, code=2, env={"CC": "no-such-compiler"})
    assert "'no-such-compiler' failed" in said
    assert "or take kernel 'torch'" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("algorithm=coma", "algorithm.hidden=[16]"), "algorithms that do: ppo, a2c"),
        (("topology=erdos_renyi", "topology.options={degree: 0.5}"), "isn't connected"),
        (("env=mpe/simple_spread",), "has no edges"),
        (("sync=asp",), "leave sync out"),
        (("paradigm=independent", "topology=ring"), "needs paradigm=networked"),
        (("topology=exponential", "topology.weights=metropolis_hastings"), "topology.weights"),
        (("topology=star", "topology.weights=uniform"), "take topology.weights=metropolis_hastings"),
        (("topology.mix=none", "topology.kernel=compiled"), "topology.kernel=compiled is about topology.mix=critic or all"),
        (("world=processes", "roles.learner=9", "roles.rollout=9"), "set roles.learner lower"),
    ],
)
def test_what_cannot_be_is_said_before_ranks_start(tmp_path, overrides, words):
    run = [item for item in RUN if not item.startswith(("algorithm", "env."))]
    said = program.run(program.train(tmp_path / "run", *run, "algorithm=ppo", "world=inline", *overrides), cwd=tmp_path, code=2)
    assert words in said
