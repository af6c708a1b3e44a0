"""One run of a job, as a supervisor lives it: find the others, agree on the configuration, supervise, write down how it ended.

Torch-free. Rank 0's supervisor leads: it serves the store, resolves the run's folder, and writes `config.yaml`, `summary.json` and the
report; the others take what it publishes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from marl_hpc.comm import launchers, network
from marl_hpc.comm.gpus import visible_gpus
from marl_hpc.comm.in_process import AnyZygote, InProcess
from marl_hpc.comm.launchers import Launch
from marl_hpc.comm.store import AnyStore, Store, StoreClient, StoreLost, StoreServer
from marl_hpc.comm.supervisor import STOPPED, Supervisor
from marl_hpc.comm.zygote import Stamp, Zygote
from marl_hpc.compose import from_record
from marl_hpc.config import Config, ConfigError, computes_population, networked
from marl_hpc.progress import Progress
from marl_hpc.report import render
from marl_hpc.roles.assign import assign, count_roles, place_on_gpus, table
from marl_hpc.run_folder import RunFolder, open_run
from marl_hpc.storage.checkpoint import write_atomically
from marl_hpc.summary import Summary, describe, last_words

PART_S = 15.0
LAST_S = 60.0  # how long rank 0 may take to write down how a job ended
CODES = {"finished": 0, "stopped": STOPPED, "failed": 1}


def run_job(config: Config, overrides: list[str], signals: list[int], resume_from: Path | None = None) -> Summary:
    """Take this process's part in the job. Raises ConfigError for a wrong configuration, on every rank."""
    launch = launchers.identify()
    world_size = launch.size or None
    inline = config.world == "inline" or world_size == 1
    if inline and world_size not in (None, 1):
        raise ConfigError(
            f"world=inline is one process but the launcher started {world_size}; start one rank, or use world=processes"
        )
    roles = config.roles
    if computes_population(config):
        roles = replace(roles, learner=roles.learner or 1)
    counts = count_roles(roles, None if inline else world_size, networked=networked(config))
    if config.roles.learner and config.roles.learner > 1 and inline:
        raise ConfigError(f"roles.learner={config.roles.learner}: a world of one process has one learner; set roles.learner=1")
    check_unsupervised(config, launch, 1 if inline else sum(counts.values()))
    job = Job(config, overrides, launch, counts, inline, signals, resume_from)
    part = job.lead if launch.rank == 0 else job.follow
    return part() if config.cluster.supervise else job.beside_its_role(part)


