"""A role process's world: its place among the others, its handles of them, and what the supervisors want.

A watcher thread follows the control keys: a stop sets `stopping`; a new generation, or a lost store, ends this process at once, since
all that matters is in the last complete checkpoint.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from marl_hpc.comm import collectives, in_process, rpc
from marl_hpc.comm.network import LOOPBACK, interface_of, use_interface
from marl_hpc.comm.peers import Peer, PeerLost
from marl_hpc.comm.store import StoreClient, StoreLost
from marl_hpc.comm.zygote import LOST, Stamp

REPORT_EVERY_S = 2.0
STOPPED = 75
CORE = ("parameter", "dataset", "inference")


def end_process(code: int, why: str) -> NoReturn:
    """End this role process at once, from whatever thread."""
    print(why, flush=True)
    os._exit(code)


class StoppedJoining(Exception):
    """A stop came while this rank still looked for the others: it has nothing to save."""


@dataclass
class World:
    """See `roles.clients.World` for what roles use of it."""

    rank: int
    generation: int
    roles: list[str]  # of every rank
    store: StoreClient
    deadline: Stamp
    step_s: float  # how long one step of a main loop may take
    patience_s: float  # how long a peer that is alive may be waited for
    listeners: list[Callable[[], None]] = field(default_factory=list)
    control: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)  # how peers reach this process
    stores: list[Any] = field(default_factory=list)  # c10d stores live as long as who uses them
    reported: float = 0.0
    end: Callable[[int, str], NoReturn] = end_process

    @property
    def role(self) -> str:
        return self.roles[self.rank]

    def count(self, kind: str) -> int:
        return sum(role.startswith(f"{kind}/") for role in self.roles)

    @property
    def learners(self) -> int:
        return self.count("learner")

    @property
    def index(self) -> int:
        return int(self.role.partition("/")[2])

    @property
    def stopping(self) -> bool:
        return "control/stop" in self.control

    @property
    def training_ended(self) -> bool:
        return f"control/trained/{self.generation}" in self.control

    def stamp(self, allow_s: float | None = None) -> None:
        self.deadline.expect_within(self.step_s if allow_s is None else allow_s)

    @contextmanager
    def allowing(self, seconds: float) -> Iterator[None]:
        before, self.step_s = self.step_s, max(seconds, self.step_s)
        self.stamp()
        try:
            yield
        finally:
            self.step_s = before
            self.stamp()

    def gather(self, key: str, value: Any, members: Sequence[int] | None = None) -> list[Any]:
        members = range(self.learners) if members is None else members
        if len(members) <= 1:
            return [value]
        place = list(members).index(self.index)
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            self.stamp()
            values = self.store.gather(f"{self.generation}/{key}", place, len(members), value, 1.0)
            if values is not None:
                return values
        raise TimeoutError(
            f"not all {len(members)} learners came to {key} in {self.patience_s:.0f} s; see the other learners' logs"
        )

    def end_training(self, code: int) -> None:
        """Tell shards and workers that nobody needs them any more, and the supervisors what this generation ends with."""
        self.store.set(f"control/trained/{self.generation}", code)

    def report(self, clock: Any, final: bool = False) -> None:
        if final or time.monotonic() - self.reported > REPORT_EVERY_S:
            self.reported = time.monotonic()
            self.store.set(f"time/{self.rank}", {"role": self.role, **clock.totals()})

    def progress(self, record: dict[str, Any]) -> None:
        self.store.set("progress", record)

    def peers(self, kind: str) -> list[Peer]:
        """Handles of all roles of a kind, waiting until each has joined this generation."""
        found: list[Peer] = []
        for role in sorted((r for r in self.roles if r.startswith(f"{kind}/")), key=lambda r: int(r.partition("/")[2])):
            entry = self._wait(f"peer/{self.generation}/{role}", f"{role} to join")
            if entry.get("address"):
                rpc.introduce(entry["name"], entry["number"], entry["address"])
            found.append(rpc.RpcPeer(role, entry["name"]))
        return found

    def serve(self, target: Any, methods: tuple[str, ...]) -> None:
        """Answer peers' calls of these methods, and be found."""
        rpc.serve(target, methods)
        self.store.set(f"peer/{self.generation}/{self.role}", self.entry)

    def _wait(self, key: str, what: str) -> Any:
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            self.stamp()
            if self.stopping:
                raise StoppedJoining
            value = self.store.wait(key, 1.0)
            if value is not None:
                return value
        raise TimeoutError(f"{self.role} waited {self.patience_s:.0f} s for {what}; see that rank's log")

    def _watch(self) -> None:
        known: dict[str, Any] = {}
        try:
            while True:
                known = self.store.watch("control/", known, 10.0)
                stopped_before = self.stopping
                self.control = known
                if known.get("control/generation", 0) > self.generation:
                    self.end(LOST, f"generation {known['control/generation']} begins; leaving")
                if (self.stopping and not stopped_before) or self.training_ended:
                    for listener in self.listeners:
                        listener()
        except StoreLost as error:
            self.end(LOST, f"StoreLost: {error}")


