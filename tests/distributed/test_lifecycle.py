"""Ends and beginnings of ranks: late, twice, silent, or after everybody else."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from rigs import program
from rigs.program import pids, until_learned, wait_for

SLOW = """
import time
from mpe2 import simple_spread_v3

def make(build=0.0, step=0.0):
    time.sleep(build)
    env = simple_spread_v3.parallel_env(max_cycles=5)
    steps = env.step

    def stepped(actions):
        time.sleep(step)
        return steps(actions)

    env.step = stepped
    return env
"""
SHORT = ("rollout.envs=4", "rollout.fragment=25", "evaluate.every_steps=100000", "env.name=slow:make")


@pytest.fixture
def slow(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    return {"PYTHONPATH": str(tmp_path)}


def ranks(count: int) -> list[dict[str, str]]:
    """What torchrun would set for each rank of one host."""
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "test"}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **size} for rank in range(count)]


def supervised(run_dir: Path, tmp_path: Path, *overrides: str) -> list[program.Started]:
    """A supervisor for each of four ranks, as a launcher starts them."""
    return [program.start(program.train(run_dir, *overrides), cwd=tmp_path, env=env) for env in ranks(4)]


def test_slow_building_of_an_environment_is_no_hang(tmp_path, slow):
    run_dir = tmp_path / "run"
    overrides = ("env.build=0.8", "timeouts.step_s=2", "budget.env_steps=400", *SHORT)
    program.run(program.train(run_dir, *overrides), cwd=tmp_path, env=slow)
    assert program.finished(run_dir).summary["faults"] == []


def test_worker_that_has_ended_starts_again_when_the_learner_falls_in_the_final_evaluation(tmp_path, slow):
    """Worker 0 plays its share of the final evaluation in no time and ends; the learner waits for worker 1's."""
    run_dir = tmp_path / "run"
    overrides = (
        "roles.rollout=2", "budget.env_steps=400", "env.step=0.02", "evaluate.final_episodes=41", "rollout.envs=1", "checkpoint.every_steps=200",
    )  # fmt: skip
    started = program.start(program.train(run_dir, *SHORT, *overrides), cwd=tmp_path, env=slow)
    wait_for(lambda: (run_dir / "logs" / "rank_0.log").exists(), "the first process")
    until_learned(run_dir, 400)
    # one worker is stopped in its evaluation, so the other is done long before it
    late = pids(run_dir, "rollout/1")[-1]
    os.kill(late, signal.SIGSTOP)
    early = pids(run_dir, "rollout/0")[-1]
    wait_for(lambda: not Path(f"/proc/{early}").exists(), "the end of worker 0")
    os.kill(pids(run_dir, "learner/0")[-1], signal.SIGKILL)
    program.join([started])
    assert len(pids(run_dir, "rollout/0")) == 2
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["evaluate"]["episodes"] == 41


def test_learner_that_starts_long_after_the_other_still_joins_it(tmp_path):
    """Its warm process takes longer to get warm than a collective may take."""
    (tmp_path / "sitecustomize.py").write_text("import sys, time\nif 'marl_hpc.comm.zygote' in sys.orig_argv:\n    time.sleep(8)\n")
    run_dir = tmp_path / "run"
    overrides = ("roles.learner=2", "timeouts.collective_s=3", "budget.env_steps=400")
    late = 1
    started = [
        program.start(
            program.train(run_dir, *overrides), cwd=tmp_path, env={**env, **({"PYTHONPATH": str(tmp_path)} if rank == late else {})}
        )
        for rank, env in enumerate(ranks(5))
    ]
    program.join(started)
    assert program.finished(run_dir, ranks=5).summary["faults"] == []
    assert pids(run_dir, "learner/1")
    assert "learner/1" in (run_dir / "logs" / f"rank_{late}.log").read_text()


def test_stopped_supervisor_of_another_rank_ends_the_run_resumable(tmp_path):
    run_dir = tmp_path / "run"
    started = supervised(run_dir, tmp_path, "budget.env_steps=1000000", "timeouts.node_s=3", "checkpoint.every_steps=200")
    until_learned(run_dir, 600)
    os.kill(started[2].process.pid, signal.SIGSTOP)
    try:
        program.join([started[0], started[1], started[3]], code=75)
    finally:
        os.kill(started[2].process.pid, signal.SIGKILL)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert "rank 2 (parameter/0) or its node is lost" in summary["exit_reason"]
    assert "it goes on from step_" in summary["exit_reason"]


def test_lost_first_supervisor_ends_the_others_resumable(tmp_path):
    run_dir = tmp_path / "run"
    started = supervised(run_dir, tmp_path, "budget.env_steps=1000000", "checkpoint.every_steps=200")
    until_learned(run_dir, 600)
    os.kill(started[0].process.pid, signal.SIGKILL)
    asked = time.monotonic()
    program.join(started[1:], code=75)
    assert time.monotonic() - asked < 20


def test_configuration_that_only_rank_0_finds_wrong_ends_every_rank_alike(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "thesis.tex").write_text("mine")
    invitations = set(Path("/tmp").glob(".marl_hpc-*"))
    for text in program.join(supervised(run_dir, tmp_path), code=2):
        assert "isn't empty" in text
        assert "Traceback" not in text
    assert set(Path("/tmp").glob(".marl_hpc-*")) <= invitations


def test_hung_shard_is_named_when_a_stop_takes_too_long(tmp_path):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, "budget.env_steps=1000000", "run.grace_s=4"), cwd=tmp_path)
    until_learned(run_dir, 500)
    os.kill(pids(run_dir, "dataset/0")[-1], signal.SIGSTOP)
    time.sleep(2)
    os.kill(started.process.pid, signal.SIGTERM)
    program.join([started], code=75)
    assert "(dataset/0) didn't stop within" in json.loads((run_dir / "summary.json").read_text())["exit_reason"]


def test_process_that_cannot_be_forked_ends_the_job(tmp_path):
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("raise ImportError('no tensors are safe')")
    run_dir = tmp_path / "run"
    text = program.run(
        program.train(run_dir, "faults.limit=2", "timeouts.start_s=20", "timeouts.checkpoint_s=20"), cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)}, code=1,
    )  # fmt: skip
    assert "no tensors are safe" in text


def test_other_configuration_in_the_same_folder_is_refused(tmp_path):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir), cwd=tmp_path)
    text = program.run(program.train(run_dir, "algorithm.gamma=0.5", "run.resume=auto"), cwd=tmp_path, code=2)
    assert "another configuration" in text
    assert "gamma" not in yaml.safe_load((run_dir / "config.yaml").read_text())["algorithm"]
