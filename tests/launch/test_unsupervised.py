"""Ranks that are their roles, without supervisors: they may use MPI, and a fault of any ends the job."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from rigs import program

from marl_hpc.policies import load_networks

UNSUPERVISED = "cluster.supervise=false"
NETWORKED = (
    "env=networked/cacc", "env.episode_steps=60", "paradigm=networked", "algorithm.hidden=[16]", "algorithm.epochs=2",
    "algorithm.minibatches=2", "dtype=float64", "budget.env_steps=600", "rollout.envs=4", "rollout.fragment=50", "checkpoint.every_steps=400",
    "evaluate.final_episodes=4", "topology.mix=all", "topology.reward_discount=0.5",
)  # fmt: skip
DIVIDED = ("roles.learner=2", "roles.rollout=2", UNSUPERVISED)  # six ranks
BY_MPI = (*DIVIDED, "topology.transport=mpi")
ENDLESS = (UNSUPERVISED, "budget.env_steps=100000000", "rollout.envs=1", "checkpoint.every_steps=200")
BROKEN = """
import time
from mpe2 import simple_spread_v3

def make(how):
    env = simple_spread_v3.parallel_env()
    step, count = env.step, [0]

    def broken(actions):
        count[0] += 1
        if count[0] == 80:
            if how == "raises":
                raise ValueError("the sky is falling")
            time.sleep(1000)
        return step(actions)

    env.step = broken
    return env
"""


def mpiexec(ranks: int, argv: list[str]) -> list[str]:
    return ["mpiexec", "-n", str(ranks), *argv]


def networked(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "marl_hpc", *NETWORKED, *overrides, f"run.dir={run_dir}"]


def rows(run_dir: Path) -> torch.Tensor:
    (network,) = load_networks(run_dir).values()
    return torch.cat([parameter.detach() for parameter in network.parameters()])


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def assert_nobody_is_left(run_dir: Path) -> None:
    """No process of the run, some of which may still be ending."""

    def left() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"run.dir={run_dir}\0" in command:
                found.append(f"{path.parent.name}: {command}")
        return found

    program.wait_for(lambda: not left(), f"the end of all ranks of {run_dir}", 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("whole")
    program.run(networked(folder / "run", "world=inline"), cwd=folder)
    return rows(folder / "run")


@pytest.mark.usefixtures("mpi")
@pytest.mark.parametrize(
    ("layout", "transport"), [(BY_MPI, "MPI neighborhood collective"), (DIVIDED, "shared memory")], ids=["by MPI", "by default"]
)
def test_ranks_that_are_their_roles_learn_as_one_process_does(
    tmp_path: Path, whole: torch.Tensor, layout: tuple[str, ...], transport: str
) -> None:
    run_dir = tmp_path / "run"
    program.run(mpiexec(6, networked(run_dir, *layout)), cwd=tmp_path)
    assert summary(run_dir)["status"] == "finished"
    assert f"transport: {transport}," in (run_dir / "logs" / "rank_0.log").read_text()
    assert (rows(run_dir) - whole).abs().max() < 1e-9


@pytest.mark.usefixtures("mpi")
def test_a_stop_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    started = program.start(mpiexec(6, networked(run_dir, *BY_MPI, "budget.env_steps=100000000")), cwd=tmp_path)
    program.until_learned(run_dir, 600)
    os.kill(program.pids(run_dir, "rollout/1")[-1], signal.SIGTERM)
    program.join([started], code=75)
    stopped = summary(run_dir)
    assert stopped["status"] == "stopped"
    assert (run_dir / "checkpoints" / f"step_{stopped['env_steps']}" / "manifest.json").is_file()
    budget = stopped["env_steps"] + 400
    resume = [sys.executable, "-m", "marl_hpc", "resume", str(run_dir), f"budget.env_steps={budget}"]
    program.run(mpiexec(6, resume), cwd=tmp_path)
    assert summary(run_dir)["status"] == "finished"
    program.check_metrics(run_dir, budget)
    assert len(program.pids(run_dir, "learner/0")) == 2


@pytest.mark.usefixtures("mpi", "swept")
def test_a_killed_rank_ends_the_job(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    started = program.start(mpiexec(4, program.train(run_dir, *ENDLESS)), cwd=tmp_path)
    program.until_learned(run_dir, 50)
    os.kill(program.pids(run_dir, "rollout/0")[-1], signal.SIGKILL)
    assert started.process.wait(30) not in (0, 75)
    assert_nobody_is_left(run_dir)


@pytest.mark.usefixtures("mpi", "swept")
def test_an_exception_ends_the_job_with_its_traceback_once(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    run_dir = tmp_path / "run"
    argv = program.train(run_dir, *ENDLESS, "env.name=broken:make", "env.how=raises")
    text = program.run(mpiexec(4, argv), cwd=tmp_path, env={"PYTHONPATH": python_path(tmp_path)}, code=1)
    assert text.count("ValueError: the sky is falling") == 1
    assert text.count("Traceback (most recent call last)") == 1
    assert "rank 1 (rollout/0) failed" in text
    assert summary(run_dir)["status"] == "failed"
    assert_nobody_is_left(run_dir)


def test_a_role_that_hangs_ends_the_job_and_its_log_says_where(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    run_dir = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    argv = program.module(run_dir, *ENDLESS, "env.name=broken:make", "env.how=hangs", "timeouts.step_s=3")
    text = program.run([*torchrun, *argv], cwd=tmp_path, env={"PYTHONPATH": python_path(tmp_path)}, code=1)
    assert "failed: rank 1 (rollout/0) showed no progress before its deadline" in text
    assert "time.sleep(1000)" in (run_dir / "logs" / "rank_1.log").read_text()
    assert summary(run_dir)["status"] == "failed"
    assert_nobody_is_left(run_dir)


def python_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((UNSUPERVISED,), "`mpiexec -n 4 python -m marl_hpc …` (or torchrun, or srun), or set cluster.supervise=true"),
        ((*NETWORKED, "topology.transport=mpi"), "set cluster.supervise=false"),
        ((*NETWORKED, *BY_MPI), "or set cluster.supervise=true"),
        ((*NETWORKED, UNSUPERVISED, "topology.transport=mpi", "world=inline"), "topology.transport=mpi needs ranks of MPI"),
    ],
)
def test_what_no_launcher_can_start_is_refused(tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    argv = [sys.executable, "-m", "marl_hpc", *overrides, f"run.dir={tmp_path / 'run'}"]
    assert words in program.run(argv, cwd=tmp_path, code=2)
    assert not (tmp_path / "run").exists()
