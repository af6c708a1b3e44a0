"""Which launcher an environment speaks of."""

import pytest

from marl_hpc.comm import launchers
from marl_hpc.comm.launchers import identify
from marl_hpc.config import ConfigError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "r", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4", "PMI_FD": "8"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
}  # fmt: skip
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
SRUN = {
    **ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
SHELL = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}
SALLOC = {**SHELL, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "4294967290"}
PTY = {**SHELL, "SLURM_PTY_PORT": "40001", "SLURM_JOB_NAME": "bash"}


@pytest.mark.parametrize(
    ("environment", "launcher", "rank", "size", "one_host"),
    [
        pytest.param({}, "alone", 0, 0, True, id="nobody"),
        pytest.param(TORCHRUN, "torchrun", 5, 8, False, id="torchrun over two hosts"),
        pytest.param({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "torchrun", 5, 8, True, id="torchrun on one host"),
        pytest.param({**SRUN, **TORCHRUN}, "torchrun", 5, 8, False, id="torchrun started by srun"),
        pytest.param(HYDRA, "mpi", 1, 4, True, id="hydra's mpiexec"),
        pytest.param({**SHELL, **HYDRA}, "mpi", 1, 4, True, id="hydra's mpiexec in a batch script"),
        pytest.param({**SHELL, **HYDRA, "PMI_RANK": "0"}, "mpi", 0, 4, True, id="its rank 0, whose rank is SLURM's, too"),
        pytest.param({**SALLOC, **HYDRA}, "mpi", 1, 4, True, id="hydra's mpiexec in salloc's shell"),
        pytest.param({"PMI_RANK": "1", "PMI_SIZE": "4"}, "mpi", 1, 4, False, id="an MPI that doesn't say who shares its host"),
        pytest.param(OPENMPI, "mpi", 1, 4, False, id="OpenMPI"),
        pytest.param({**SHELL, **OPENMPI, "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}, "mpi", 0, 4, False, id="OpenMPI in SLURM"),
        pytest.param(SRUN, "slurm", 3, 4, False, id="srun"),
        pytest.param({**SRUN, "SLURM_STEP_NUM_NODES": "1"}, "slurm", 3, 4, True, id="srun on one host"),
        pytest.param({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, "slurm", 3, 4, False, id="srun --mpi=pmi2"),
        pytest.param({**SRUN, "PMIX_RANK": "3"}, "slurm", 3, 4, False, id="srun --mpi=pmix"),
        pytest.param(
            {**SRUN, "PMIX_RANK": "3", "OMPI_MCA_btl": "^openib"}, "slurm", 3, 4, False, id="srun --mpi=pmix, OpenMPI's settings loaded"
        ),
        pytest.param(SALLOC, "alone", 0, 0, True, id="salloc's shell"),
        pytest.param({**SALLOC, "PMIX_RANK": "0"}, "alone", 0, 0, True, id="salloc's shell where MpiDefault=pmix"),
        pytest.param({**SRUN, "SLURM_JOB_NAME": "interactive"}, "slurm", 3, 4, False, id="srun -n 4 in salloc's shell"),
        pytest.param(PTY, "alone", 0, 0, True, id="srun --pty bash"),
        pytest.param({**SRUN, "SLURM_PTY_PORT": "40001"}, "slurm", 3, 4, False, id="srun -n 4 in the shell of srun --pty"),
    ],
)  # fmt: skip
def test_launcher_is_known_by_what_it_sets(environment, launcher, rank, size, one_host):
    launch = identify(environment)
    assert (launch.launcher, launch.rank, launch.size) == (launcher, rank, size)
    assert launch.one_host is one_host


@pytest.mark.parametrize(
    ("environment", "restarted"),
    [
        (TORCHRUN, False),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({**SRUN, "SLURM_RESTART_COUNT": "2"}, True),
        ({**SHELL, **HYDRA, "SLURM_RESTART_COUNT": "1"}, True),
        ({**SALLOC, "SLURM_RESTART_COUNT": "0"}, False),
    ],
)
def test_a_job_that_its_launcher_starts_again_is_known(environment, restarted):
    assert identify(environment).restarted is restarted


def test_ranks_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="rank 4 of 4"):
        identify({**TORCHRUN, "RANK": "4", "WORLD_SIZE": "4"})


@pytest.mark.parametrize("key", ["secret", "ab" * 15, "ab" * 16 + "c"])
def test_a_key_that_anybody_could_guess_is_refused(monkeypatch, key):
    monkeypatch.setenv("MARL_HPC_KEY", key)
    with pytest.raises(ConfigError, match="openssl rand"):
        launchers.new_key()
