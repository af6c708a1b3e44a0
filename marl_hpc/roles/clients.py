"""Shards as one: what learners and rollout workers call. A policy is cut over the parameter shards; a worker has one dataset shard, and
one inference role where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from marl_hpc.actors import PolicyNetwork
from marl_hpc.comm.peers import Peer, Pending
from marl_hpc.metrics import Clock
from marl_hpc.roles.acting import Answer, Question
from marl_hpc.roles.parameter import slices
from marl_hpc.storage.reservoir import IMITATED, SEEN
from marl_hpc.storage.transfer import Receiver
from marl_hpc.types import ReplayConfig


class Stopping(Exception):
    """The run is being stopped: the shard answers nobody any more. A role that meets it saves what it has to and leaves."""


class World(Protocol):
    """What a role needs of its rank's world; see `marl_hpc.comm.world`."""

    rank: int
    patience_s: float

    @property
    def learners(self) -> int:
        """How many there are; 0 where one process is the whole world."""
        ...

    @property
    def stopping(self) -> bool: ...

    def stamp(self, allow_s: float | None = None) -> None:
        """Show the supervisor that this rank makes progress; `allow_s` for a next step that may take longer than usual."""
        ...

    def allowing(self, seconds: float) -> AbstractContextManager[None]:
        """Steps inside may take so long, those that wait for others included."""
        ...

    def gather(self, key: str, value: Any, members: Sequence[int] | None = None) -> list[Any]:
        """Every learner's value for this key, or that of these `members`, in learner order, once all have given theirs."""
        ...

    def report(self, clock: Clock) -> None:
        """Where this rank's time went so far; sent at most every other second."""
        ...

    def progress(self, record: dict[str, Any]) -> None:
        """What a person who watches the run wants to see now."""
        ...


class Batch(NamedTuple):
    """One interface's part of an iteration: packed rows [T, B, row] and memories, the place of each of the B copies among all, and what
    came along."""

    parts: dict[str, Tensor]  # rows, and policy/memory [C, B, …]
    columns: Tensor
    episodes: Tensor  # [E, 2 + G]: return, length, return of each group
    versions: list[int]
    drawn: dict[str, Tensor] | None = None  # from the interface's replay table, where it has one; {} while that has too little


class _Client:
    def __init__(self, peers: Sequence[Peer], world: World, clock: Clock) -> None:
        self.peers, self.world, self.clock = list(peers), world, clock

    def _wait(self, pending: Pending, what: str, describe: Callable[[], str] | None = None, deadline_s: float | None = None) -> Any:
        with self.clock.waiting(what):
            answer = pending.wait(
                deadline_s=deadline_s or self.world.patience_s,
                describe=describe or (lambda: f"no answer from {what}"),
                alive=self.world.stamp,
            )
        if isinstance(answer, dict) and "stopping" in answer:
            raise Stopping
        return answer


def joined(slices: Sequence[Tensor]) -> Tensor:
    """A flat vector from the shards' slices, in their order; where there is one it isn't copied, so it must not be written to."""
    return slices[0] if len(slices) == 1 else torch.cat(list(slices))


