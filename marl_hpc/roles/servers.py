"""The shards of asynchronous training as one: what its learners and rollout workers call."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl_hpc.comm.peers import Peer, Pending
from marl_hpc.metrics import Clock
from marl_hpc.roles.clients import Batch, DatasetClient, Stopping, World, _Client, joined
from marl_hpc.roles.parameter import slices
from marl_hpc.storage.transfer import Receiver


class Exchanged(NamedTuple):
    """What a gradient is answered with."""

    version: int
    updates: int  # gradients of all learners up to it
    values: Tensor  # [P], the whole vector
    dropped: bool
    moments: Tensor  # the value statistics of all learners
    status: dict[str, Any]


class Newest(NamedTuple):
    policies: dict[str, Tensor]  # interface -> its policies' flat parameters, where there is something newer
    versions: dict[str, int]
    status: dict[str, Any]


class ParameterServers(_Client):
    """All parameter shards, in asynchronous training. Shard 0 is asked first: it says which version to read from the others."""

    def __init__(self, peers: Sequence[Peer], world: World, clock: Clock, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(peers, world, clock)
        self.dtype = dtype
        self.names: set[str] = set()  # interfaces that have been read
        self.receivers: dict[tuple[str, int], Receiver] = {}  # of each interface and shard

    def define(self, name: str, values: Tensor, policies: int, parts: list[tuple[int, int, dict[str, Any]]]) -> None:
        """An interface's vector as training starts, unless a learner or a checkpoint has said before; `policies` of its numbers are the
        policies'. `values` must not change any more."""
        cuts = slices(len(values), len(self.peers))
        for call in [
            peer.call("define", name, values[cut], len(values), policies, parts) for peer, cut in zip(self.peers, cuts, strict=True)
        ]:
            self._wait(call, "parameter shards")

    def exchange(
        self, name: str, learner: int, sequence: int, gradient: Tensor, part: int, base: tuple[int, int], moments: Tensor | None
    ) -> Exchanged:
        """Hand in a gradient [P] that was computed at version and number of updates `base`; returns with the newest version when the learner may go on.
        Repeating a sequence number changes nothing."""
        cuts = slices(len(gradient), len(self.peers))
        for call in [
            peer.call("stage", name, learner, sequence, gradient[cut], part)
            for peer, cut in zip(self.peers[1:], cuts[1:], strict=True)
        ]:
            self._wait(call, "parameter shards")
        answer = self._wait(
            self.peers[0].call("commit", name, learner, sequence, gradient[cuts[0]], part, base, moments),
            "other learners",
            self._waits,
        )
        return self.whole(name, answer)

    def latest(self, name: str) -> Exchanged:
        return self.whole(name, self._wait(self.peers[0].call("latest", name), "parameter shards"))

    def whole(self, name: str, answer: dict[str, Any]) -> Exchanged:
        """The vector of which shard 0 has answered its slice; a newer one where the other shards don't keep that version any more."""
        dropped, status = answer.get("dropped", False), answer.get("status", {})
        until = time.monotonic() + self.world.patience_s
        while time.monotonic() < until:
            rest = self.rest(name, [[answer["version"], answer["order"]]] * (len(self.peers) - 1))
            if rest is not None:
                values = joined([answer["values"], *rest])
                return Exchanged(answer["version"], answer["updates"], values, dropped, answer["moments"], status)
            answer = self._wait(self.peers[0].call("latest", name), "parameter shards")
        raise TimeoutError(self._outrun(name))

    def rest(self, name: str, asked: list[list[Any]]) -> list[Any] | None:
        """What the shards after the first answer to `read`, each asked for its own; None where one hasn't that version any more."""
        calls = [peer.call("read", name, *own) for peer, own in zip(self.peers[1:], asked, strict=True)]
        answers = [self._wait(call, "parameter shards") for call in calls]
        return None if any("gone" in answer for answer in answers) else [answer["values"] for answer in answers]

    def newest(self, have: dict[str, int]) -> Newest:
        """Policies that are newer than those of these versions {interface: version}; one tiny reply where there are none."""
        policies: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        until = time.monotonic() + self.world.patience_s
        while time.monotonic() < until:
            known = {name: (have.get(name, -1), self.receiver(name, 0).have) for name in self.names | have.keys()}
            known |= dict.fromkeys(versions, (1 << 60, -1))  # those are here
            answer = self._wait(
                self.peers[0].call("newest", known), "parameter shards", lambda: "no learner has said what it trains"
            )
            newer = answer.pop("newer")
            for name, (version, sent, order) in newer.items():
                self.names.add(name)
                own = [[version, order, True, self.receiver(name, shard).have] for shard in range(1, len(self.peers))]
                rest = self.rest(name, own)
                if rest is not None:
                    parts = [self.receiver(name, shard).receive(version, part) for shard, part in enumerate([sent, *rest])]
                    versions[name], policies[name] = version, joined(parts)
            if all(name in versions for name in newer):
                return Newest(policies, versions, answer)
        raise TimeoutError(self._outrun(", ".join(self.names)))

    def receiver(self, name: str, shard: int) -> Receiver:
        return self.receivers.setdefault((name, shard), Receiver(self.dtype))

    def _outrun(self, name: str) -> str:
        return f"no version of {name} could be read whole in {self.world.patience_s:.0f} s: updates come faster than reads"

    def pinned(self, pin: str) -> tuple[dict[str, Tensor], dict[str, int]]:
        """({interface: its policies' flat parameters}, versions) of a pin."""
        first = self._wait(self.peers[0].call("pinned", pin, {}), "parameter shards")
        rest = [
            self._wait(call, "parameter shards") for call in [peer.call("pinned", pin, first["orders"]) for peer in self.peers[1:]]
        ]
        answers = [first, *rest]
        found = {name: joined([answer["pinned"][name][1] for answer in answers]) for name in first["pinned"]}
        return found, {name: version for name, (version, _) in first["pinned"].items()}

    def learned(self, name: str, learner: int, batch: int, steps: int) -> dict[str, Any]:
        return self._wait(self.peers[0].call("learned", name, learner, batch, steps), "parameter shards")

    def status(self) -> dict[str, Any]:
        return self._wait(self.peers[0].call("status"), "parameter shards")

    def counts(self) -> dict[str, Any]:
        return self._wait(self.peers[0].call("counts"), "parameter shards")

    def end(self, failed: str = "") -> None:
        self._wait(self.peers[0].call("end", failed), "parameter shards")

    def leave(self, learner: int) -> None:
        self._wait(self.peers[0].call("leave", learner), "parameter shards")

    def unpin(self, evaluation: int) -> None:
        for call in [peer.call("unpin", evaluation) for peer in self.peers]:
            self._wait(call, "parameter shards")

    def hold(self) -> dict[str, Any]:
        """Let no update through until `release`; where training stands."""
        return self._wait(self.peers[0].call("hold"), "parameter shards")

    def save(self, folder: Path, orders: dict[str, Any], deadline_s: float) -> dict[str, str]:
        """Every shard writes the versions that are held. Returns {file name: checksum}. Raises TimeoutError after `deadline_s`."""
        calls = [(peer, peer.call("save", str(folder), orders)) for peer in self.peers]

        def describe(peer: Peer) -> str:
            return f"{peer.name} hasn't written to {folder} in {deadline_s:.0f} s; is the file system slow? raise timeouts.checkpoint_s"

        return dict(self._wait(call, "parameter shards", lambda peer=peer: describe(peer), deadline_s) for peer, call in calls)

    def release(self, saving: int) -> None:
        self._wait(self.peers[0].call("release", saving), "parameter shards")

    def _waits(self) -> str:
        counts = self.peers[0].call("counts").wait(deadline_s=5.0, describe=lambda: "parameter/0 doesn't answer")
        clocks = {name: course["clocks"] for name, course in counts.items()}
        return f"not allowed to go on for {self.world.patience_s:.0f} s; gradients by learner: {clocks}"


