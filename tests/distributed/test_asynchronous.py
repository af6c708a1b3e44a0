"""Asynchronous training over real ranks: a stopped learner, a killed one, a stop and another layout to go on with."""

import json
import os
import signal
import time

import pytest
from rigs import program
from rigs.program import pids, until_learned

RUN = (
    "rollout.envs=4", "rollout.fragment=25", "checkpoint.every_steps=1000", "evaluate.every_steps=4000", "roles.learner=2",
    "roles.parameter=2", "algorithm.epochs=2",
)  # fmt: skip


def lines(run_dir):
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def learned(run_dir):
    return [line for line in lines(run_dir) if "gradients/applied" in line]


def finish(started, run_dir, budget):
    program.join([started])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["env_steps"] >= budget
    assert summary["evaluate"]["env_steps"] == summary["env_steps"]
    at = [line["env_steps"] for line in lines(run_dir) if "evaluate/return_mean" in line]
    assert at == [*range(4000, budget, 4000), summary["env_steps"]]
    steps = [line["env_steps"] for line in learned(run_dir)]
    assert steps == sorted(steps)
    return summary


@pytest.mark.parametrize("sync", ["asp", "bap"])
def test_while_a_learner_is_stopped_the_others_go_on_as_far_as_the_bound_says(tmp_path, sync):
    run_dir, budget = tmp_path / "run", 9000
    bound = ["sync.staleness=2"] if sync == "bap" else []
    started = program.start(program.train(run_dir, *RUN, f"sync={sync}", *bound, f"budget.env_steps={budget}"), cwd=tmp_path)
    until_learned(run_dir, 1000)
    stopped = pids(run_dir, "learner/1")[-1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        time.sleep(1.5)  # what was under way arrives
        before = learned(run_dir)[-1]["gradients/applied"]
        time.sleep(2.5)
        after = learned(run_dir)[-1]["gradients/applied"]
    finally:
        os.kill(stopped, signal.SIGCONT)
    if sync == "asp":
        assert after - before > 20
    else:
        assert after - before <= 1  # the lead's own batch that ended when it was held
    finish(started, run_dir, budget)
    spreads = [line["gradients/spread"] for line in learned(run_dir)]
    assert max(spreads) <= 3 if sync == "bap" else max(spreads) > 20


@pytest.mark.parametrize(("killed", "other"), [("learner/1", ()), ("inference/0", ("roles.inference=1", "roles.parameter=1"))])
def test_work_since_the_checkpoint_is_done_again_when_a_role_is_killed(tmp_path, killed, other):
    run_dir, budget = tmp_path / "run", 6000
    started = program.start(program.train(run_dir, *RUN, "sync=asp", f"budget.env_steps={budget}", *other), cwd=tmp_path)
    until_learned(run_dir, 2500)
    os.kill(pids(run_dir, killed)[-1], signal.SIGKILL)
    assert killed in finish(started, run_dir, budget)["faults"][0]


def test_a_stopped_run_goes_on_with_other_numbers_of_shards_and_learners(tmp_path):
    run_dir = tmp_path / "run"
    several = (*RUN, "sync=asp", "groups=separate")  # interfaces, not all of them the lead's
    budget = "budget.env_steps=100000000"
    started = program.start(program.train(run_dir, *several, budget), cwd=tmp_path)
    until_learned(run_dir, 2000)
    started.process.send_signal(signal.SIGTERM)
    program.join([started], code=75)
    saved = json.loads((run_dir / "summary.json").read_text())["env_steps"]
    assert saved >= 2000
    budget = saved + 1500
    again = ("roles.parameter=1", "roles.learner=1", "run.resume=auto", f"budget.env_steps={budget}")
    started = program.start(program.train(run_dir, *several, *again), cwd=tmp_path)
    finish(started, run_dir, budget)
    first = next(line for line in learned(run_dir) if line["env_steps"] > saved)
    assert first["env_steps"] < saved + 500  # it went on from there
