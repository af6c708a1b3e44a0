"""The program under mpiexec, on one host and over two."""

from pathlib import Path

import pytest
import rigs
from rigs import program
from rigs.hosts import Hosts

pytestmark = pytest.mark.usefixtures("mpi")

REMOTE_SHELL = Path(rigs.__file__).with_name("remote_shell")


def test_mpiexec_on_one_host(tmp_path: Path, policies_without_a_launcher: dict[str, bytes]) -> None:
    run_dir = tmp_path / "run"
    program.run(["mpiexec", "-n", "4", *program.train(run_dir)], cwd=tmp_path)
    assert program.finished(run_dir).policies == policies_without_a_launcher


@pytest.mark.parametrize("supervise", ["true", "false"])
def test_mpiexec_of_another_mpi_is_refused(tmp_path: Path, supervise: str) -> None:
    openmpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
    argv = program.train(tmp_path / "run", f"cluster.supervise={supervise}")
    said = program.run(argv, cwd=tmp_path, env=openmpi, code=2)
    assert "mpiexec started rank 1 of 4, but to mpi4py this is rank 0 of 1: it is built for another MPI (MPICH" in said


def test_mpiexec_over_two_hosts(hosts: Hosts, tmp_path: Path, policies_without_a_launcher: dict[str, bytes]) -> None:
    run_dir = tmp_path / "run"
    options = ["-launcher", "ssh", "-launcher-exec", str(REMOTE_SHELL), "-hosts", ",".join(hosts.names), "-ppn", "2"]
    argv = ["mpiexec", *options, "-n", "4", *program.train(run_dir)]
    program.run(hosts.command(hosts.names[0], argv), cwd=tmp_path)
    run = program.finished(run_dir)
    assert run.hosts == set(hosts.names)
    assert run.policies == policies_without_a_launcher