class DatasetServers(DatasetClient):
    """All dataset shards, in asynchronous training: a learner has an open request with each and takes what comes first."""

    def __init__(self, peers: Sequence[Peer], world: World, clock: Clock, copies: int, nearest: Sequence[int]) -> None:
        super().__init__(peers, world, clock, copies, nearest)
        self.requests: dict[tuple[str, int], Pending] = {}  # (interface, shard) -> its open lease
        self.waiting: dict[str, list[tuple[int, Any]]] = {}  # interface -> leased items (shard, item) that no batch has used
        self.arrived = threading.Event()

    def enlist(self, learner: int) -> None:
        for call in [peer.call("enlist", learner) for peer in self.peers]:
            self._wait(call, "dataset shards")

    def take(self, name: str, learner: int, count: int, version: int) -> tuple[Batch, list[tuple[int, Any]], int]:
        """(batch, its items for `acknowledge`, environment steps) of `count` items of an interface, waiting for them. Raises Stopping."""
        waiting = self.waiting.setdefault(name, [])
        until = time.monotonic() + self.world.patience_s
        with self.clock.waiting("dataset shards"):
            while True:
                self.arrived.clear()
                for shard, peer in enumerate(self.peers):
                    if (name, shard) not in self.requests and len(waiting) < count:
                        pending = peer.call("lease", name, learner, count - len(waiting), version)
                        self.requests[name, shard] = pending
                        pending.then(self.arrived.set)
                    self.harvest(name, shard, waiting)
                if len(waiting) >= count:
                    break
                if time.monotonic() > until:
                    raise TimeoutError("; ".join(self._starved(peer) for peer in self.peers))
                if not self.arrived.wait(1.0):
                    self.world.stamp()
        taken, self.waiting[name] = waiting[:count], waiting[count:]
        return self.together(taken), [(shard, item[0]) for shard, item in taken], sum(item[4] for _, item in taken)

    def harvest(self, name: str, shard: int, waiting: list[tuple[int, Any]]) -> None:
        pending = self.requests.get((name, shard))
        if pending is None or not pending.ready:
            return
        del self.requests[name, shard]
        answer = pending.wait(deadline_s=1.0, describe=lambda: "")
        if isinstance(answer, dict) or not answer:
            raise Stopping
        waiting += [(shard, item) for item in answer]

    def together(self, taken: list[tuple[int, Any]]) -> Batch:
        parts: dict[str, Tensor] = {}
        if taken[0][1][1]:
            parts = {key: torch.cat([item[1][key] for _, item in taken], 1) for key in taken[0][1][1]}
        copies = parts["rows"].shape[1] if parts else 0
        return Batch(
            parts=parts, columns=torch.arange(copies), episodes=torch.cat([item[2] for _, item in taken]),
            versions=[item[3] for _, item in taken],
        )  # fmt: skip

    def done(self, name: str, learner: int, items: list[tuple[int, Any]]) -> None:
        """Acknowledge the items of a batch that has been learned."""
        calls = []
        for shard, peer in enumerate(self.peers):
            own = [item for at, item in items if at == shard]
            if own:
                calls.append(peer.call("acknowledge", name, learner, own))
        for call in calls:
            self._wait(call, "dataset shards")

    def end(self) -> None:
        """Tell all shards that nobody learns any more."""
        for call in [peer.call("end") for peer in self.peers]:
            self._wait(call, "dataset shards")

    def counts(self) -> list[dict[str, Any]]:
        return [self._wait(call, "dataset shards") for call in [peer.call("counts") for peer in self.peers]]

    def insert_versioned(
        self, worker: int, sequence: int, rows: dict[str, dict[str, Tensor]], episodes: Tensor, versions: dict[str, int]
    ) -> None:
        self._wait(self.of_worker(worker).call("insert", worker, sequence, rows, episodes, versions), "room in the dataset shard")
