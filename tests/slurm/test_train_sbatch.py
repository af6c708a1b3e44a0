"""The program under SLURM: by srun, and by the batch files that a user submits, stopped and requeued in every way."""

import json
import time
from pathlib import Path

from rigs import program
from rigs.hosts import Hosts
from rigs.slurm import Slurm

TRAIN = program.ROOT / "slurm" / "train.sbatch"
TORCHRUN = program.ROOT / "slurm" / "torchrun.sbatch"

# Seconds of training in all attempts together: the same on a fast and on a slow machine, and no attempt is done before its
# signal comes.
SECONDS = 10
UNTIL_THE_TIME_IS_UP = ("budget.env_steps=10000000", f"budget.seconds={SECONDS}", "checkpoint.every_steps=500")


def submit(slurm: Slurm, file: Path, run_dir: Path, *overrides: str, partition: str = "debug") -> int:
    """As a user would from a folder of runs; the file itself stays as it is."""
    options = [
        f"--partition={partition}",
        "--time=20",
        f"--chdir={run_dir.parent}",
        f"--output={run_dir.parent}/job.out",
    ]
    return slurm.submit(*options, str(file), *program.OVERRIDES, *overrides, RUN_DIR=str(run_dir))


def wait_until_learning(slurm: Slurm, job: int, run_dir: Path, after: int = 0) -> None:
    """Wait until a few updates, and `after` environment steps, are behind it."""

    def learning(_: dict[str, str]) -> bool:
        return len(program.learned(run_dir)) >= 3 and program.learned(run_dir)[-1] > after

    slurm.wait_for(job, learning, program.DEADLINE_S, f"learning after {after} steps")


def finish_after_requeue(slurm: Slurm, job: int, run_dir: Path) -> program.Finished:
    """Start the requeued job and let it finish. The run has to go on from what was saved."""
    saved = max(checkpoints(run_dir))
    slurm.release(job)
    slurm.wait(job, "COMPLETED", program.DEADLINE_S)
    assert slurm.show(job)["Restarts"] == "1"
    printed = (run_dir.parent / "job.out").read_text()
    assert f"starting from step_{saved} " in printed
    assert "attempt 1 ended with exit status 0, summary: finished" in printed
    return program.finished(run_dir, env_steps=saved + 1)


def checkpoints(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*[0-9]")]


def test_srun_starts_the_ranks_without_a_batch_file(
    slurm: Slurm, hosts: Hosts, tmp_path: Path, policies_without_a_launcher: dict[str, bytes]
) -> None:
    run_dir = tmp_path / "run"
    argv = ["srun", "--nodes=2", "--ntasks-per-node=2", f"--chdir={tmp_path}", *program.train(run_dir)]
    slurm.run(argv, timeout=program.DEADLINE_S)
    run = program.finished(run_dir)
    assert run.hosts == set(hosts.names)
    assert run.policies == policies_without_a_launcher


def test_usr1_to_the_batch_shell_saves_requeues_and_resumes(slurm: Slurm, hosts: Hosts, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, TRAIN, run_dir, *UNTIL_THE_TIME_IS_UP)
    wait_until_learning(slurm, job, run_dir)
    slurm.run(["scancel", "--batch", "--signal=USR1", str(job)])
    slurm.wait_for(job, lambda shown: shown["Restarts"] == "1", 60, "requeued")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["env_steps"] in checkpoints(run_dir), "all that was learned until the signal is saved"
    assert finish_after_requeue(slurm, job, run_dir).hosts == set(hosts.names)
    printed = (tmp_path / "job.out").read_text()
    assert "attempt 0 ended with exit status 75, summary: stopped" in printed


def test_a_preempted_job_saves_and_resumes_when_the_nodes_are_free_again(slurm: Slurm, hosts: Hosts, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, TRAIN, run_dir, *UNTIL_THE_TIME_IS_UP, partition="scavenge")
    wait_until_learning(slurm, job, run_dir)
    slurm.run(["srun", "--partition=debug", f"--nodes={len(hosts.names)}", "--exclusive", "hostname"], timeout=90)
    assert "summary: stopped" in (tmp_path / "job.out").read_text()
    finish_after_requeue(slurm, job, run_dir)


def test_a_run_that_stopped_by_itself_is_requeued(slurm: Slurm, tmp_path: Path) -> None:
    """Clusters that don't signal the batch shell send TERM to the ranks; the summary alone says that there is more to do."""
    run_dir = tmp_path / "run"
    job = submit(slurm, TRAIN, run_dir, *UNTIL_THE_TIME_IS_UP)
    wait_until_learning(slurm, job, run_dir)
    slurm.run(["scancel", "--signal=TERM", str(job)])
    slurm.wait_for(job, lambda shown: shown["Restarts"] == "1", 60, "requeued")
    slurm.run(["scancel", str(job)])


def test_a_job_whose_node_died_resumes_from_its_last_checkpoint(slurm: Slurm, hosts: Hosts, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, TRAIN, run_dir, *UNTIL_THE_TIME_IS_UP)
    wait_until_learning(slurm, job, run_dir, after=500)
    slurm.kill_node(hosts.names[1])
    try:
        slurm.wait_for(job, lambda shown: shown["Restarts"] == "1", 60, "requeued")
    finally:
        slurm.restore_node(hosts.names[1])
    finish_after_requeue(slurm, job, run_dir)


def test_a_cancelled_job_saves_and_stays_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, TRAIN, run_dir, "budget.env_steps=10000000")
    wait_until_learning(slurm, job, run_dir)
    slurm.run(["scancel", str(job)])
    slurm.wait(job, "CANCELLED", 60)
    time.sleep(1)
    shown = slurm.show(job)
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0")


def test_a_wrong_configuration_fails_with_2_and_is_not_requeued(slurm: Slurm, tmp_path: Path) -> None:
    job = submit(slurm, TRAIN, tmp_path / "run", "rollout.envz=2")
    slurm.wait(job, "FAILED", program.DEADLINE_S)
    assert (slurm.show(job)["ExitCode"], slurm.show(job)["Restarts"]) == ("2:0", "0")
    assert "envz" in (tmp_path / "job.out").read_text()


def test_torchrun_batch_file_saves_requeues_and_resumes(slurm: Slurm, hosts: Hosts, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, TORCHRUN, run_dir, *UNTIL_THE_TIME_IS_UP)
    wait_until_learning(slurm, job, run_dir)
    slurm.run(["scancel", "--batch", "--signal=USR1", str(job)])
    slurm.wait_for(job, lambda shown: shown["Restarts"] == "1", 60, "requeued")
    assert finish_after_requeue(slurm, job, run_dir).hosts == set(hosts.names)
