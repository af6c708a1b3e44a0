"""Populations over ranks: the same table whoever simulates it, and whoever is killed meanwhile."""

import json
import os
import signal
import sys

import numpy as np
import pytest
from rigs import inline, program
from rigs.program import pids, wait_for
from safetensors.numpy import load_file

import marl_hpc
from marl_hpc.populations import content_hash
from marl_hpc.storage.checkpoint import found

# simulating takes about as long as learning, so that there is a time to be killed in
RUN = (
    "env=openspiel_fast/kuhn_poker", "population=psro", "groups=separate", "population.every_steps=640", "population.payoffs=simulated",
    "population.half_width=0.12", "population.min_episodes=300", "population.max_episodes=1000", "rollout.fragment=10",
    "checkpoint.every_steps=640", "evaluate.every_steps=100000", "budget.env_steps=1920", "algorithm.gamma=1.0", "algorithm.hidden=[16]",
)  # fmt: skip
STAGES, BATCHES = 4, 6  # of every cell, at least
FEW = ("population.half_width=0.2", "population.min_episodes=100")
TWO = ("roles.learner=2", "roles.rollout=2", "rollout.envs=8")
ONE = ("roles.learner=1", "roles.rollout=1", "rollout.envs=16")
FOUR = ("roles.learner=2", "roles.rollout=4", "rollout.envs=4")


def written(run_dir, name):
    return json.loads((run_dir / "population" / name).read_text())


def gaps(run_dir):
    return [line["population/nash_conv"] for line in program.metrics(run_dir) if "population/nash_conv" in line]


def batches(run_dir):
    """[((cell, batch), returns)] as they were simulated since the last checkpoint but one, while nobody is in the middle of a line."""
    path = run_dir / "population" / "simulated.jsonl"
    text = path.read_text() if path.exists() else ""
    records = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [((tuple(record["cell"]), record["batch"]), record["returns"]) for record in records]


def of_stage(run_dir, stage):
    """The batches of cells that this stage asks for first, where players have one line each."""
    return [name for name, _ in batches(run_dir) if max(name[0]) == stage]


def table(run_dir):
    """The payoff table of the last checkpoint, in full precision."""
    state = load_file(found(run_dir)[0] / "parameter-0.safetensors")
    return {key.removeprefix("table."): x for key, x in state.items() if key.startswith("table.")}


def agree(one, other, cells):
    """Assert that two runs have the same payoffs to the bit: in their last checkpoints those `cells`, and what was simulated since."""
    tables = [table(run_dir) for run_dir in (one, other)]
    assert all(x["done"][cells].all() for x in tables)
    for key in ("episodes", "mean", "squares", "beats"):
        np.testing.assert_array_equal(tables[0][key][..., *cells], tables[1][key][..., *cells], err_msg=key)
    ours, theirs = dict(batches(one)), dict(batches(other))
    assert of_stage(one, STAGES - 1)
    assert set(of_stage(one, STAGES - 1)) == set(of_stage(other, STAGES - 1))
    assert all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


FIRST = (slice(STAGES - 1), slice(STAGES - 1))  # whose cells are done when a run of RUN saves for the last time


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    program.run(program.train(folder / "run", *RUN, *TWO), cwd=folder)
    program.finished(folder / "run", ranks=6, env_steps=1920)
    return folder / "run"


@pytest.mark.parametrize("layout", [ONE, pytest.param(FOUR, marks=pytest.mark.slow)])
def test_any_number_of_workers_have_the_same_table_and_strategies(tmp_path, undisturbed, layout):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *layout), cwd=tmp_path)
    assert len(gaps(run_dir)) == STAGES
    assert gaps(run_dir) == gaps(undisturbed)
    agree(run_dir, undisturbed, FIRST)
    for name in ("payoffs.json", "ranking.json", "policy.json"):
        assert written(run_dir, name) == written(undisturbed, name)


def test_members_are_exported_as_they_were_frozen_and_load(undisturbed):
    members = {member["id"]: member["content"] for member in written(undisturbed, "members.json")["members"]}
    files = sorted((undisturbed / "population" / "policies").glob("*.safetensors"))
    assert len(files) == len(members) == 2 * STAGES
    for path in files:
        population, number, _ = path.name.split("-", 2)
        assert content_hash(load_file(path)["values"]) == members[f"{population}/{number}"]
    mixture = marl_hpc.load_mixture(undisturbed, "player_1", seed=0)
    member = marl_hpc.load_policy(undisturbed, "player_1", member=mixture.begin())
    seen = np.zeros(member.group.observation_shape)
    assert mixture.act(seen) == member.act(seen)