class ParameterClient(_Client):
    """All parameter shards. A reader names the version it wants, so the shards' answers always fit together."""

    def __init__(
        self,
        peers: Sequence[Peer],
        world: World,
        clock: Clock,
        dtype: torch.dtype = torch.float32,
        wanted: Sequence[str] | None = None,
    ) -> None:
        """`wanted`: the policies that are pulled; default: all."""
        super().__init__(peers, world, clock)
        self.dtype, self.wanted = dtype, None if wanted is None else list(wanted)
        self.receivers: dict[tuple[str, int], Receiver] = {}  # of each policy and shard

    def publish(self, policy: str, version: int, values: Tensor) -> None:
        """Store a policy's version on every shard; when this returns, it can be read whole. `values` must not change any more."""
        cuts = slices(len(values), len(self.peers))
        calls = [peer.call("publish", policy, version, values[cut]) for peer, cut in zip(self.peers, cuts, strict=True)]
        for call in calls:
            self._wait(call, "parameter shards")

    def pull(self, version: int) -> dict[str, Tensor] | int:
        """{policy: flat parameters} of exactly this version, waiting for it; or the final version when training ended before."""
        return self.take(self.ask(version), version)

    def ask(self, version: int) -> list[Pending]:
        """The beginning of `pull`: a call to each shard."""
        return [
            peer.call(
                "pull", version, max((r.have for (_, at), r in self.receivers.items() if at == shard), default=-1), self.wanted
            )
            for shard, peer in enumerate(self.peers)
        ]

    def take(self, calls: Sequence[Pending], version: int) -> dict[str, Tensor] | int:
        """The end of `pull`."""

        def describe() -> str:
            return f"version {version} of the policies wasn't published in {self.world.patience_s:.0f} s; are the learners alive?"

        answers = [self._wait(call, "parameter shards", describe) for call in calls]
        for answer in answers:
            if "final" in answer:
                return answer["final"]
        return {
            name: joined([
                self.receivers.setdefault((name, shard), Receiver(self.dtype)).receive(version, answer["values"][name])
                for shard, answer in enumerate(answers)
            ])
            for name in answers[0]["values"]
        }  # fmt: skip

    def pin(self, name: str, policy: str, version: int) -> None:
        """Keep a version that is published under a name; see `storage.pins`. When this returns, it can be read whole."""
        self._all("pin", name, policy, version)

    def keep(self, name: str, version: int, values: Tensor) -> None:
        """Keep these values under a name, as `pin` does; they must not change any more."""
        calls = [
            peer.call("keep", name, version, values[cut])
            for peer, cut in zip(self.peers, slices(len(values), len(self.peers)), strict=True)
        ]
        for call in calls:
            self._wait(call, "parameter shards")

    def pinned(self, name: str) -> tuple[int, Tensor]:
        """(version, flat parameters) of a pin."""
        answers = self._all("pinned", name)
        return answers[0][0], joined([values for _, values in answers])

    def unpin(self, name: str) -> None:
        self._all("unpin", name)

    def finish(self, version: int) -> None:
        self._all("finish", version)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What each shard answers."""
        calls = [peer.call(method, *arguments) for peer in self.peers]
        return [self._wait(call, "parameter shards") for call in calls]

    def save(self, folder: Path, version: int, deadline_s: float) -> dict[str, str]:
        """Each shard writes its file; returns {file name: checksum}. Raises TimeoutError after `deadline_s`."""
        calls = [(peer, peer.call("save", str(folder), version)) for peer in self.peers]

        def describe(peer: Peer) -> str:
            return f"{peer.name} hasn't written to {folder} in {deadline_s:.0f} s; is the file system slow? raise timeouts.checkpoint_s"

        return dict(self._wait(call, "parameter shards", lambda peer=peer: describe(peer), deadline_s) for peer, call in calls)


class DatasetClient(_Client):
    """All dataset shards, for a learner; a worker uses the one it writes to."""

    def __init__(
        self, peers: Sequence[Peer], world: World, clock: Clock, copies: int, nearest: Sequence[int], team: int = 1
    ) -> None:
        """`copies` of the environment per worker; `nearest` is the shard that each worker writes to. `team` workers, one after the
        other, step the same copies."""
        super().__init__(peers, world, clock)
        self.copies, self.nearest, self.team = copies, nearest, team

    def of_worker(self, worker: int) -> Peer:
        return self.peers[self.nearest[worker]]

    def next_sequence(self, worker: int) -> int:
        return self._wait(self.of_worker(worker).call("next_sequence", worker), "dataset shard")

    def insert(self, worker: int, sequence: int, rows: dict[str, dict[str, Tensor]], episodes: Tensor, version: int) -> None:
        """Returns when the fragment is stored. The tensors must not change any more."""
        self._wait(self.of_worker(worker).call("insert", worker, sequence, rows, episodes, version), "room in the dataset shard")

    def insert_evaluation(self, version: int, worker: int, episodes: Tensor) -> None:
        self._wait(self.of_worker(worker).call("insert_evaluation", version, worker, episodes), "dataset shard")

    def sample(self, iteration: int, interface: str, part: int, parts: int) -> Batch:
        """This replica's part of an iteration, in worker order whatever order fragments came in; waits until all are there."""
        pieces: dict[int, tuple[dict[str, Tensor], int, Tensor, int]] = {}
        calls = [(peer, peer.call("sample", iteration, interface, part, parts)) for peer in self.peers]
        for peer, call in calls:
            pieces |= self._wait(call, "dataset shards", lambda peer=peer: self._starved(peer))
        ordered = [pieces[worker] for worker in sorted(pieces)]
        columns = [
            torch.arange(tensors["rows"].shape[1]) + worker // self.team * self.copies + first
            for worker, (tensors, first, _, _) in zip(sorted(pieces), ordered, strict=True)
        ]
        return Batch(
            parts={name: torch.cat([piece[0][name] for piece in ordered], 1) for name in ordered[0][0]},
            columns=torch.cat(columns),
            episodes=torch.cat([piece[2] for piece in ordered]),
            versions=[piece[3] for piece in ordered],
        )

    def draw(self, iteration: int, interface: str, config: ReplayConfig, steps: int, part: int, parts: int) -> dict[str, Tensor]:
        """This replica's part of an iteration's draw from all shards' replay tables: rows [L, U, S, row] and what goes with them,
        weights relative to the largest; {} as long as there is too little. `steps` are the environment steps of an iteration."""
        updates = config.updates(steps)
        bounds = [i * config.batch // len(self.peers) for i in range(len(self.peers) + 1)]
        sizes = [b - a for a, b in pairwise(bounds)]
        calls = [
            (peer, peer.call("draw", iteration, interface, updates, size)) for peer, size in zip(self.peers, sizes, strict=True)
        ]
        pieces = [self._wait(call, "dataset shards", lambda peer=peer: self._starved(peer))["items"] for peer, call in calls]
        if not all(pieces):
            return {}
        imitated = among([
            {name: piece.pop(name) for name in list(piece) if name.startswith((IMITATED, SEEN))} for piece in pieces
        ])  # fmt: skip
        if imitated is None:
            return {}
        pieces = [{**piece, "shard": torch.full_like(piece["place"], i)} for i, piece in enumerate(pieces)]
        whole = {name: torch.cat([piece[name] for piece in pieces], 2) for name in pieces[0]}
        whole["weight"] /= whole["weight"].max()  # over all shards, so that they are relative to one number
        whole |= imitated
        return {name: x[:, :, part * x.shape[2] // parts : (part + 1) * x.shape[2] // parts] for name, x in whole.items()}

    def set_priorities(self, interface: str, shards: Tensor, places: Tensor, priorities: Tensor) -> None:
        """New priorities of items that were drawn; `shards`, `places` and `priorities` are alike in shape."""
        calls = []
        for i, peer in enumerate(self.peers):
            own = shards == i
            if own.any():
                calls.append(peer.call("set_priorities", interface, places[own], priorities[own].cpu()))
        for call in calls:
            self._wait(call, "dataset shards")

    def save(self, folder: Path, deadline_s: float) -> dict[str, str]:
        """Each shard writes its replay tables; returns {file name: checksum}. Raises TimeoutError after `deadline_s`."""
        calls = [(peer, peer.call("save", str(folder))) for peer in self.peers]

        def describe(peer: Peer) -> str:
            return f"{peer.name} hasn't written to {folder} in {deadline_s:.0f} s; is the file system slow? raise timeouts.checkpoint_s"

        written = [self._wait(call, "dataset shards", lambda peer=peer: describe(peer), deadline_s) for peer, call in calls]
        return dict(pair for pair in written if pair is not None)

    def acknowledge(self, iteration: int, interface: str, part: int) -> None:
        for call in [peer.call("acknowledge", iteration, interface, part) for peer in self.peers]:
            self._wait(call, "dataset shards")

    def evaluation(self, version: int, *, wait: bool) -> Tensor | None:
        """Episodes [E, 3] of a version's evaluation, or None while some are missing."""
        calls = [(peer, peer.call("evaluation", version, wait)) for peer in self.peers]
        parts = [self._wait(call, "evaluation", lambda peer=peer: self._starved(peer)) for peer, call in calls]
        return torch.cat([part["episodes"] for part in parts]) if all(parts) else None

    def _starved(self, peer: Peer) -> str:
        state = peer.call("describe").wait(deadline_s=5.0, describe=lambda: f"{peer.name} doesn't answer")
        return (
            f"{peer.name} gave nothing in {self.world.patience_s:.0f} s: {state}; a slow environment needs a larger timeouts.scale"
        )


def among(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """Of what the shards' reservoirs gave, a batch each [1, U, S, …], one batch: from each in proportion to what it has seen, so that all that
    ever came is drawn alike. {} where there are no reservoirs, None while they are empty."""
    if not any(pieces):
        return {}
    seen = [int(piece.pop(SEEN)) for piece in pieces]
    if not sum(seen):
        return None
    size = next(x.shape[2] for piece in pieces for x in piece.values())
    bounds = [round(sum(seen[:i]) * size / sum(seen)) for i in range(len(seen) + 1)]
    names = next(piece for piece in pieces if piece)
    own = [(piece, b - a) for piece, (a, b) in zip(pieces, pairwise(bounds), strict=True) if b > a]
    return {name: torch.cat([piece[name][:, :, :count] for piece, count in own], 2) for name in names}


class AskingClient(_Client):
    """An inference role as what a worker acts by; see `roles.acting.Acting`."""

    def __init__(self, peer: Peer, worker: int, policies: Mapping[str, PolicyNetwork], world: World, clock: Clock) -> None:
        """`policies` have groups and shapes, and no numbers."""
        super().__init__([peer], world, clock)
        self.worker, self.policies = worker, policies
        self.version: int | str | None = None

    def act(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        asked = {name: tuple(question) for name, question in questions.items()}
        return {name: Answer(*said) for name, said in self._call("inference", "act", self.worker, self.version, asked).items()}

    def _call(self, what: str, method: str, *arguments: Any) -> Any:
        return self._wait(self.peers[0].call(method, *arguments), what, self._silent)

    def _silent(self) -> str:
        (peer,) = self.peers
        state = peer.call("describe").wait(deadline_s=5.0, describe=lambda: f"{peer.name} doesn't answer")
        return f"{peer.name} gave rollout/{self.worker} nothing in {self.world.patience_s:.0f} s: {state}"


class InferenceClient(AskingClient):
    """See `roles.acting.Inference`."""

    def turn_to(self, version: int) -> int | None:
        answer = self._call("a version of the policies", "turn_to", self.worker, version)
        self.version = None if "final" in answer else version
        return answer.get("final")
