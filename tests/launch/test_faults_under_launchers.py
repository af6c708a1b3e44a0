"""Killed role processes under every launcher: it sees nothing of it, and the run ends as if nothing had happened."""

import os
import signal
import sys
from pathlib import Path

import pytest
from rigs import program
from rigs.program import pids, until_learned

STEPS = 8000
RUN = (f"budget.env_steps={STEPS}", "rollout.envs=4", "checkpoint.every_steps=1000")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    program.run(program.train(folder / "run", *RUN), cwd=folder)
    return program.finished(folder / "run", env_steps=STEPS).policies


@pytest.mark.parametrize("launcher", ["torchrun", "mpiexec", "srun"])
def test_killed_worker_and_killed_learner_under_a_launcher(
    launcher: str, tmp_path: Path, undisturbed: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    run_dir = tmp_path / "run"
    env: dict[str, str] = {}
    if launcher == "torchrun":
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", *program.module(run_dir, *RUN)]
    elif launcher == "mpiexec":
        request.getfixturevalue("mpi")
        argv = ["mpiexec", "-n", "4", *program.train(run_dir, *RUN)]
    else:
        env = request.getfixturevalue("slurm").env
        argv = ["srun", "--nodes=2", "--ntasks-per-node=2", f"--chdir={tmp_path}", *program.train(run_dir, *RUN)]
    started = program.start(argv, cwd=tmp_path, env=env)
    until_learned(run_dir, 2000)
    os.kill(pids(run_dir, "rollout/0")[-1], signal.SIGKILL)
    # the learner goes back to a checkpoint from before the worker died, so the replaced worker leaves no trace
    os.kill(pids(run_dir, "learner/0")[-1], signal.SIGKILL)
    program.join([started])
    run = program.finished(run_dir, env_steps=STEPS)
    assert any("rollout/0" in fault for fault in run.summary["faults"])
    assert any("learner/0" in fault for fault in run.summary["faults"])
    assert run.policies == undisturbed
