"""What becomes of a run when its processes are killed, stopped, or fail by themselves."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from rigs import program
from rigs.program import pids, until_learned, wait_for
from safetensors.torch import load_file

RUN = (
    "budget.env_steps=12000", "rollout.envs=4", "rollout.fragment=25", "checkpoint.every_steps=1000", "evaluate.every_steps=100000",
    "roles.rollout=1",
)  # fmt: skip


def alive_in(run_dir: Path) -> list[str]:
    """Processes whose command line or working files belong to this run."""
    found = []
    for log in (run_dir / "logs").glob("rank_*.log"):
        for pid in re.findall(r"starts: pid (\d+)", log.read_text()):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except FileNotFoundError:
                continue
            if state != "Z" and "marl_hpc" in command:
                found.append(f"{pid} {command}")
    return found


def policies(run_dir: Path) -> torch.Tensor:
    return load_file(run_dir / "policies" / "shared.safetensors")["values"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    program.run(program.train(folder / "run", *RUN), cwd=folder)
    return policies(folder / "run")


def finish(started, run_dir: Path, ranks: int = 4) -> dict:
    program.join([started])
    summary = program.finished(run_dir, ranks=ranks, env_steps=12000).summary
    assert alive_in(run_dir) == []
    return summary


@pytest.mark.parametrize("membership", ["elastic", "static"])
def test_killed_rollout_worker_is_replaced_and_nothing_is_lost(tmp_path, membership):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, f"cluster.membership={membership}"), cwd=tmp_path)
    until_learned(run_dir, 3000)
    os.kill(pids(run_dir, "rollout/0")[-1], signal.SIGKILL)
    summary = finish(started, run_dir)
    assert "rollout/0" in summary["faults"][0]
    assert len(pids(run_dir, "rollout/0")) == 2
    # elastic: the others went on as they were; static: all joined again
    assert len(pids(run_dir, "learner/0")) == (1 if membership == "elastic" else 2)


@pytest.mark.parametrize("role", ["learner/0", "parameter/0", "dataset/0", "inference/0"])
def test_run_of_a_killed_learner_or_shard_ends_as_if_nothing_had_happened(tmp_path, undisturbed, role):
    run_dir = tmp_path / "run"
    inference = int(role == "inference/0")  # alone with one worker it computes with the very bits that the worker would
    started = program.start(program.train(run_dir, *RUN, f"roles.inference={inference}"), cwd=tmp_path)
    until_learned(run_dir, 3000)
    os.kill(pids(run_dir, role)[-1], signal.SIGKILL)
    summary = finish(started, run_dir, ranks=4 + inference)
    assert role in summary["faults"][0]
    # everything from the last complete checkpoint on was done again, alike: nothing lost, nothing doubled
    assert torch.equal(policies(run_dir), undisturbed)


def test_hung_learner_is_noticed_by_its_missed_deadline(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    started = program.start(
        program.train(run_dir, *RUN, "timeouts.step_s=4", "timeouts.checkpoint_s=4", "timeouts.start_s=30"), cwd=tmp_path
    )
    until_learned(run_dir, 3000)
    os.kill(pids(run_dir, "learner/0")[-1], signal.SIGSTOP)
    summary = finish(started, run_dir)
    assert any("learner/0" in fault and "progress" in fault for fault in summary["faults"])
    assert torch.equal(policies(run_dir), undisturbed)


def test_killed_warm_process_takes_its_roles_along_and_all_come_back(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN), cwd=tmp_path)
    until_learned(run_dir, 3000)
    child = pids(run_dir, "learner/0")[-1]
    zygote = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGKILL)
    finish(started, run_dir)
    assert torch.equal(policies(run_dir), undisturbed)


def test_killed_supervisor_leaves_no_process_behind(tmp_path):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, "budget.env_steps=1000000"), cwd=tmp_path)
    until_learned(run_dir, 500)
    assert len(alive_in(run_dir)) == 4
    started.process.kill()
    started.process.wait(10)
    wait_for(lambda: not alive_in(run_dir), "the end of all role processes", 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_and_stop_and_the_run_goes_on_later(tmp_path, number):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, "budget.env_steps=1000000"), cwd=tmp_path)
    until_learned(run_dir, 700)
    asked = time.monotonic()
    for _ in range(3):  # impatient
        os.killpg(started.process.pid, number)
        time.sleep(0.05)
    text = program.join([started], code=75)[0]
    assert time.monotonic() - asked < 20
    assert "resume" in text
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert number.name in summary["exit_reason"]
    assert alive_in(run_dir) == []
    # the checkpoint is of the very update that was learned last
    assert summary["env_steps"] == program.learned(run_dir)[-1]
    resume = [*program.train(run_dir)[:3], "resume", str(run_dir), f"budget.env_steps={summary['env_steps'] + 1000}"]
    program.run(resume, cwd=tmp_path)
    program.finished(run_dir, env_steps=summary["env_steps"] + 1000)


def test_signal_to_a_role_process_stops_the_run(tmp_path):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, "budget.env_steps=1000000"), cwd=tmp_path)
    until_learned(run_dir, 500)
    os.kill(pids(run_dir, "rollout/0")[-1], signal.SIGTERM)
    program.join([started], code=75)


@pytest.mark.parametrize("written", ["", "prepare.log", "rank_0.log"])
def test_signal_during_start_up_is_a_stop(tmp_path, written):
    run_dir = tmp_path / "run"
    started = program.start(program.train(run_dir, *RUN, "budget.env_steps=1000000"), cwd=tmp_path)
    wait_for(lambda: (run_dir / "logs" / written).exists(), "the first process")
    os.kill(started.process.pid, signal.SIGTERM)
    started.process.wait(40)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (started.process.returncode, summary["status"]) == (75, "stopped"), summary
    assert alive_in(run_dir) == []


def test_resumed_run_is_the_run_that_was_never_stopped(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, "budget.env_steps=5000"), cwd=tmp_path)
    program.run(program.train(run_dir, *RUN, "run.resume=auto"), cwd=tmp_path)
    assert torch.equal(policies(run_dir), undisturbed)
    program.check_metrics(run_dir, 12000)


def test_budget_counts_environment_steps_also_when_the_number_of_workers_changes(tmp_path):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, "budget.env_steps=4000"), cwd=tmp_path)
    more = ("budget.env_steps=6000", "roles.rollout=2", "run.resume=auto")
    program.run(program.train(run_dir, *RUN, *more), cwd=tmp_path)
    steps = program.learned(run_dir)
    assert steps == [*range(100, 4001, 100), *range(4200, 6001, 200)]
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 6000


def test_damaged_checkpoint_is_passed_over(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, "budget.env_steps=5000"), cwd=tmp_path)
    newest = run_dir / "checkpoints" / "step_5000" / "learner-shared.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8] + b"damaged!")
    text = program.run(program.train(run_dir, *RUN, "run.resume=auto"), cwd=tmp_path)
    assert "step_4000" in text
    assert torch.equal(policies(run_dir), undisturbed)


def test_an_own_exception_ends_the_job_with_its_traceback_once(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from mpe2 import simple_spread_v3\n"
        "def make(after):\n"
        "    env = simple_spread_v3.parallel_env()\n"
        "    steps, count = env.step, [0]\n"
        "    def step(actions):\n"
        "        count[0] += 1\n"
        "        if count[0] > after:\n"
        "            raise OverflowError('the particle left the universe')\n"
        "        return steps(actions)\n"
        "    env.step = step\n"
        "    return env\n"
    )
    run_dir = tmp_path / "run"
    overrides = ("env.name=broken:make", "env.after=60")
    text = program.run(program.train(run_dir, *RUN, *overrides), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, code=1)
    assert text.count("OverflowError: the particle left the universe") == 1
    assert "rank 1 (rollout/0)" in text
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "failed"
    assert alive_in(run_dir) == []


def test_full_disk_ends_the_run_with_its_error_and_keeps_the_last_checkpoints(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True).returncode != 0:
        assert os.environ.get("CI") != "true"
        pytest.skip("mounting a small file system needs root")
    try:
        run_dir = disk / "run"
        text = program.run(program.train(run_dir, *RUN, "budget.env_steps=1000000"), cwd=tmp_path, code=1)
        assert "No space left on device" in text
        assert text.count("Traceback") == 1
        assert len(list(run_dir.glob("checkpoints/step_*[0-9]/manifest.json"))) >= 1
        assert alive_in(run_dir) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_role_that_keeps_failing_ends_the_job(tmp_path):
    (tmp_path / "suicidal.py").write_text(
        "import os, signal\n"
        "from mpe2 import simple_spread_v3\n"
        "def make():\n"
        "    env = simple_spread_v3.parallel_env()\n"
        "    env.step = lambda actions: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return env\n"
    )
    run_dir = tmp_path / "run"
    overrides = ("env.name=suicidal:make", "faults.limit=2")
    text = program.run(program.train(run_dir, *RUN, *overrides), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, code=1)
    assert "faults.limit=2" in text
    assert len(pids(run_dir, "rollout/0")) == 3
