"""The exchange with neighbors under a real mpiexec, with no torch.distributed."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rigs import exchanging_by_mpi, program
from rigs.exchanging_by_mpi import AGENTS

from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.transports import Nobody

pytestmark = pytest.mark.usefixtures("mpi")

PROGRAM = exchanging_by_mpi.__file__
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(program.ROOT), str(program.ROOT / "tests")])}


def launched(ranks: int, folder: Path, fault: str = "none"):
    argv = ["mpiexec", "-n", str(ranks), sys.executable, PROGRAM, str(folder), fault]
    return program.start(argv, cwd=folder, env=ENVIRONMENT)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_mpi_give_the_bits_of_one_rank(ranks: int, tmp_path: Path) -> None:
    program.join([launched(ranks, tmp_path)])
    alone = ExchangePlan.in_turn(exchanging_by_mpi.weights_in_turn(), np.zeros(AGENTS, int), 0)
    expected = exchanging_by_mpi.mixed(alone, Nobody())
    for width, rows in expected.items():
        found = np.full_like(rows, np.nan)
        for rank in range(ranks):
            with np.load(tmp_path / f"mixed{rank}.npz") as part:
                found[part["agents"]] = part[width]
        assert (found == rows[np.argsort(alone[0].agents)]).all()


@pytest.mark.usefixtures("swept")
def test_a_rank_that_stands_still_is_an_error_at_the_deadline_that_names_it(tmp_path: Path) -> None:
    started = launched(2, tmp_path, "stop")
    started.process.wait(60)
    after_s, _, said = (tmp_path / "said0").read_text().partition(" ")
    assert said == "one of the neighbor ranks [1] is late: no rows from it by MPI in 1 s"
    assert 0.9 < float(after_s) < 4
    program.join([started], code=3)  # mpiexec has ended the rank that stood still, too
    assert_gone(int((tmp_path / "pid1").read_text()))


@pytest.mark.usefixtures("swept")
def test_a_rank_that_dies_ends_the_job_and_no_rank_goes_on_with_old_rows(tmp_path: Path) -> None:
    started = launched(3, tmp_path, "die")
    assert started.process.wait(60) != 0
    assert not list(tmp_path.glob("said*"))


def assert_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, f"process {pid} still runs"
        time.sleep(0.05)


def test_a_program_that_mpiexec_did_not_start_is_told_how(tmp_path: Path) -> None:
    program.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env=ENVIRONMENT,
    )


ALONE = """
import pytest, torch
from rigs.exchanging_by_mpi import owners_of, weights_in_turn
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing
from marl_hpc.comm.transports import Mpi

plan = ExchangePlan(weights_in_turn()[0], owners_of(4), 0)
with pytest.raises(ValueError, match="4 ranks, but MPI has this process alone; start it by `mpiexec -n 4 python PROGRAM`"):
    Mixing(plan, Mpi(), 3)
import mpi4py.MPI
mpi4py.MPI.Finalize()
with pytest.raises(RuntimeError, match="MPI isn't initialized, or is finalized already: start the program by `mpiexec"):
    Mpi()
"""
