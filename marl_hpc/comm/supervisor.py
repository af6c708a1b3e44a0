"""A rank's supervisor: starts its role process, judges it, starts it again, and keeps the launcher out of it. Torch-free.

Launchers kill or restart everything when one process dies; they only ever see supervisors, which don't. Under a launcher a
supervisor has one rank; without one it has all of them.

What a role process can end with: 0 done; 75 stopped with a checkpoint; 1 its own exception, which ends the job; 3 a peer was lost,
which isn't its fault. Anything else (a signal, a passed deadline) is a fault: a rollout worker is replaced alone, any other role
raises the *generation*, and every role process starts again from the last complete checkpoint.

With cluster.supervise=false the role is in the same process (`in_process`), and nothing can be started again: any fault ends the job.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from marl_hpc.comm.in_process import AnyZygote
from marl_hpc.comm.store import AnyStore, StoreLost
from marl_hpc.comm.zygote import FAILED, LOST, SIGNALS, Stamp, Zygote
from marl_hpc.config import Config

STOPPED = 75  # EX_TEMPFAIL
SAVES_NOTHING = ("rollout", "inference")  # roles that a checkpoint can do without
SETTLE_S = 5.0  # how long role processes of an old generation, or a peer's supervisor, get before we act


@dataclass(kw_only=True)
class Child:
    """A role process."""

    rank: int
    role: str
    pid: int
    generation: int
    stamp: Stamp
    killed_because: str | None = None
    lost_since: float | None = None
    lost_because: str = ""


class Ended(NamedTuple):
    """How a rank's last process ended, and in which generation; ranks that others still need start again in the next."""

    code: int
    generation: int


