"""One run of a job, as a supervisor lives it: find the others, agree on the configuration, supervise, write down how it ended.

Torch-free. Rank 0's supervisor leads: it serves the store, resolves the run's folder, and writes `config.yaml`, `summary.json` and the
report; the others take what it publishes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from marl_hpc.comm import launchers, network
from marl_hpc.comm.launchers import Launch
from marl_hpc.comm.store import AnyStore, Store, StoreClient, StoreLost, StoreServer
from marl_hpc.comm.supervisor import STOPPED, WRONG, Supervisor
from marl_hpc.comm.zygote import Stamp, Zygote
from marl_hpc.compose import from_record
from marl_hpc.config import Config, ConfigError, fingerprint
from marl_hpc.progress import Progress
from marl_hpc.report import render
from marl_hpc.roles.assign import assign, count_roles, table
from marl_hpc.storage.checkpoint import newest, write_atomically

CODES = {"finished": 0, "stopped": STOPPED, "failed": 1, "wrong": WRONG}


class Summary(NamedTuple):
    """How a run ended: `record` is what summary.json holds."""

    status: str
    code: int
    run_dir: Path
    record: dict[str, Any]


def run_job(config: Config, overrides: list[str], signals: list[int], resume_from: Path | None = None) -> Summary:
    """Take this process's part in the job. Raises ConfigError for a wrong configuration, on every rank."""
    launch = launchers.identify()
    world_size = launch.size or None
    inline = config.world == "inline" or world_size == 1
    if inline and world_size not in (None, 1):
        raise ConfigError(
            f"world=inline is one process but the launcher started {world_size}; start one rank, or use world=processes"
        )
    counts = count_roles(config.roles, None if inline else world_size)
    if config.roles.learner and config.roles.learner > 1 and inline:
        raise ConfigError(f"roles.learner={config.roles.learner}: a world of one process has one learner; set roles.learner=1")
    job = Job(config, overrides, launch, counts, inline, signals, resume_from)
    return job.lead() if launch.rank == 0 else job.follow()


class StoppedEarly(Exception):
    """A signal came before any role process was started."""