def same(run_dir, undisturbed):
    """Assert that a run came to the same, to the bit, and simulated no batch twice."""
    names = [name for name, _ in batches(run_dir)]
    assert len(names) == len(set(names))
    agree(run_dir, undisturbed, FIRST)
    assert gaps(run_dir) == gaps(undisturbed)
    for name in ("payoffs.json", "members.json"):
        assert written(run_dir, name) == written(undisturbed, name)


def kill(run_dir, role):
    """Kill a role, and wait until it is there again; what stood in the journal when it was killed."""
    before = pids(run_dir, role)
    os.kill(before[-1], signal.SIGKILL)
    left = batches(run_dir)
    wait_for(lambda: len(pids(run_dir, role)) > len(before), f"another {role}")
    return left


def kill_while_it_simulates(run_dir, role, stage):
    """As `kill`, when some of the cells that this stage asks for first are done and others not: nobody collects for it yet."""
    wait_for(lambda: len(of_stage(run_dir, stage)) >= 3, f"batches of stage {stage}")
    left = kill(run_dir, role)
    assert 3 <= len([name for name, _ in left if max(name[0]) == stage]) < (2 * stage + 1) * BATCHES


@pytest.mark.parametrize("roles", [("rollout/1", "parameter/0", "learner/1"), ("rollout/0", "learner/0", "dataset/0")])
def test_whoever_is_killed_the_run_is_that_of_an_undisturbed_one(tmp_path, undisturbed, roles):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, *TWO), cwd=tmp_path)
    kill_while_it_simulates(run_dir, roles[0], stage=1)
    kill_while_it_simulates(run_dir, roles[1], stage=2)
    wait_for(lambda: len(gaps(run_dir)) >= 3, "three stages")
    kill(run_dir, roles[2])
    program.join([started])
    summary = program.finished(run_dir, ranks=6, env_steps=1920).summary
    assert len(summary["faults"]) == 3
    assert all(any(role in fault for fault in summary["faults"]) for role in roles)
    assert summary["population"]["nash_conv"] == gaps(run_dir)[-1]
    same(run_dir, undisturbed)


@pytest.mark.slow
def test_a_run_that_is_killed_whole_while_it_simulates_and_resumed_has_that_table_too(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, *TWO), cwd=tmp_path)
    wait_for(lambda: len(of_stage(run_dir, 2)) >= 5, "batches of stage 2")
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()
    assert len(of_stage(run_dir, 2)) < 5 * BATCHES
    program.run(program.train(run_dir, *RUN, *TWO, "run.resume=auto"), cwd=tmp_path)
    program.finished(run_dir, ranks=6, env_steps=1920)
    same(run_dir, undisturbed)


@pytest.mark.slow
def test_a_table_may_take_longer_than_anybody_waits(tmp_path):
    run_dir = tmp_path / "run"
    long = ("population.min_episodes=40000", "population.max_episodes=40000", "budget.env_steps=640", "timeouts.wait_s=4")
    program.run(program.train(run_dir, *RUN, *TWO, *long), cwd=tmp_path)
    seconds = [line["time_s"] for line in program.metrics(run_dir) if "throughput/env_steps_per_s" in line]
    assert seconds[0] > 4  # one cell, before anything is learned


COMPUTED = (
    "env=openspiel_fast/leduc_poker", "population=psro", "population.oracle=exact", "population.start=uniform", "population.iterations=20",
)  # fmt: skip
COMPUTE = """
import sys
from pathlib import Path
from rigs import inline
from marl_hpc.roles import exact
inline.SMALL, exact.SAVE_EVERY_S = (), 0.0
inline.rank(Path(sys.argv[1]), *sys.argv[2:]).run()
"""


def test_a_computed_run_that_is_killed_and_resumed_comes_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(inline, "SMALL", ())
    inline.train(tmp_path / "whole", *COMPUTED)
    run_dir = tmp_path / "killed"
    tests = str(program.ROOT / "tests")
    path = os.pathsep.join([tests, str(program.ROOT)])
    started = program.start([sys.executable, "-c", COMPUTE, str(run_dir), *COMPUTED], cwd=tmp_path, env={"PYTHONPATH": path})
    wait_for(lambda: found(run_dir) and int(found(run_dir)[0].name.partition("_")[2]) >= 4, "four iterations")
    os.killpg(started.process.pid, signal.SIGKILL)
    assert started.process.wait() == -signal.SIGKILL
    assert len(gaps(run_dir)) < len(gaps(tmp_path / "whole"))
    inline.train(run_dir, *COMPUTED, resume=True)
    assert gaps(run_dir) == gaps(tmp_path / "whole")
    states = [load_file(found(tmp_path / name)[0] / "population.safetensors") for name in ("killed", "whole")]
    assert states[0].keys() == states[1].keys()
    for key, x in states[0].items():
        np.testing.assert_array_equal(x, states[1][key], err_msg=key)
    for name in ("members.json", "payoffs.json", "policy.json"):
        assert written(run_dir, name) == written(tmp_path / "whole", name)