@contextmanager
def join(job: dict[str, Any], deadline: Stamp, *, cuda: bool) -> Iterator[World]:
    """Join the job's world as its rank; leaving waits for nobody."""
    key = bytes.fromhex(job["key"])
    store = StoreClient(job["store"], key)
    timeouts, rank, generation = job["timeouts"], job["rank"], job["generation"]
    patience_s = timeouts["wait_s"] * timeouts["scale"]
    world = World(rank, generation, job["roles"], store, deadline, timeouts["step_s"] * timeouts["scale"], patience_s)
    if not job["config"]["cluster"]["supervise"]:
        world.end = in_process.leave  # the process is the supervisor's, too
    world.deadline.expect_within(timeouts["start_s"] * timeouts["scale"])
    address = LOOPBACK
    if not job["one_host"]:
        address = job["addresses"][str(rank)]
    interface = job["interface"] or interface_of(address)
    if interface is not None:
        os.environ.update(use_interface(interface))
    threading.Thread(target=world._watch, daemon=True, name="control").start()
    try:
        if len(world.roles) > 1:
            _join_rpc(world, job, address, patience_s)
            if kind := _exchanging(world, job):
                where, count = f"{kind}s/{generation}", world.count(kind)
                exchange_store = collectives.c10d_store(
                    world.index == 0,
                    address,
                    lambda at: store.set(where, at),
                    lambda: world._wait(where, f"{kind}/0's store"),
                    patience_s,
                )
                world.stores.append(exchange_store)
                # the slowest may start minutes after the first: all are here before anybody waits inside a collective
                world.gather(f"joining/{kind}", None, range(count))
                collective_s = timeouts["collective_s"] * timeouts["scale"]
                collectives.join_all(kind, exchange_store, world.index, count, cuda and kind == "learner", collective_s)
        yield world
    except (PeerLost, StoreLost) as error:
        # whose fault it is, the supervisors find out; a new generation ends this process from the watcher
        world.end(LOST, f"{type(error).__name__}: {error}")
    except StoppedJoining:
        world.end(STOPPED, "stopped before it had joined")
    except Exception:
        store.set(f"failure/{rank}", traceback.format_exc())
        raise
    if len(world.roles) > 1:
        rpc.leave()


def _exchanging(world: World, job: dict[str, Any]) -> str:
    """The kind of role that this rank has collectives with: learners sum gradients, or mix what agents hold, and workers who act for
    parts of the same agents tell each other what these do. Empty for the others."""
    kind = world.role.partition("/")[0]
    among = {"learner": job["config"]["sync"]["name"] == "bsp" and world.learners > 1, "rollout": job["team"] > 1}
    return kind if among.get(kind, False) else ""


def _join_rpc(world: World, job: dict[str, Any], address: str, patience_s: float) -> None:
    rpc.sign_with(bytes.fromhex(job["key"]))
    serves = world.role.split("/")[0] in CORE
    # parked answers live as long as their caller waits; the caller's own deadline comes first
    timeout_s, threads = 10 * patience_s, 4 if serves else 2
    if job["membership"] == "elastic":
        # nobody is replaced where nobody supervises, and torch lets a process that runs again have no other number
        number = world.store.add("next_number", 1) - 1 if job["config"]["cluster"]["supervise"] else world.rank
        name = f"{world.role.replace('/', '-')}:{number}"
        where = rpc.join_elastic(name, number, timeout_s, threads)
        world.entry = {"name": name, "number": number, "address": where}
    else:
        name = world.role.replace("/", "-")
        at = f"static/{world.generation}"
        static_store = collectives.c10d_store(
            world.rank == 0,
            address,
            lambda found: world.store.set(at, found),
            lambda: world._wait(at, "rank 0's store"),
            patience_s,
        )
        world.stores.append(static_store)
        rpc.join_static(static_store, name, world.rank, len(world.roles), timeout_s, threads)
        world.entry = {"name": name}


def pin_threads() -> None:
    """One thread a rank unless the user says otherwise: ranks share the cores, and sums must not depend on how many there are."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
