"""Mixing with graph neighbors by MPI's neighborhood collective, under a real mpiexec."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import rigs
from rigs import environment

pytestmark = pytest.mark.usefixtures("mpi")

PROGRAM = str(Path(rigs.__file__).with_name("mixing_by_mpi.py"))


def mixed(ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    argv = ["mpiexec", "-n", str(ranks), sys.executable, PROGRAM, *arguments]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60)


def test_ranks_under_mpiexec_come_to_the_bits_of_one_rank() -> None:
    found = {}
    for ranks in (1, 2, 4):
        done = mixed(ranks)
        assert done.returncode == 0, done.stderr
        found[ranks] = done.stdout.split()[-1]
    assert len(set(found.values())) == 1, found


def test_a_rank_that_dies_ends_the_others() -> None:
    begun = time.monotonic()
    done = mixed(3, "1")
    assert done.returncode != 0
    assert time.monotonic() - begun < 30
