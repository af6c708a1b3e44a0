"""Numbers that go wrong: the run says whose, and what came before is saved."""

import json

import pytest
from rigs import program

BROKEN = """
from mpe2 import simple_spread_v3

def make(after):
    env = simple_spread_v3.parallel_env()
    step, count = env.step, [0]

    def broken(actions):
        count[0] += 1
        answer = step(actions)
        if count[0] > after:
            answer[0]["agent_1"][3] = float("nan")
        return answer

    env.step = broken
    return env
"""


@pytest.mark.parametrize("learners", [1, 2])
def test_nan_in_an_observation_names_the_agent_and_saves_what_came_before(tmp_path, learners):
    (tmp_path / "broken.py").write_text(BROKEN)
    run_dir = tmp_path / "run"
    overrides = ("env.name=broken:make", "env.after=220", "budget.env_steps=1000000", f"roles.learner={learners}")
    text = program.run(program.train(run_dir, *overrides), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, code=1)
    assert text.count("FloatingPointError: the environment gave NaN or infinity in observation of agent_1") == 1
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["env_steps"] == program.learned(run_dir)[-1]
    assert (run_dir / "checkpoints" / f"step_{summary['env_steps']}" / "manifest.json").is_file()


def test_exploding_gradient_goes_back_to_before_the_update_and_says_what_to_do(tmp_path):
    run_dir = tmp_path / "run"
    overrides = ("algorithm.lr=1e30", "algorithm.max_grad_norm=1e30", "budget.env_steps=1000000")
    text = program.run(program.train(run_dir, *overrides), cwd=tmp_path, code=1)
    assert "lower algorithm.lr" in text
    assert list((run_dir / "checkpoints").glob("step_*/manifest.json"))


HUGE = """
from mpe2 import simple_spread_v3

def make(after):
    env = simple_spread_v3.parallel_env(N=4)
    step, count = env.step, [0]

    def changed(actions):
        count[0] += 1
        observations, rewards, *rest = step(actions)
        if count[0] > after:
            rewards["agent_0"] = 1e38
        return observations, rewards, *rest

    env.step = changed
    return env
"""


def test_networked_interfaces_do_not_wait_for_a_learner_whose_gradient_went_wrong(tmp_path):
    (tmp_path / "huge.py").write_text(HUGE)
    overrides = (
        "env.name=huge:make", "env.after=100", "budget.env_steps=1000000", "roles.learner=2", "roles.rollout=2", "paradigm=networked",
        "groups={agent_0: one, agent_1: one, agent_2: two, agent_3: two}", "topology=ring", "algorithm.normalize_values=false",
    )  # fmt: skip
    run_dir = tmp_path / "run"
    text = program.run(program.train(run_dir, *overrides), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, code=1)
    assert text.count("FloatingPointError: the gradient of agent_0 isn't finite") == 1
    assert list((run_dir / "checkpoints").glob("step_*/manifest.json"))
