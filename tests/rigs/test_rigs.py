"""The rigs themselves: hosts that reach each other and can be cut off, a SLURM that requeues and loses nodes."""

import subprocess
import sys
from pathlib import Path

import pytest

import rigs
from rigs.hosts import Hosts
from rigs.slurm import Slurm, SlurmError

REACH = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=1)"


def reaches(hosts: Hosts, one: str, other: str) -> bool:
    """Nobody listens: a host that is there refuses the connection, one that is cut off is silent."""
    done = subprocess.run(
        hosts.command(one, [sys.executable, "-S", "-c", REACH, other]), capture_output=True, text=True, timeout=30
    )
    return "ConnectionRefusedError" in done.stderr


def said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def test_each_host_has_its_own_name_and_address(hosts: Hosts) -> None:
    for host in hosts.names:
        assert said(hosts.command(host, ["hostname"])) == host
        assert f" {hosts.addresses[host]}/24 " in said(hosts.command(host, ["ip", "-4", "address"]))


def test_hosts_reach_each_other_by_name_until_one_is_cut_off(hosts: Hosts) -> None:
    one, other = hosts.names[:2]
    assert reaches(hosts, one, other)
    hosts.cut(other)
    try:
        assert not reaches(hosts, one, other)
    finally:
        hosts.heal(other)
    assert reaches(hosts, one, other)
    assert reaches(hosts, other, one)


def test_hosts_have_no_route_out(hosts: Hosts) -> None:
    assert "default" not in said(hosts.command(hosts.names[0], ["ip", "route"]))


def test_what_a_killed_session_left_is_removed_and_two_sessions_do_not_meet(hosts: Hosts) -> None:
    with Hosts(1) as second:
        assert second.prefix != hosts.prefix
        assert second.subnet != hosts.subnet
        with pytest.raises(RuntimeError, match="in use by another process"):
            Hosts(1, prefix=second.prefix)
        left = subprocess.Popen(
            second.command(second.names[0], ["sh", "-c", "echo up; sleep 100"]), stdout=subprocess.PIPE, text=True
        )
        assert left.stdout is not None
        assert left.stdout.readline() == "up\n"
        second._lock.close()  # as if that session had been killed
        with Hosts(1, second.prefix, second.subnet) as third:
            assert left.wait(10) == -9
            left.stdout.close()
            assert said(third.command(third.names[0], ["hostname"])) == third.names[0]
    assert not Path("/etc/netns", second.names[0]).exists()
    assert not Path("/run/netns", second.names[0]).exists()


def test_remote_shell_runs_a_command_line_on_a_host(hosts: Hosts) -> None:
    shell = Path(rigs.__file__).with_name("remote_shell")
    assert (
        said([str(shell), "-x", "-o", "Some=option", hosts.names[1], "echo", "'a  b'", "$(hostname)"]) == f"a  b {hosts.names[1]}"
    )


def test_srun_starts_tasks_on_two_nodes(slurm: Slurm, hosts: Hosts) -> None:
    assert sorted(slurm.run(["srun", "--quiet", "--nodes=2", "hostname"]).split()) == hosts.names[:2]


def test_the_first_host_has_make_believe_gpus(slurm: Slurm) -> None:
    assert slurm.run(["srun", "--quiet", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES"]).strip() == "0,1"


def test_a_requeued_job_starts_at_once_when_released(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(
        "--requeue", "--open-mode=append", f"--output={tmp_path}/out",
        "--wrap", '[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }',
    )  # fmt: skip
    slurm.wait_for(job, lambda shown: shown["Restarts"] == "1", 30, "restarted once")
    slurm.release(job)
    assert slurm.wait(job, "COMPLETED", 30) == "COMPLETED"


def test_a_job_on_a_node_that_dies_is_requeued_and_the_node_comes_back(slurm: Slurm, hosts: Hosts, tmp_path: Path) -> None:
    lost = hosts.names[1]
    job = slurm.submit("--requeue", f"--nodelist={lost}", f"--output={tmp_path}/out", "--wrap", "sleep 60")
    slurm.wait(job, "RUNNING", 30)
    slurm.kill_node(lost)
    try:
        slurm.wait_for(job, lambda shown: shown["JobState"] == "PENDING" and shown["Restarts"] == "1", 30, "requeued")
    finally:
        slurm.run(["scancel", str(job)])
        slurm.restore_node(lost)
    assert slurm.run(["srun", "--quiet", f"--nodelist={lost}", "hostname"]).strip() == lost


def test_waiting_for_a_state_that_cannot_come_fails_at_once_with_the_logs(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(f"--output={tmp_path}/out", "--wrap", "echo so sad; exit 3")
    with pytest.raises(SlurmError, match=r"(?s)is FAILED .* exit 3:0.*so sad.*slurmctld.log"):
        slurm.wait(job, "COMPLETED", 60)


def test_a_missing_tool_skips_with_the_line_that_installs_it_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rigs.SLURM_TOOLS, "slurm-of-the-future", "slurm-wlm")
    monkeypatch.setattr(rigs, "_hosts", list)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"slurm-of-the-future not found: apt-get install .* slurm-wlm"):
        rigs.require("slurm")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="slurm-of-the-future not found"):
        rigs.require("slurm")