class Job:
    def __init__(
        self, config: Config, overrides: list[str], launch: Launch, counts: dict[str, int], inline: bool, signals: list[int],
        resume_from: Path | None,
    ) -> None:  # fmt: skip
        self.config, self.launch, self.counts, self.inline, self.signals = config, launch, counts, inline, signals
        self.resume_from = resume_from
        self.asked = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:16]
        self.size = launch.size or (1 if inline else sum(counts.values()))
        self.one_host = launch.launcher == "alone" or launch.one_host
        self.start_s = config.timeouts.start_s * config.timeouts.scale
        self.zygote = Zygote()  # imports torch while we look for the others
        self.started = time.time()
        self.job: dict[str, Any] = {"roles": [], "devices": [], "spec": {"version": None}}  # as long as none is known
        self.hosts: list[str] = []

    # rank 0

    def lead(self) -> Summary:
        store = Store()
        host = network.LOOPBACK if self.one_host else "0.0.0.0"  # the handshake keeps strangers out
        key = launchers.new_key()
        server = StoreServer(store, host, bytes.fromhex(key))
        addresses = [network.LOOPBACK] if self.one_host else network.reachable_addresses()
        port = server.address[1]
        try:
            if self.launch.launcher != "alone":
                launchers.exchange(self.launch, {"addresses": addresses, "port": port, "key": key}, self.start_s)
            try:
                self.run_dir, self.resuming = self.open_run()
                hellos = self.greet(store)
                self.hosts = [h["host"] for h in hellos]
                spec = self.prepare(store, port, key)
            except ConfigError as error:
                store.set("job", {"wrong": str(error)})
                raise
            except StoppedEarly as stopped:
                store.set("job", {"stopped": str(stopped)})
                summary = self.summarize(store, {"status": "stopped", "reason": str(stopped)})
                self.part(store)
                return summary
            if self.launch.launcher != "alone":
                launchers.forget_meeting(self.launch)
            roles = (
                ["inline"]
                if self.inline
                else [str(r) for r in assign(self.counts, [h["host"] for h in hellos], [h["gpus"] for h in hellos])]
            )
            job = {
                "config": asdict(self.config), "spec": spec, "roles": roles, "counts": self.counts, "run_dir": str(self.run_dir),
                "devices": self.devices(roles, hellos), "timeouts": asdict(self.config.timeouts), "one_host": self.one_host,
                "interface": self.config.cluster.interface, "membership": self.config.cluster.membership,
                "addresses": {str(rank): hello["address"] for rank, hello in enumerate(hellos)},
            }  # fmt: skip
            self.job = job
            store.set("job", job)
            self.progress = Progress(store, table(roles, self.hosts), self.run_dir)
            ranks = list(range(self.size)) if self.launch.launcher == "alone" else [0]
            outcome = self.supervise(store, (network.LOOPBACK if self.one_host else addresses[0], port), key, ranks)
            self.progress.close()
            summary = self.summarize(store, outcome)
            self.part(store)
            return summary
        finally:
            self.zygote.close()
            server.close()

    def open_run(self) -> tuple[Path, bool]:
        """(the run's folder, whether it goes on from a checkpoint)."""
        run = self.config.run
        name = f"{self.config.env['name']}-{self.config.algorithm['name']}".replace("/", "-").replace(":", "-")
        folder = Path(run.dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        mode = run.resume
        if mode == "default":
            mode = "auto" if self.launch.restarted else "never"
        if self.resume_from is not None:
            mode = "auto"
        if mode not in ("auto", "never"):
            source = Path(mode)
            if newest(source if (source / "checkpoints").is_dir() else source.parent.parent) is None:
                raise ConfigError(
                    f"run.resume={mode!r} is no run folder or checkpoint that can be read; choose auto, never or such a path"
                )
            self.resume_from = source
        elif mode == "never" and folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"run.dir={folder} isn't empty; choose another folder, or continue that run with run.resume=auto or `marl-hpc resume {folder}`"
            )
        if mode != "never" and newest(folder) is not None and newest(folder, fingerprint(self.config)) is None:
            raise ConfigError(
                f"run.dir={folder} holds checkpoints of another configuration; choose another run.dir, or undo the keys that were changed"
            )
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", yaml.safe_dump(asdict(self.config), sort_keys=False))
        except OSError as error:
            raise ConfigError(f"run.dir={folder} can't be written: {error}; choose another folder") from error
        (folder / "summary.json").unlink(missing_ok=True)
        return folder, mode != "never"

    def greet(self, store: AnyStore) -> list[dict[str, Any]]:
        """What every rank's supervisor says of itself. Raises ConfigError when some were started with other overrides."""
        if self.launch.launcher == "alone":
            return [self.hello(network.LOOPBACK)] * self.size
        until = time.monotonic() + self.start_s
        found: dict[str, Any] = {}
        while len(found) < self.size - 1:
            self.heed_signals()
            found = store.watch("hello/", found, 1.0)
            if time.monotonic() > until:
                missing = [rank for rank in range(1, self.size) if f"hello/{rank}" not in found]
                raise ConfigError(
                    f"ranks {missing} of {self.size} didn't come in {self.start_s:.0f} s; see their output, or raise timeouts.start_s"
                )
        own = network.LOOPBACK if self.one_host else network.reachable_addresses()[0]
        hellos = [self.hello(own)] + [found[f"hello/{rank}"] for rank in range(1, self.size)]
        for rank, hello in enumerate(hellos):
            if hello["asked"] != self.asked:
                raise ConfigError(
                    f"rank {rank} on {hello['host']} was started with other overrides than rank 0; start all ranks alike"
                )
        return hellos

    def hello(self, address: str) -> dict[str, Any]:
        gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            gpus = min(gpus, len([device for device in visible.split(",") if device.strip()]))
        return {"host": socket.gethostname(), "address": address, "gpus": gpus, "asked": self.asked, "launcher": self.launch.launcher,
                "pid": os.getpid()}  # fmt: skip

    def devices(self, roles: list[str], hellos: list[dict[str, Any]]) -> list[str]:
        """Learners take the GPUs of their host in turn; everybody else computes on the CPU."""
        used: dict[str, int] = {}
        devices = []
        for role, hello in zip(roles, hellos, strict=True):
            wants = role.startswith("learner") or role == "inline"
            gpus = hello["gpus"] if self.cuda and self.config.device != "cpu" else 0
            if wants and gpus:
                devices.append(f"cuda:{used.get(hello['host'], 0) % gpus}")
                used[hello["host"]] = used.get(hello["host"], 0) + 1
            else:
                devices.append("cpu")
        return devices

    def prepare(self, store: AnyStore, port: int, key: str) -> dict[str, Any]:
        """Let a role process check what needs torch or the environment. Raises ConfigError with what it says."""
        job = {"config": asdict(self.config), "store": [network.LOOPBACK, port], "key": key}
        log, written = os.pipe()
        stamp = os.memfd_create("marl_hpc-prepare")
        os.ftruncate(stamp, Stamp.SIZE)
        self.zygote.start(-1, "marl_hpc.train:prepare", job, written, stamp)
        os.close(written)
        os.close(stamp)
        said = threading.Thread(target=lambda: (self.run_dir / "logs" / "prepare.log").write_bytes(_drain(log)), daemon=True)
        said.start()
        until = time.monotonic() + self.start_s
        while (found := store.get("prepared")) is None:
            ended = [event for event in self.zygote.events(0.1) if event.get("exited") == -1]
            found = store.get("prepared")
            self.heed_signals()
            if found is None and (ended or time.monotonic() > until):
                said.join(1)
                raise ConfigError(f"the environment couldn't be made; see {self.run_dir}/logs/prepare.log")
        if "wrong" in found:
            raise ConfigError(found["wrong"])
        if "failed" in found:
            raise ConfigError(f"env.name={self.config.env['name']!r} failed when it was made:\n{found['failed']}")
        self.cuda = found["cuda"]
        return found["spec"]

    def heed_signals(self) -> None:
        if self.signals:
            raise StoppedEarly(f"stopped by {signal.Signals(self.signals[0]).name} before training began")

    def name_start(self, store: AnyStore, generation: int) -> None:
        """The checkpoint that a generation starts from: the newest of this run, or the one the user named, or none."""
        found = None
        if generation > 0 or self.resuming:
            found = newest(self.run_dir, fingerprint(self.config))
        if found is None and self.resume_from is not None and self.resume_from != self.run_dir:
            source = self.resume_from
            found = newest(source if (source / "checkpoints").is_dir() else source.parent.parent)
        where = "the beginning" if found is None else f"{found[0].name} ({found[1].env_steps} environment steps)"
        if generation > 0 or self.resuming:
            self.progress.say(f"starting from {where}")
        # with its manifest: a worker that joins late may find the folder gone, since newer checkpoints push it out
        store.set(f"start/{generation}", {"checkpoint": str(found[0]), "manifest": asdict(found[1])} if found else {})

    def summarize(self, store: Store, outcome: dict[str, Any]) -> Summary:
        result = store.get("result") or {}
        status, abandoned = outcome["status"], store.get("control/abandoned")
        if status == "stopped" and abandoned:
            saved = newest(self.run_dir, fingerprint(self.config))
            where = f"it goes on from {saved[0].name}" if saved else "it starts again from the beginning"
            outcome = {**outcome, "reason": f"{outcome['reason']}, but {abandoned}; {where}"}
        saved = newest(self.run_dir, fingerprint(self.config))
        reached = {k: getattr(saved[1], k) for k in ("env_steps", "agent_steps", "learner_steps", "wall_s")} if saved else {}
        times = {key.partition("/")[2]: value for key, value in store.scan("time/").items()}
        record = {
            "status": status,
            "env_steps": 0, "agent_steps": 0, "learner_steps": 0, "wall_s": time.time() - self.started, "env_steps_per_s": 0.0, "evaluate": None,
            **reached,  # a run that failed got at least as far as its last checkpoint
            **result,
            "exit_reason": outcome["reason"] if status != "finished" else result.get("exit_reason", outcome["reason"]),
            "environment": {"name": self.config.env["name"], "version": self.job["spec"]["version"]},
            "algorithm": self.config.algorithm["name"], "paradigm": self.config.paradigm.name,
            "git": git_state(), "versions": versions(),
            "world": [
                {"rank": rank, "role": role, "host": host, "device": device, "launcher": self.launch.launcher}
                for rank, (role, host, device) in enumerate(zip(self.job["roles"], self.hosts, self.job["devices"], strict=False))
            ],
            "time_split": times,
            "faults": [value for _, value in sorted(store.scan("fault/").items())],
        }  # fmt: skip
        try:
            write_atomically(self.run_dir / "summary.json", json.dumps(record, indent=1))
            render(self.run_dir)
        except OSError as error:  # how the run ended is still to be said
            print(
                f"the summary or the report couldn't be written: {error}; free space, then: marl-hpc report {self.run_dir}",
                file=sys.stderr,
            )
        return Summary(status, CODES[status], self.run_dir, record)

    def part(self, store: Store) -> None:
        """Keep the store until the others have read how it ended."""
        others = [] if self.launch.launcher == "alone" else range(1, self.size)
        until = time.monotonic() + 10
        for rank in others:
            store.wait(f"bye/{rank}", max(0.0, until - time.monotonic()))

    # the others

    def follow(self) -> Summary:
        try:
            store, key, address = self.find_store()
            store.set(f"hello/{self.launch.rank}", self.hello(store.local_host()))
            until = time.monotonic() + 2 * self.start_s
            while (job := store.wait("job", 1.0)) is None:
                if time.monotonic() > until:
                    raise TimeoutError(f"rank 0 published no job in {2 * self.start_s:.0f} s; see its output")
            if "wrong" in job:
                raise ConfigError(job["wrong"])
            if "stopped" in job:
                store.set(f"bye/{self.launch.rank}", True)
                return Summary("stopped", CODES["stopped"], Path(), {})
            self.config, self.job, self.run_dir = from_record(job["config"]), job, Path(job["run_dir"])
            outcome = self.supervise(store, address, key, [self.launch.rank])
            with contextlib.suppress(StoreLost):  # then rank 0 waits for nobody any more
                store.set(f"bye/{self.launch.rank}", True)
            status = outcome["status"]
            return Summary(status, CODES[status], self.run_dir, {})
        finally:
            self.zygote.close()

    def find_store(self) -> tuple[StoreClient, str, tuple[str, int]]:
        """Take up rank 0's invitation; an old one, of an attempt before this, leads nowhere and is asked for again."""
        until = time.monotonic() + self.start_s
        while True:
            invitation = launchers.exchange(self.launch, None, self.start_s)
            for host in invitation["addresses"]:
                address = (host, invitation["port"])
                try:
                    store = StoreClient(address, bytes.fromhex(invitation["key"]))
                    store.get("job")
                    return store, invitation["key"], address
                except StoreLost:
                    continue
            if time.monotonic() > until or self.launch.launcher == "mpi":
                raise TimeoutError(
                    f"rank 0's store answers at none of {invitation['addresses']} (port {invitation['port']}); is there a firewall between the nodes?"
                )
            time.sleep(0.2)

    # all

    def supervise(self, store: AnyStore, address: tuple[str, int], key: str, ranks: list[int]) -> dict[str, Any]:
        supervisor = Supervisor(
            store=store, config=self.config, ranks=ranks, roles=self.job["roles"], zygote=self.zygote, signals=self.signals,
            job={**self.job, "store": list(address), "key": key}, logs=self.open_log, lead=self.launch.rank == 0,
        )  # fmt: skip
        if supervisor.lead:
            supervisor.each_second = self.progress.show
            supervisor.before_generation = lambda generation: self.name_start(store, generation)
            threading.Thread(target=self.stop_in_time, args=(store,), daemon=True, name="time-limit").start()
        outcome = supervisor.run()
        self.zygote = supervisor.zygote
        return outcome

    def stop_in_time(self, store: AnyStore) -> None:
        """Stop by ourselves before SLURM's time limit kills the job; a quarter of a short job's time at most is kept for it."""
        left_s = launchers.time_left_s()
        if left_s is not None:
            time.sleep(max(0.0, left_s - min(self.config.run.stop_before_end_s, left_s / 4)))
            store.set_default("control/stop", "the SLURM time limit")

    def open_log(self, rank: int) -> int:
        """A pipe whose lines go to the rank's log, each with the time, the rank and its role in front."""
        read, write = os.pipe()
        prefix = f"rank {rank} {self.job['roles'][rank]} | "
        path = self.run_dir / "logs" / f"rank_{rank}.log"

        def copy() -> None:
            with os.fdopen(read, errors="replace") as lines, open(path, "a", buffering=1) as log:
                for line in lines:
                    with contextlib.suppress(OSError):  # a full disk must not block who writes; what is said there is lost
                        log.write(f"{time.strftime('%H:%M:%S')} {prefix}{line}")

        threading.Thread(target=copy, daemon=True, name=f"log-{rank}").start()
        return write


def _drain(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read()


def git_state() -> dict[str, Any]:
    """Commit of the checkout that this package runs from, if it is one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip() or None, "dirty": bool(changed.stdout.strip())}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("marl_hpc", "torch", "numpy", "pettingzoo", "gymnasium", "mpe2"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