@dataclass(kw_only=True)
class Supervisor:
    """Supervises `ranks` of this process until the job has an outcome."""

    store: AnyStore
    config: Config
    ranks: list[int]
    roles: list[str]
    job: dict[str, Any]  # what every role process is started with
    zygote: AnyZygote
    signals: list[int]  # received so far; appended to by the handlers
    logs: Callable[[int], int]  # rank -> descriptor to write its output to
    each_second: Callable[[], None] = lambda: None
    before_generation: Callable[[int], None] | None = None  # rank 0: names the checkpoint that a generation starts from
    lead: bool = False
    children: dict[int, Child] = field(default_factory=dict)
    faults: dict[int, list[float]] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)
    lost_store: str | None = None
    stop_deadline: float | None = None
    ended: dict[int, Ended] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)  # rank -> generation it waits to be started in
    prepared: int = -1  # newest generation whose start is named
    heard: dict[int, tuple[int, int]] = field(default_factory=dict)  # another supervisor's rank -> last beat, our seconds since

    def run(self) -> dict[str, Any]:
        """Returns the job's outcome: {"status": finished | stopped | failed, "reason": …}, with "lost" where a supervisor is gone."""
        threading.Thread(target=self._watch, daemon=True, name="control").start()
        if not self.lead:
            threading.Thread(target=self._beat, daemon=True, name="alive").start()
        for rank in self.ranks:
            self.waiting[rank] = 0
        next_second = time.monotonic() + 1
        while True:
            self._pass_signals()
            outcome = self.control.get("control/outcome")
            if outcome is not None:
                self._kill_all("the job has ended")
                return outcome
            if self.lost_store:
                self._kill_all(self.lost_store)
                return self._lost(self.lost_store)
            try:
                self._tend()
                if time.monotonic() >= next_second:
                    next_second = time.monotonic() + 1
                    self.each_second()
                    if self.lead:
                        self._listen()
            except StoreLost as error:
                self.lost_store = str(error)

    def _lost(self, reason: str) -> dict[str, Any]:
        """The outcome where a whole rank is gone: a supervisor was there, whose end is nobody's fault, or it was the role itself."""
        return {"status": "stopped" if self.config.cluster.supervise else "failed", "reason": reason, "lost": True}

    def _watch(self) -> None:
        known: dict[str, Any] = {}
        try:
            while True:
                known = self.store.watch("control/", known, 10.0)
                self.control = known
        except StoreLost as error:
            self.lost_store = str(error)

    def _beat(self) -> None:
        """Tell rank 0's supervisor each second that this one is there. Not by the main loop: that waits for the first import of torch."""
        beat = 0
        try:
            while True:
                beat += 1
                self.store.set(f"alive/{self.ranks[0]}", beat)
                time.sleep(1.0)
        except StoreLost as error:
            self.lost_store = str(error)

    def _listen(self) -> None:
        """Called each second: end the job, resumable, when another supervisor is silent. Our own seconds count, not the clock's: who
        suspends a job suspends all of it."""
        timeouts, supervise = self.config.timeouts, self.config.cluster.supervise
        # a role in the same process may keep Python to itself for a step
        allowed_s = timeouts.scale * (timeouts.node_s if supervise else max(timeouts.node_s, timeouts.step_s))
        if "control/stop" in self.control:  # nobody may take longer now
            allowed_s = min(allowed_s, self.config.run.grace_s)
        for rank in set(range(len(self.roles))).difference(self.ranks):
            beat = self.store.get(f"alive/{rank}") or 0
            last, seconds = self.heard.get(rank, (0, 0))
            self.heard[rank] = (beat, 0 if beat != last else seconds + 1)
            if self.heard[rank][1] > allowed_s:
                who = "its supervisor" if supervise else "it"
                text = f"rank {rank} ({self.roles[rank]}) or its node is lost: {who} said nothing for {allowed_s:.0f} s"
                self.store.set(f"fault/{rank}/lost", text)
                self.store.set_default("control/outcome", self._lost(text))

    def _pass_signals(self) -> None:
        if self.signals and "control/stop" not in self.control:
            name = signal.Signals(self.signals[0]).name
            self.control = {
                **self.control,
                "control/stop": self.store.set_default("control/stop", f"{name} at rank {self.ranks[0]}"),
            }

    def _tend(self) -> None:
        generation = self.control.get("control/generation", 0)
        try:
            self._start_waiting(generation)
            for event in self.zygote.events(0.05):
                if "exited" in event:
                    self._exited(event)
        except StoreLost:
            raise
        except OSError:
            self._lost_zygote()
        for child in list(self.children.values()):
            self._judge(child, generation)
        if "control/stop" in self.control:
            self._enforce_stop()
        if self.lead:
            self._conclude()

    def _start_waiting(self, generation: int) -> None:
        if self.before_generation is not None and self.prepared < generation and self.ranks[0] not in self.children:
            self.before_generation(generation)
            self.prepared = generation
        if "control/stop" in self.control:
            return
        for rank, ended in self.ended.items():
            if ended.generation < generation:
                self.waiting.setdefault(rank, generation)
        for rank, wanted in list(self.waiting.items()):
            if generation >= wanted and rank not in self.children:
                del self.waiting[rank]
                self._start(rank, generation)

    def _start(self, rank: int, generation: int) -> None:
        descriptor = os.memfd_create(f"marl_hpc-stamp-{rank}")
        os.ftruncate(descriptor, Stamp.SIZE)
        stamp = Stamp(descriptor)
        timeouts = self.config.timeouts
        stamp.expect_within(timeouts.start_s * timeouts.scale)
        job = {**self.job, "rank": rank, "generation": generation}
        log = self.logs(rank)
        try:
            self.zygote.start(rank, "marl_hpc.train:run_rank", job, log, descriptor)
            pid = self._pid(rank)
        except OSError:
            self.waiting[rank] = generation
            raise
        finally:
            os.close(log)
            os.close(descriptor)
        self.children[rank] = Child(rank=rank, role=self.roles[rank], pid=pid, generation=generation, stamp=stamp)
        self.ended.pop(rank, None)

    def _pid(self, rank: int) -> int:
        """The zygote answers a start at once; what else it says meanwhile is handled as usual."""
        pid = None
        while pid is None:
            for event in self.zygote.events(1.0):
                if "exited" in event:
                    self._exited(event)
                elif event.get("started") == rank:
                    pid = event["pid"]
        return pid

    def _exited(self, event: dict[str, Any]) -> None:
        rank, code, why = event["exited"], event["code"], event.get("why", "")
        child = self.children.pop(rank, None)
        if child is None:
            return
        if code in (0, STOPPED):
            self._end(rank, code, child.generation)
        elif code == FAILED and child.killed_because is None:
            failure = self.store.get(f"failure/{rank}") or why or f"see logs/rank_{rank}.log"
            self._decide("failed", f"rank {rank} ({child.role}) failed:\n{failure}")
        elif code == LOST:
            # somebody else's fault raises the generation; if nobody does, the connection itself is at fault
            self.children[rank] = child
            child.lost_since, child.lost_because = time.monotonic(), why
        else:
            text = child.killed_because or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
            self._fault(child, text)

    def _judge(self, child: Child, generation: int) -> None:
        if child.lost_since is not None:
            if generation > child.generation:
                del self.children[child.rank]
                self.waiting[child.rank] = generation
            elif time.monotonic() - child.lost_since > SETTLE_S:
                del self.children[child.rank]
                self._fault(
                    child, "lost contact with a peer" + (f": {child.lost_because}" if child.lost_because else " that is alive")
                )
            return
        if child.killed_because is not None:
            return
        if generation > child.generation and child.stamp.overdue_s < 0:
            # it leaves by itself; from now on it has SETTLE_S to do so
            child.stamp.expect_within(min(SETTLE_S, -child.stamp.overdue_s))
        if child.stamp.overdue_s > 0:
            self._kill(
                child, "showed no progress before its deadline (if it is only slow, raise timeouts.step_s, start_s or scale)"
            )

    def _end(self, rank: int, code: int, generation: int) -> None:
        self.ended[rank] = Ended(code, generation)
        self.store.set(f"exit/{rank}", self.ended[rank])

    def _fault(self, child: Child, text: str) -> None:
        trained = self.store.get(f"control/trained/{child.generation}")
        if trained is not None:  # the result is there, and nobody needs this one any more
            self._end(child.rank, trained, child.generation)
            return
        if "control/stop" in self.control:
            self._end(child.rank, STOPPED, child.generation)
            if not child.role.startswith(SAVES_NOTHING):
                self.store.set_default("control/abandoned", f"rank {child.rank} ({child.role}) {text} while stopping")
            return
        if not self.config.cluster.supervise:
            line = f"rank {child.rank} ({child.role}) {text}"
            self.store.set(f"fault/{child.rank}/1", line)
            self._decide("failed", f"{line}; with cluster.supervise=false nothing is started again: see logs/rank_{child.rank}.log")
            return
        if self._too_many(child.rank, text):
            return
        if child.generation < self.control.get("control/generation", 0):
            self.waiting[child.rank] = child.generation + 1
        elif child.role.startswith("rollout") and self.config.cluster.membership == "elastic" and self.job.get("team", 1) == 1:
            self.waiting[child.rank] = child.generation
        else:
            self.waiting[child.rank] = child.generation + 1
            self.store.raise_to("control/generation", child.generation + 1)

    def _too_many(self, rank: int, text: str) -> bool:
        """Note a fault of this rank; True when it was one too many, and the job has failed."""
        limits = self.config.faults
        window_s = limits.window_s * self.config.timeouts.scale
        recent = [t for t in self.faults.get(rank, []) if time.monotonic() - t < window_s] + [time.monotonic()]
        self.faults[rank] = recent
        line = f"rank {rank} ({self.roles[rank]}) {text}"
        self.store.set(f"fault/{rank}/{len(recent)}/{time.time():.3f}", line)
        if len(recent) > limits.limit:
            self._decide(
                "failed",
                f"{line}: fault {len(recent)} within {window_s:.0f} s, faults.limit={limits.limit}; see logs/rank_{rank}.log",
            )
        return len(recent) > limits.limit

    def _lost_zygote(self) -> None:
        """All role processes of this supervisor died with it."""
        self.zygote.close()
        self.zygote = Zygote()
        for rank in self.waiting:
            if rank not in self.children:
                self._too_many(
                    rank, "couldn't be started: the process that it is forked from died; see the output of its supervisor"
                )
        for child in list(self.children.values()):
            del self.children[child.rank]
            if child.lost_since is None:
                self._fault(child, "died with the process it was forked from")
            else:
                self.waiting[child.rank] = child.generation

    def _enforce_stop(self) -> None:
        """Nobody is started any more, and who hasn't saved in time is ended."""
        if self.stop_deadline is None:
            self.stop_deadline = time.monotonic() + self.config.run.grace_s
        gone_wrong = self.control.get("control/abandoned")
        for rank in list(self.waiting):
            self._end(rank, STOPPED, self.waiting.pop(rank))
        # who is silent longest comes first: it is the one that the others wait for, and it is named
        for child in sorted(self.children.values(), key=lambda child: -child.stamp.silent_s):
            if child.lost_since is not None:
                del self.children[child.rank]
                self._fault(child, "lost contact")
            elif gone_wrong or time.monotonic() > self.stop_deadline:
                text = f"didn't stop within run.grace_s={self.config.run.grace_s:g}"
                if not gone_wrong and not child.role.startswith(SAVES_NOTHING):
                    line = f"rank {child.rank} ({child.role}) {text}"
                    gone_wrong = self.store.set_default("control/abandoned", line)
                self._kill(child, text)

    def _conclude(self) -> None:
        generation, stopping = self.store.get("control/generation") or 0, "control/stop" in self.control
        exits = {key: Ended(*value) for key, value in self.store.scan("exit/").items()}
        if sum(stopping or ended.generation == generation for ended in exits.values()) == len(self.roles):
            stopped = exits["exit/0"].code == STOPPED
            reason = f"stopped by {self.control.get('control/stop', 'its learner')}" if stopped else "finished"
            self._decide("stopped" if stopped else "finished", reason)

    def _decide(self, status: str, reason: str) -> None:
        self.store.set_default("control/outcome", {"status": status, "reason": reason})

    def _kill(self, child: Child, reason: str) -> None:
        if child.killed_because is None:
            child.killed_because = reason
            self.zygote.kill(child.pid)

    def _kill_all(self, reason: str) -> None:
        for child in self.children.values():
            self._kill(child, reason)
        until = time.monotonic() + SETTLE_S
        alive = [child for child in self.children.values() if child.lost_since is None]
        try:
            while alive and time.monotonic() < until:
                gone = {event["pid"] for event in self.zygote.events(0.05) if "exited" in event}
                alive = [child for child in alive if child.pid not in gone]
        except ConnectionError:
            pass  # the zygote is gone, and they with it


def receive_signals() -> list[int]:
    """Install handlers that note SIGTERM, SIGINT and SIGUSR1, as early as possible; returns the list that they fill."""
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return received