def test_inference_roles_act_for_who_learns_and_workers_for_the_frozen(tmp_path):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *FEW, *ONE, "roles.inference=1", "budget.env_steps=1280"), cwd=tmp_path)
    program.finished(run_dir, ranks=5, env_steps=1280)
    assert len(gaps(run_dir)) == 3


PIPELINE = ("population=pipeline_psro", "population.levels=2", "population.lag=1", "budget.env_steps=1280")


def test_levels_learn_on_several_learners_as_they_do_on_one_whoever_is_killed(tmp_path):
    """Four policies of two players; workers simulate beside training."""
    runs = {name: tmp_path / name / "run" for name in ("one", "two", "killed")}
    for name, run_dir in runs.items():
        run_dir.parent.mkdir()
        layout = ONE if name == "one" else TWO
        started = program.start(program.train(run_dir, *RUN, *FEW, *PIPELINE, *layout), cwd=run_dir.parent)
        if name == "killed":
            wait_for(lambda: len(gaps(runs["killed"])) >= 1, "a stage")
            os.kill(pids(runs["killed"], "learner/1")[-1], signal.SIGKILL)
        program.join([started])
    for name, other in (("one", "two"), ("two", "killed")):
        assert gaps(runs[name]) == gaps(runs[other])
        ours, theirs = dict(batches(runs[name])), dict(batches(runs[other]))
        assert ours.keys() == theirs.keys()
        assert ours == theirs  # in full precision; the files of the folder are rounded
        for file in ("payoffs.json", "policy.json"):
            assert written(runs[name], file) == written(runs[other], file)
    assert written(runs["two"], "members.json") == written(runs["killed"], "members.json")  # to the bit
    assert len(written(runs["one"], "members.json")["members"]) == 10
    assert "learner/1" in program.finished(runs["killed"], ranks=6, env_steps=1280).summary["faults"][0]


@pytest.mark.slow
def test_workers_simulate_while_learners_learn(tmp_path):
    """Batches come in after an iteration of a stage was learned, and before its last one was."""
    run_dir, seen, overlapping, steps = tmp_path / "run", set(), 0, 1280
    longer = (f"population.every_steps={steps}", f"budget.env_steps={2 * steps}")
    started = program.start(program.train(run_dir, *RUN, *PIPELINE, *TWO, *longer), cwd=tmp_path)
    before = 0  # learned when the journal was read the last time
    while started.process.poll() is None:
        now, new = (program.learned(run_dir) or [0])[-1], {name for name, _ in batches(run_dir)} - seen
        after = (program.learned(run_dir) or [0])[-1]
        if before % steps and after // steps == before // steps:
            overlapping += len(new)
        before, seen = now, seen | new
    program.join([started])
    assert overlapping >= 3


@pytest.mark.slow
def test_a_stop_leaves_what_there_is_and_a_run_that_goes_on(tmp_path):
    """Levels on two learners, of which one freezes before the other."""
    run_dir = tmp_path / "run"
    run = (*RUN, *FEW, *PIPELINE, *TWO, "budget.env_steps=2560")
    started = program.start(program.train(run_dir, *run), cwd=tmp_path)
    for env_steps in (640, 1280):
        wait_for(lambda at=env_steps: (program.learned(run_dir) or [0])[-1] >= at, f"{env_steps} steps")
        os.kill(started.process.pid, signal.SIGTERM)
        program.join([started], code=75)
        members = written(run_dir, "members.json")["members"]
        steps = json.loads((run_dir / "summary.json").read_text())["env_steps"]
        assert len(members) == 2 * (1 + 2 * (steps // 640))
        assert np.array(written(run_dir, "payoffs.json")["payoffs"], object).ndim == 3
        started = program.start(program.train(run_dir, *run, "run.resume=auto"), cwd=tmp_path)
    program.join([started])
    program.finished(run_dir, ranks=6, env_steps=2560)
    assert len(written(run_dir, "members.json")["members"]) == 2 * (1 + 2 * 4)
