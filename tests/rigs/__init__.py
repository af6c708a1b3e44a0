"""Rigs: what a cluster gives, made for real on one machine, for tests of what runs on clusters.

- `hosts`: several network hosts, each with its own address, host name and /etc/hosts;
- `slurm`: a real SLURM on those hosts;
- `mpi`: the MPICH that the test extra installs;
- `fixtures`: the pytest fixtures, one rig for a whole session;
- `program`: how tests start marl_hpc, and how they judge what it left.

A test asks by `require(name)`. Where a rig can't be had the test is skipped with the reason and the line that installs what
is missing; under CI=true it fails instead, so that a job can't be green because nothing ran.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Debian keeps daemons in sbin directories, which a user's PATH may lack
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

HOSTS_TOOLS = {"ip": "iproute2", "unshare": "util-linux", "setpriv": "util-linux"}
SLURM_TOOLS = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "scontrol": "slurm-wlm",
}

# A launcher around the tests (a terminal inside an allocation, say) must not be taken for the launcher under test.
LAUNCHER_PREFIXES = (
    "SLURM_",
    "SBATCH_",
    "SRUN_",
    "SALLOC_",
    "SQUEUE_",
    "SCANCEL_",
    "PMI_",
    "PMIX_",
    "OMPI_",
    "HYDRA_",
    "MPI",
    "TORCHELASTIC_",
)
LAUNCHER_NAMES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES",
}


def environment(**changes: str) -> dict[str, str]:
    """For processes under test: this interpreter first on PATH, one thread each, no trace of another launcher."""
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER_NAMES and not k.startswith(LAUNCHER_PREFIXES)}
    return kept | {"PATH": PATH, "OMP_NUM_THREADS": "1"} | changes


def missing_tools(rig: str) -> list[str]:
    """What stands in the way of a rig, in words; empty when it can be had. Raises KeyError for a rig that there isn't.

    >>> missing_tools("hots")
    Traceback (most recent call last):
    KeyError: "no rig 'hots'; rigs: hosts, mpi, slurm"
    """
    checks = {"hosts": _hosts, "mpi": _mpi, "slurm": lambda: _hosts() + _programs(SLURM_TOOLS)}
    if rig not in checks:
        raise KeyError(f"no rig {rig!r}; rigs: {', '.join(sorted(checks))}")
    return checks[rig]()


def require(rig: str) -> None:
    """Skip the calling test, or under CI=true fail it, unless `rig` can be had."""
    missing = missing_tools(rig)
    if not missing:
        return
    reason = f"the {rig} rig can't run here: {'; '.join(missing)}"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason} (CI is set, so this is no skip)", pytrace=False)
    pytest.skip(reason)


def _programs(tools: dict[str, str]) -> list[str]:
    absent = [tool for tool in tools if not shutil.which(tool, path=PATH)]
    if not absent:
        return []
    packages = " ".join(sorted({tools[tool] for tool in absent}))
    return [f"{', '.join(absent)} not found: apt-get install -y --no-install-recommends {packages}"]


def _hosts() -> list[str]:
    if os.geteuid() != 0:
        return ["it makes network namespaces, which only root may: run the tests as root"]
    missing = _programs(HOSTS_TOOLS)
    if missing:
        return missing
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], env=environment(), capture_output=True, text=True, timeout=10
    )
    if probe.returncode:
        return [f"root may make no namespaces here ({probe.stderr.strip()}): the container needs CAP_SYS_ADMIN"]
    return []


def _mpi() -> list[str]:
    missing = [] if importlib.util.find_spec("mpi4py") else ["mpi4py not found"]
    if not (Path(sys.executable).parent / "mpiexec").exists():
        missing.append(f"no mpiexec beside {Path(sys.executable).name}")
    return [f"{', '.join(missing)}: pip install -e '.[test]'"] if missing else []
