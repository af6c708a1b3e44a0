"""The rigs as pytest fixtures, one of each for a whole session, and the run that all launchers are compared with."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigs import program, require
from rigs.hosts import Hosts
from rigs.slurm import Slurm

SHARED = Path("/dev/shm")


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Two network hosts."""
    require("hosts")
    with Hosts(2) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(hosts: Hosts) -> Iterator[Slurm]:
    """SLURM on these hosts."""
    require("slurm")
    with Slurm(hosts) as made:
        yield made


@pytest.fixture
def mpi() -> None:
    """MPICH and mpi4py."""
    require("mpi")


@pytest.fixture
def swept() -> Iterator[None]:
    """Afterward, the shared memory that MPICH leaves of a job that was killed is gone: what nobody maps."""
    before = set(SHARED.glob("mpich_shm_*"))
    yield
    until = time.monotonic() + 5  # ranks may still be ending
    while (left := set(SHARED.glob("mpich_shm_*")) - before) and time.monotonic() < until:
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                text = maps.read_text()
                left -= {path for path in left if path.name in text}
        for path in left:
            path.unlink(missing_ok=True)
        time.sleep(0.1)


@pytest.fixture(scope="session")
def policies_without_a_launcher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `python -m marl_hpc train …` makes when nothing launches it: under every launcher it has to be the same."""
    folder: Path = tmp_path_factory.mktemp("alone")
    program.run(program.train(folder / "run"), cwd=folder)
    return program.finished(folder / "run").policies
