"""Who launched us, and how ranks that know nothing of each other find the control store. Torch-free.

Asked in this order: torchrun, MPI, SLURM's srun, nobody. MPI comes before SLURM, since mpiexec inside an allocation inherits SLURM's
variables. Rank 0 publishes an *invitation*: the store's addresses and the job's key.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from marl_hpc.config import ConfigError

FINALIZE_S = 15.0  # how long ranks wait for one another at the end


class Launch(NamedTuple):
    launcher: str  # alone | torchrun | mpi | slurm
    rank: int
    size: int  # 0 when alone: as many as the roles ask for
    local_rank: int
    local_size: int
    restarted: bool  # the launcher starts this job again after a loss or a requeue

    @property
    def one_host(self) -> bool:
        return self.size == self.local_size


def identify(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables. Raises ConfigError when they contradict each other.

    >>> identify({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).launcher
    'torchrun'
    >>> identify({}).launcher
    'alone'
    """
    e = environment

    def read(names: tuple[str, ...], default: str | None = None) -> int:
        for name in names:
            if name in e:
                return int(e[name].partition("(")[0].partition(",")[0])
        if default is None:
            raise ConfigError(f"the launcher sets none of {', '.join(names)}; set them, or start without a launcher")
        return int(default)

    if "TORCHELASTIC_RUN_ID" in e or ("RANK" in e and "WORLD_SIZE" in e):
        size = read(("WORLD_SIZE",))
        restarted = int(e.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        launch = Launch(
            "torchrun", read(("RANK",)), size, read(("LOCAL_RANK",), "0"), read(("LOCAL_WORLD_SIZE",), str(size)), restarted
        )
    elif any(name in e for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")) and not _srun_with_pmi(e):
        size = read(("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_NTASKS"))
        launch = Launch(
            "mpi",
            read(("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")),
            size,
            read(("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"), "0"),
            read(("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"), "-1"),  # unknown: perhaps several hosts
            int(e.get("SLURM_RESTART_COUNT", "0")) > 0,
        )
    elif "SLURM_STEP_ID" in e and "SLURM_PROCID" in e and not _in_interactive_shell(e):
        size = read(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
        nodes = read(("SLURM_STEP_NUM_NODES", "SLURM_NNODES"), "1")
        local_size = size if nodes == 1 else -1  # tasks may differ between nodes; only "all on one host" matters
        restarted = int(e.get("SLURM_RESTART_COUNT", "0")) > 0
        launch = Launch("slurm", read(("SLURM_PROCID",)), size, read(("SLURM_LOCALID",), "0"), local_size, restarted)
    else:
        launch = Launch("alone", 0, 0, 0, 0, int(e.get("SLURM_RESTART_COUNT", "0")) > 0)
    if launch.size and not 0 <= launch.rank < launch.size:
        raise ConfigError(f"{launch.launcher} gave rank {launch.rank} of {launch.size}; ranks go from 0 to {launch.size - 1}")
    return launch


def _in_interactive_shell(e: Mapping[str, str]) -> bool:
    """The shell of `salloc` or `srun --pty` is a step of one task; what is typed there wasn't started by srun."""
    return e.get("SLURM_STEP_NUM_TASKS", "1") == "1" and (e.get("SLURM_JOB_NAME") == "interactive" or "SLURM_PTY_PORT" in e)


def _srun_with_pmi(e: Mapping[str, str]) -> bool:
    """srun itself sets PMI_RANK or PMIX_RANK where the cluster's MpiDefault is pmi2 or pmix; there is no mpiexec then."""
    if any(name in e for name in ("OMPI_COMM_WORLD_RANK", "MPI_LOCALNRANKS", "HYDI_CONTROL_FD")):
        return False
    rank = e.get("PMI_RANK", e.get("PMIX_RANK"))
    return "SLURM_STEP_ID" in e and e.get("SLURM_PROCID") == rank


def exchange(launch: Launch, invitation: dict[str, Any] | None, timeout_s: float, *, keep_mpi: bool = False) -> dict[str, Any]:
    """Rank 0 gives its invitation, everybody gets it. `keep_mpi`: this process uses MPI later, too. Raises TimeoutError naming where it was
    looked for."""
    if launch.launcher == "mpi":
        received = mpi(launch).COMM_WORLD.bcast(invitation, root=0)
        if not keep_mpi:  # a child of a process inside MPI can't use MPI again, and from here on nobody needs it
            mpi(launch).Finalize()
        return received
    if launch.launcher == "torchrun" and not launch.one_host:
        return _through_torchrun(invitation, timeout_s)
    return _through_file(_meeting_point(launch), invitation, timeout_s)


def time_left_s() -> float | None:
    """Seconds until SLURM's time limit, None outside of SLURM or without a limit.

    SLURM_JOB_END_TIME comes with SLURM 23; older ones are asked through squeue.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"]) - time.time()
    try:
        command = ["squeue", "--noheader", f"--job={job}", "--format=%L"]
        return parse_time(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip())
    except (OSError, subprocess.TimeoutExpired):
        return None


def parse_time(text: str) -> float | None:
    """SLURM's [days-][[hours:]minutes:]seconds; None for words such as UNLIMITED.

    >>> parse_time("1-02:00:30"), parse_time("59:59"), parse_time("UNLIMITED")
    (93630.0, 3599.0, None)
    """
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(int(days or 0) * 86400 + seconds)


def new_key() -> str:
    """The job's key. MARL_HPC_KEY, the same on every node, keeps it off torchrun's own store, which anybody on the network can read."""
    key = os.environ.get("MARL_HPC_KEY") or secrets.token_hex(32)
    if not re.fullmatch(r"([0-9a-fA-F]{2}){16,}", key):
        raise ConfigError(
            "MARL_HPC_KEY must be at least 32 hexadecimal digits, the same on every node; `openssl rand -hex 32` makes one"
        )
    return key


def mpi(launch: Launch) -> Any:
    """mpi4py's MPI, initialized. Raises ConfigError where it isn't the one whose mpiexec started this."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library
        raise ConfigError(f"mpiexec started this but mpi4py can't be imported ({error}); pip install 'marl_hpc[mpi]'") from error
    place = (MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size())
    if place != (launch.rank, launch.size):
        raise ConfigError(
            f"mpiexec started rank {launch.rank} of {launch.size}, but to mpi4py this is rank {place[0]} of {place[1]}: it is built for another "
            f"MPI ({MPI.Get_library_version().splitlines()[0]}); start by that one's mpiexec, or install mpi4py for this one"
        )
    return MPI


def enter_mpi(launch: Launch) -> None:
    """In the main thread of a process that uses MPI to its end. Raises ConfigError where a second thread can't."""
    found = mpi(launch)
    if found.Query_thread() < found.THREAD_SERIALIZED:
        raise ConfigError(
            "cluster.supervise=false uses MPI from two threads in turn, and this MPI is for one only; set cluster.supervise=true, or take an "
            "MPI with MPI_THREAD_SERIALIZED"
        )
    leaving, left = threading.Event(), threading.Event()

    def watch() -> None:
        leaving.wait()
        if not left.wait(FINALIZE_S):
            os._exit(1)

    def leave() -> None:
        leaving.set()
        if not found.Is_finalized():
            found.Finalize()
        left.set()

    # mpi4py's own MPI_Finalize, after the last thread of Python, would wait for ever for a rank that is gone
    threading.Thread(target=watch, daemon=True, name="leaving-mpi").start()
    atexit.register(leave)


def end(code: int) -> NoReturn:
    """End this process from any thread, whatever the others do. Inside MPI that ends all of its ranks, and mpiexec says `code`."""
    found = sys.modules.get("mpi4py.MPI")
    if found and found.Is_initialized() and not found.Is_finalized() and found.Query_thread() == found.THREAD_MULTIPLE:
        found.COMM_WORLD.Abort(code)
    os._exit(code)


def _meeting_point(launch: Launch) -> Path:
    """A file only this job's user can read: beside the other tasks' working directory, or local when all are on one host."""
    e = os.environ
    if launch.launcher == "slurm":
        name = f".marl_hpc-{e['SLURM_JOB_ID']}.{e['SLURM_STEP_ID']}.{e.get('SLURM_RESTART_COUNT', '0')}"
        return Path.cwd() / name
    # ranks of one host are children of one torchrun; its start time tells it from a process that had its id before
    parent = os.getppid()
    started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(tempfile.gettempdir()) / f".marl_hpc-{os.getuid()}-{parent}-{started}"


def _through_file(path: Path, invitation: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    if invitation is not None:
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(invitation, file)
        os.replace(aside, path)
        return invitation
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            os.listdir(path.parent)  # network file systems notice new names on listing
            if path.stat().st_uid == os.getuid():
                return json.loads(path.read_text())
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"rank 0's invitation didn't appear at {path} in {timeout_s:.0f} s; do all ranks share this folder?")


def forget_meeting(launch: Launch) -> None:
    """Remove the file once everybody has read it."""
    if launch.launcher == "slurm" or (launch.launcher == "torchrun" and launch.one_host):
        _meeting_point(launch).unlink(missing_ok=True)


def _through_torchrun(invitation: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    """Across nodes torchrun's own store is what all ranks share; it takes torch to speak to it, so a short-lived process does."""
    given = (
        json.dumps({k: v for k, v in invitation.items() if k != "key" or not os.environ.get("MARL_HPC_KEY")}) if invitation else ""
    )
    command = [sys.executable, "-m", "marl_hpc.comm.torchrun_store", str(timeout_s)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s + 60)
    if done.returncode != 0:
        raise TimeoutError(f"no invitation through torchrun's store: {done.stderr.strip().splitlines()[-1:]}")
    return {"key": os.environ.get("MARL_HPC_KEY"), **json.loads(done.stdout)}
