"""The program under torchrun, on one host and over two."""

import sys
from pathlib import Path

from rigs import program
from rigs.hosts import Hosts

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def test_torchrun_on_one_host(tmp_path: Path, policies_without_a_launcher: dict[str, bytes]) -> None:
    run_dir = tmp_path / "run"
    program.run([*TORCHRUN, "--standalone", "--nproc-per-node=4", *program.module(run_dir)], cwd=tmp_path)
    assert program.finished(run_dir).policies == policies_without_a_launcher


def test_torchrun_over_two_hosts(hosts: Hosts, tmp_path: Path, policies_without_a_launcher: dict[str, bytes]) -> None:
    first = hosts.names[0]
    options = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=test"]
    options.append(f"--rdzv-endpoint={first}:{hosts.free_port(first)}")
    run_dir = tmp_path / "run"
    argv = [*TORCHRUN, *options, *program.module(run_dir)]
    program.join([program.start(hosts.command(host, argv), cwd=tmp_path) for host in hosts.names])
    run = program.finished(run_dir)
    assert run.hosts == set(hosts.names)
    assert run.policies == policies_without_a_launcher
