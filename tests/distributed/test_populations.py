"""Populations over ranks: the same table whoever simulates it, and whoever is killed meanwhile."""

import json
import os
import signal

import numpy as np
import pytest
from rigs import program
from rigs.program import pids, wait_for
from safetensors.numpy import load_file

import marl_hpc
from marl_hpc.populations import content_hash

RUN = (
    "env=openspiel_fast/kuhn_poker", "population=psro", "groups=separate", "population.every_steps=640", "population.payoffs=simulated",
    "population.half_width=0.2", "rollout.fragment=10", "checkpoint.every_steps=640", "evaluate.every_steps=100000",
    "budget.env_steps=1920", "algorithm.gamma=1.0", "algorithm.hidden=[16]",
)  # fmt: skip
TWO = ("roles.learner=2", "roles.rollout=2", "rollout.envs=8")
ONE = ("roles.learner=1", "roles.rollout=1", "rollout.envs=16")


def written(run_dir, name):
    return json.loads((run_dir / "population" / name).read_text())


def gaps(run_dir):
    return [line["population/nash_conv"] for line in program.metrics(run_dir) if "population/nash_conv" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    program.run(program.train(folder / "run", *RUN, *TWO), cwd=folder)
    program.finished(folder / "run", ranks=6, env_steps=1920)
    return folder / "run"


def test_one_worker_and_two_have_the_same_table_and_strategies(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *ONE), cwd=tmp_path)
    assert len(gaps(run_dir)) == 4
    assert gaps(run_dir) == gaps(undisturbed)
    for name in ("payoffs.json", "ranking.json", "policy.json"):
        assert written(run_dir, name) == written(undisturbed, name)


def test_members_are_exported_as_they_were_frozen_and_load(undisturbed):
    members = {member["id"]: member["content"] for member in written(undisturbed, "members.json")["members"]}
    files = sorted((undisturbed / "population" / "policies").glob("*.safetensors"))
    assert len(files) == len(members) == 8
    for path in files:
        population, number, _ = path.name.split("-", 2)
        assert content_hash(load_file(path)["values"]) == members[f"{population}/{number}"]
    mixture = marl_hpc.load_mixture(undisturbed, "player_1", seed=0)
    member = marl_hpc.load_policy(undisturbed, "player_1", member=mixture.begin())
    seen = np.zeros(member.group.observation_shape)
    assert mixture.act(seen) == member.act(seen)


@pytest.mark.parametrize("role", ["rollout/1", "parameter/0", "learner/1"])
def test_whoever_is_killed_the_table_is_that_of_an_undisturbed_run(tmp_path, undisturbed, role):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, *TWO), cwd=tmp_path)
    wait_for(lambda: len(gaps(run_dir)) >= 2, "two stages")
    os.kill(pids(run_dir, role)[-1], signal.SIGKILL)
    program.join([started])
    summary = program.finished(run_dir, ranks=6, env_steps=1920).summary
    assert role in summary["faults"][0]
    assert written(run_dir, "payoffs.json") == written(undisturbed, "payoffs.json")
    assert gaps(run_dir) == gaps(undisturbed)
    assert summary["population"]["nash_conv"] == gaps(run_dir)[-1]


def test_inference_roles_act_for_who_learns_and_workers_for_the_frozen(tmp_path):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *ONE, "roles.inference=1", "budget.env_steps=1280"), cwd=tmp_path)
    program.finished(run_dir, ranks=5, env_steps=1280)
    assert len(gaps(run_dir)) == 3


PIPELINE = ("population=pipeline_psro", "population.levels=2", "population.lag=1", "budget.env_steps=1280")


def test_levels_learn_on_several_learners_as_they_do_on_one_whoever_is_killed(tmp_path):
    """Four policies of two players; workers simulate beside training."""
    runs = {name: tmp_path / name / "run" for name in ("one", "two", "killed")}
    for name, run_dir in runs.items():
        run_dir.parent.mkdir()
        layout = ONE if name == "one" else TWO
        started = program.start(program.train(run_dir, *RUN, *PIPELINE, *layout), cwd=run_dir.parent)
        if name == "killed":
            wait_for(lambda: len(gaps(runs["killed"])) >= 1, "a stage")
            os.kill(pids(runs["killed"], "learner/1")[-1], signal.SIGKILL)
        program.join([started])
    for name, other in (("one", "two"), ("two", "killed")):
        assert gaps(runs[name]) == gaps(runs[other])
        for file in ("payoffs.json", "policy.json"):
            assert written(runs[name], file) == written(runs[other], file)
    assert written(runs["two"], "members.json") == written(runs["killed"], "members.json")  # to the bit
    assert len(written(runs["one"], "members.json")["members"]) == 10
    assert "learner/1" in program.finished(runs["killed"], ranks=6, env_steps=1280).summary["faults"][0]
