"""A real SLURM on the hosts of one machine: munged, slurmctld, and a slurmd on every host.

Everything lives in one private folder; the daemons are children of the test process and die with it. slurmctld runs on the
machine itself, so that srun, sbatch and scontrol are called as a user does, with `Slurm.env`. Partitions: `debug`, and
`scavenge`, whose jobs are requeued when debug needs their nodes. The first host has two make-believe GPUs. There is no
accounting: sacct fails. Written for SLURM 22.05.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rigs import environment
from rigs.hosts import Hosts

ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}
CPUS = 4  # of each host, as SLURM counts; the machine may have fewer

CONF = """\
ClusterName=rig
SlurmctldHost={controller}({machine})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
GresTypes=gpu
KillWait=5
MinJobAge=3600
MessageTimeout=30
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
UnkillableStepTimeout=30
"""


class SlurmError(RuntimeError):
    """A command or a daemon of the rig failed; the message ends with the daemons' last log lines."""


class Slurm:
    """A cluster on `hosts`; returns when all nodes are idle. Raises SlurmError when they aren't within 60 s."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        # the hosts' prefix is ours alone, so what stands there was left by a session that was killed
        self.folder = Path(f"/run/marl_hpc-{hosts.prefix}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.folder.chmod(0o755)  # munge wants its socket's folder open to all, writable by root only
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._write_conf()
            self._start_munge()
            self._start("slurmctld", ["slurmctld", "-D"])
            for host in hosts.names:
                self._start_node(host)
            self._wait_until_idle(hosts.names)
        except BaseException:
            self.close()
            raise

    def run(self, argv: Sequence[str], *, timeout: float = 60, check: bool = True, **env: str) -> str:
        """Run a command as a user of the cluster does and return what it printed. Raises SlurmError when it fails."""
        try:
            done = subprocess.run(
                argv, env=environment(**self.env, **env), timeout=timeout, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
            raise SlurmError(f"{' '.join(argv)} took more than {timeout} s: {printed}\n{self.logs()}") from error
        if check and done.returncode:
            raise SlurmError(f"{' '.join(argv)} exited with {done.returncode}: {done.stdout}\n{self.logs()}")
        return done.stdout

    def submit(self, *arguments: str, **env: str) -> int:
        """sbatch; returns the job's id."""
        return int(self.run(["sbatch", "--parsable", *arguments], **env).strip().splitlines()[-1])

    def state(self, job: int) -> str:
        """For example PENDING, RUNNING, COMPLETING, COMPLETED."""
        return self.show(job)["JobState"]

    def show(self, job: int) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Reason, Restarts, ExitCode, …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.run(["scontrol", "show", "job", str(job)])))

    def wait(self, job: int, states: str | Sequence[str], timeout: float) -> str:
        """Wait until a job is in one of `states`. Raises SlurmError after `timeout` s, or once it has ended in another."""
        wanted = {states} if isinstance(states, str) else set(states)
        return self.wait_for(job, lambda shown: shown["JobState"] in wanted, timeout, " or ".join(sorted(wanted)))["JobState"]

    def wait_for(self, job: int, holds: Callable[[dict[str, str]], bool], timeout: float, what: str) -> dict[str, str]:
        """Wait until `holds(show(job))`; `what` names it in errors."""
        deadline = time.monotonic() + timeout
        while True:
            shown = self.show(job)
            if holds(shown):
                return shown
            told = f"job {job} is {shown['JobState']} ({shown.get('Reason')}, exit {shown.get('ExitCode')})"
            if shown["JobState"] in ENDED:
                raise SlurmError(f"{told}, waited for {what}\n{self._output(shown)}\n{self.logs()}")
            if time.monotonic() > deadline:
                raise SlurmError(f"{told}, not {what} in {timeout:g} s\n{self._output(shown)}\n{self.logs()}")
            time.sleep(0.3)

    def release(self, job: int, timeout: float = 60) -> None:
        """Start a requeued job in 3 s; SLURM would let it wait two minutes. Returns when it has left the queue."""
        # SLURM sets the begin time late, when the last process of the old run is gone
        self.wait_for(job, lambda job: (job["JobState"], job["Reason"]) == ("PENDING", "BeginTime"), timeout, "requeued")
        # slurmd refuses a job in the very second in which the old run's credential was revoked
        self.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"])
        self.wait_for(job, lambda job: job["JobState"] != "PENDING", timeout, "started")

    def kill_node(self, host: str) -> None:
        """Let a node die with all that runs on it, and SLURM know: by itself it finds out only after SlurmdTimeout."""
        self.hosts.kill(host)
        self._daemons.pop(f"slurmd-{host}").wait(10)
        self.run(["scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=killed"])

    def restore_node(self, host: str) -> None:
        """Bring a killed node back; returns when it can take jobs."""
        if f"slurmd-{host}" not in self._daemons:
            self._start_node(host)
        self._wait_until_idle([host])

    def logs(self, lines: int = 8) -> str:
        """The last lines of every daemon's log."""
        told = []
        for path in sorted(self.folder.glob("log/*.log")):
            # Debian's SLURM tells at every start that it has no PMIx
            tail = [line for line in path.read_text(errors="replace").splitlines() if "pmix" not in line]
            told.append("\n".join([f"--- {path.name}", *tail[-lines:]]))
        return "\n".join(told)

    def close(self) -> None:
        """Cancel what runs, stop the daemons, remove the folder. May be called again. The hosts stay."""
        if not self.folder.exists():
            return
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            with contextlib.suppress(SlurmError):  # what doesn't end by this is killed below
                self.run(["scancel", "--user=root"], timeout=10)
                deadline = time.monotonic() + 10
                while self.run(["squeue", "--noheader"], timeout=10).strip() and time.monotonic() < deadline:
                    time.sleep(0.2)
        for name in reversed(list(self._daemons)):
            self._stop(name)
        for host in self.hosts.names:
            self.hosts.kill(host)
        shutil.rmtree(self.folder)

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_conf(self) -> None:
        for name in ("log", "state"):
            (self.folder / name).mkdir()
        conf = CONF.format(
            controller=socket.gethostname().split(".")[0], machine=self.hosts.machine, folder=self.folder,
            controller_port=_free_port(self.hosts.machine), node_port=self.hosts.free_port(self.hosts.names[0]),
        )  # fmt: skip
        for host in self.hosts.names:
            gpus = " Gres=gpu:2" if host == self.hosts.names[0] else ""
            conf += f"NodeName={host} NodeAddr={self.hosts.addresses[host]} CPUs={CPUS} RealMemory=65536{gpus}\n"
        conf += "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=off\n"
        conf += "PartitionName=scavenge Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=requeue GraceTime=30\n"
        (self.folder / "slurm.conf").write_text(conf)
        # slurmd wants two devices to stand for the GPUs, and never opens them
        gpus = f"NodeName={self.hosts.names[0]} Name=gpu File=/dev/null,/dev/zero\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # or slurmd looks for systemd's version 2

    def _start_munge(self) -> None:
        key, socket_path = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start(
            "munged",
            [
                "munged", "--foreground", f"--key-file={key}", f"--socket={socket_path}",
                f"--pid-file={self.folder}/munged.pid",
                f"--seed-file={self.folder}/munge.seed",
            ],
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not socket_path.exists():
            self._check_alive("munged")
            if time.monotonic() > deadline:
                raise SlurmError(f"munged opened no socket in 10 s\n{self.logs()}")
            time.sleep(0.05)

    def _start_node(self, host: str) -> None:
        (self.folder / f"spool-{host}").mkdir(exist_ok=True)
        self._start(f"slurmd-{host}", self.hosts.command(host, ["slurmd", "-D", "-N", host]))

    def _start(self, name: str, argv: Sequence[str]) -> None:
        with open(self.folder / "log" / f"{name}.log", "ab") as out:
            # in the foreground, and killed with this process: a killed test session leaves no daemon behind
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv], env=environment(**self.env), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def _stop(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(10)

    def _check_alive(self, name: str) -> None:
        code = self._daemons[name].poll()
        if code is not None:
            raise SlurmError(f"{name} ended with {code}\n{self.logs()}")

    def _wait_until_idle(self, hosts: Sequence[str]) -> None:
        deadline = time.monotonic() + 60
        while True:
            for name in self._daemons:
                self._check_alive(name)
            listed = self.run(["sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %T"], check=False)
            states = dict(re.findall(r"^(\S+) ([a-z_]+)\*?$", listed, re.MULTILINE))
            if all(states.get(host) == "idle" for host in hosts):
                return
            if time.monotonic() > deadline:
                reasons = self.run(["sinfo", "--list-reasons"], check=False)
                raise SlurmError(f"nodes aren't idle after 60 s: {states or listed}\n{reasons}\n{self.logs()}")
            for host in hosts:
                if states.get(host) in ("down", "drained"):
                    self.run(["scontrol", "update", f"NodeName={host}", "State=RESUME"], check=False)
            time.sleep(0.2)

    def _output(self, shown: dict[str, str]) -> str:
        path = Path(shown.get("StdOut") or "/nonexistent")
        return "--- the job's output\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:]) if path.is_file() else ""


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