def check_unsupervised(config: Config, launch: Launch, ranks: int) -> None:
    """Raise ConfigError where nobody would start the ranks, or MPI isn't there for them."""
    if not config.cluster.supervise and launch.launcher == "alone" and ranks > 1:
        raise ConfigError(
            f"cluster.supervise=false, and no launcher: there is nobody to start the {ranks} ranks that the roles ask for; start them by "
            f"`mpiexec -n {ranks} python -m marl_hpc …` (or torchrun, or srun), or set cluster.supervise=true, or world=inline"
        )
    if config.topology.transport == "mpi" and launch.launcher != "mpi":
        raise ConfigError(
            f"topology.transport=mpi needs ranks of MPI, but these were started by {launch.launcher if launch.size else 'no launcher'}; start them by "
            f"`mpiexec -n {ranks} python -m marl_hpc …`, or leave topology.transport out"
        )


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
        self.team = counts["learner"] if networked(config) else 1  # who divide the agents of an environment among them
        self.one_host = launch.launcher == "alone" or launch.one_host
        self.start_s = config.timeouts.start_s * config.timeouts.scale
        self.console = sys.stderr  # also while a role in this process prints into its log
        self.ends_all = False  # the job ended in a way in which not every rank comes to its end by itself
        if not config.cluster.supervise and launch.launcher == "mpi":
            launchers.enter_mpi(launch)
        # imports torch while we look for the others, or before
        self.zygote: AnyZygote = Zygote() if config.cluster.supervise else InProcess(signals)
        self.started = time.time()
        self.job: dict[str, Any] = {"roles": [], "devices": [], "spec": {"version": None}}  # as long as none is known
        self.hosts: list[str] = []
        self.run_folder: RunFolder | None = None

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
                self.exchange({"addresses": addresses, "port": port, "key": key})
            try:
                self.run_folder = open_run(self.config, restarted=self.launch.restarted, resume_from=self.resume_from)
                self.run_dir = self.run_folder.path
                hellos = self.greet(store)
                self.hosts = [h["host"] for h in hellos]
                spec = self.prepare(store, port, key, self.run_folder)
                hosts, gpus = self.hosts, [h["gpus"] for h in hellos]
                roles = ["inline"] if self.inline else [str(r) for r in assign(self.counts, hosts, [len(g) for g in gpus])]
                wanted = self.cuda and self.config.device != "cpu"
                devices = place_on_gpus(roles, hosts, gpus) if wanted else ["cpu"] * self.size
                self.check_transport(roles, devices)
            except ConfigError as error:
                store.set("job", {"wrong": str(error)})
                if self.run_folder is not None:
                    self.run_folder.abandon()
                self.part(store)
                raise
            except StoppedEarly as stopped:
                store.set("job", {"stopped": str(stopped)})
                summary = self.summarize(store, {"status": "stopped", "reason": str(stopped)})
                self.part(store)
                return summary
            finally:
                launchers.forget_meeting(self.launch)
            job = {
                "config": asdict(self.config), "spec": spec, "roles": roles, "hosts": self.hosts, "counts": self.counts, "run_dir": str(self.run_dir),
                "devices": devices, "timeouts": asdict(self.config.timeouts), "one_host": self.one_host,
                "interface": self.config.cluster.interface, "membership": self.config.cluster.membership,
                "team": self.team,
                "addresses": {str(rank): hello["address"] for rank, hello in enumerate(hellos)},
            }  # fmt: skip
            self.job = job
            store.set("job", job)
            self.progress = Progress(store, table(roles, self.hosts), self.run_dir, self.console)
            ranks = list(range(self.size)) if self.launch.launcher == "alone" else [0]
            outcome = self.supervise(store, (network.LOOPBACK if self.one_host else addresses[0], port), key, ranks)
            self.progress.close()
            summary = self.summarize(store, outcome)
            self.part(store, 3.0 if "lost" in outcome or self.ends_all else PART_S)
            self.ends_all = self.ends_all or bool(store.scan("running/"))
            return summary
        finally:
            self.zygote.close()
            server.close()

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
        return {"host": socket.gethostname(), "address": address, "gpus": visible_gpus(), "asked": self.asked, "launcher": self.launch.launcher,
                "pid": os.getpid()}  # fmt: skip

    def prepare(self, store: AnyStore, port: int, key: str, folder: RunFolder) -> dict[str, Any]:
        """Let a role process check what needs torch or the environment. Raises ConfigError with what it says."""
        job = {
            "config": asdict(self.config),
            "store": [network.LOOPBACK, port],
            "key": key,
            "team": self.team,
            "workers": self.counts["rollout"],
        }
        log, written = os.pipe()
        stamp = os.memfd_create("marl_hpc-prepare")
        os.ftruncate(stamp, Stamp.SIZE)
        self.zygote.start(-1, "marl_hpc.train:prepare", job, written, stamp)
        os.close(written)
        os.close(stamp)
        printed: list[bytes] = []

        def keep() -> None:
            printed.append(_drain(log))
            with contextlib.suppress(OSError):  # the folder is gone when the configuration was wrong
                (folder.path / "logs" / "prepare.log").write_bytes(printed[0])

        listener = threading.Thread(target=keep, daemon=True)
        listener.start()
        until = time.monotonic() + self.start_s
        while (found := store.get("prepared")) is None:
            ended = [event for event in self.zygote.events(0.1) if event.get("exited") == -1]
            found = store.get("prepared")
            self.heed_signals()
            if found is None and (ended or time.monotonic() > until):
                listener.join(1)
                told = b"".join(printed).decode(errors="replace").strip() or "it printed nothing"
                raise ConfigError(f"the environment couldn't be made{'' if ended else f' in {self.start_s:.0f} s'}:\n{told}")
        if "wrong" in found:
            raise ConfigError(found["wrong"])
        if "failed" in found:
            raise ConfigError(f"env.name={self.config.env['name']!r} failed when it was made:\n{found['failed']}")
        self.cuda = found["cuda"]
        return found["spec"]

    def check_transport(self, roles: list[str], devices: list[str]) -> None:
        """Raise ConfigError where learners would exchange what is on GPUs by MPI."""
        on_gpus = [device for role, device in zip(roles, devices, strict=True) if role.startswith("learner") and device != "cpu"]
        if self.config.topology.transport == "mpi" and self.counts["learner"] > 1 and on_gpus:
            raise ConfigError(
                f"topology.transport=mpi exchanges rows in the memory of hosts, but learners are on {', '.join(on_gpus)}; set device=cpu, or "
                "leave topology.transport out"
            )

    def heed_signals(self) -> None:
        if self.signals:
            raise StoppedEarly(f"stopped by {signal.Signals(self.signals[0]).name} before training began")

    def name_start(self, store: AnyStore, generation: int) -> None:
        """Say which checkpoint a generation starts from."""
        assert self.run_folder is not None
        start = self.run_folder.start(self.config, generation)
        where = "the beginning" if start is None else f"{start[0].name} ({start[1].env_steps} environment steps)"
        if generation > 0 or self.run_folder.resuming or self.run_folder.source:
            self.progress.say(f"starting from {where}")
        # with its manifest: a worker that joins late may find the folder gone, since newer checkpoints push it out
        store.set(f"start/{generation}", {"checkpoint": str(start[0]), "manifest": asdict(start[1])} if start else {})

    def summarize(self, store: Store, outcome: dict[str, Any]) -> Summary:
        record = describe(
            store, self.config, self.run_dir, outcome, time.time() - self.started, self.job, self.hosts, self.launch.launcher
        )
        try:
            write_atomically(self.run_dir / "summary.json", json.dumps(record, indent=1))
            render(self.run_dir)
        except OSError as error:  # how the run ended is still to be said
            print(
                f"the summary or the report couldn't be written: {error}; free space, then: marl-hpc report {self.run_dir}",
                file=self.console,
            )
        return Summary(outcome["status"], self.exit_code(outcome), self.run_dir, record)

    def exit_code(self, outcome: dict[str, Any]) -> int:
        """torchrun would start a job again that stopped by itself, so there it ends with 0; summary.json says the truth."""
        if outcome["status"] == "stopped" and self.launch.launcher == "torchrun" and "lost" not in outcome:
            return 0
        return CODES[outcome["status"]]

    def part(self, store: Store, patience_s: float = PART_S) -> None:
        """Keep the store until the others have read how it ended."""
        others = [] if self.launch.launcher == "alone" else range(1, self.size)
        until = time.monotonic() + patience_s
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
                store.set(f"bye/{self.launch.rank}", True)
                raise ConfigError(job["wrong"])
            if "stopped" in job:
                store.set(f"bye/{self.launch.rank}", True)
                return Summary("stopped", self.exit_code({"status": "stopped"}), Path(), {})
            self.config, self.job, self.run_dir = from_record(job["config"]), job, Path(job["run_dir"])
            outcome = self.supervise(store, address, key, [self.launch.rank])
            with contextlib.suppress(StoreLost):  # then rank 0 waits for nobody any more
                if self.role_runs:
                    store.set(f"running/{self.launch.rank}", True)
                store.set(f"bye/{self.launch.rank}", True)
                if self.ends_all or self.role_runs:
                    # launchers end all ranks when one fails, and rank 0 has to write down how it came to that
                    store.wait("the end of rank 0", LAST_S)
            return Summary(outcome["status"], self.exit_code(outcome), self.run_dir, {})
        finally:
            self.zygote.close()

    def find_store(self) -> tuple[StoreClient, str, tuple[str, int]]:
        """Take up rank 0's invitation; an old one, of an attempt before this, leads nowhere and is asked for again."""
        until = time.monotonic() + self.start_s
        while True:
            invitation = self.exchange(None)
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

    def exchange(self, invitation: dict[str, Any] | None) -> dict[str, Any]:
        return launchers.exchange(self.launch, invitation, self.start_s, keep_mpi=not self.config.cluster.supervise)

    def beside_its_role(self, part: Callable[[], Summary]) -> Summary:
        """Take this process's part in a thread, while the main thread, which this is, runs the role. Ends the process where a role is left that
        can't be ended otherwise, or other ranks would wait for this one."""
        role = self.zygote
        assert isinstance(role, InProcess), "there is no supervisor"
        ended: Future[Summary] = Future()

        def take_part() -> None:
            try:
                summary = part()
                if self.role_runs or self.ends_all:
                    self.end(last_words(summary), summary.code)
                ended.set_result(summary)
            except ConfigError as error:
                if self.role_runs:
                    self.end(f"wrong configuration: {error}", 2)
                ended.set_exception(error)
            except BaseException:
                self.end(traceback.format_exc(), 1)

        threading.Thread(target=take_part, daemon=True, name="job").start()
        role.serve()
        summary = ended.result()
        role.leave()
        return summary

    @property
    def role_runs(self) -> bool:
        """Whether this process has a role that goes on after it was given up."""
        return isinstance(self.zygote, InProcess) and self.zygote.running

    def end(self, words: str, code: int) -> NoReturn:
        if words:
            print(words, file=self.console, flush=True)
        launchers.end(code)

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
        if not self.config.cluster.supervise and self.size > 1:
            self.ends_all = outcome["status"] == "failed" or "control/abandoned" in supervisor.control
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
