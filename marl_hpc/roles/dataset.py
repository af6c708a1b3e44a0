"""A dataset shard: fragments from its rollout workers, kept until every learner that needs them has learned from them.

A fragment is known by (worker, sequence): one that comes twice is stored once. A worker that is ahead of the learners waits for
room. What a learner samples stays until acknowledged after its update. Off-policy interfaces have a replay table besides: an
iteration's fragments enter it in worker order, and draws are keyed by the iteration, so that a run stays reproducible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from marl_hpc.comm.peers import Parking
from marl_hpc.keyed_random import REPLAY, RESERVOIR, generator
from marl_hpc.storage.checkpoint import checksum
from marl_hpc.storage.replay import ReplayTable
from marl_hpc.storage.reservoir import IMITATED, SEEN, Reservoir, capacity_of, dealt


class Fragment(NamedTuple):
    rows: dict[str, dict[str, Tensor]]  # interface -> packed rows [T, B, row], and memories [C, B, …]
    episodes: Tensor  # [episodes that ended, 2 + G]: return (mean over agents), length, return of each group
    version: int  # that collected it


class DatasetShard:
    handlers = (
        "next_sequence", "insert", "sample", "acknowledge", "insert_evaluation", "evaluation", "describe", "draw", "set_priorities", "save",
    )  # fmt: skip

    def __init__(
        self, index: int, workers: tuple[int, ...], consumers: int, capacity: int, start: int,
        tables: dict[str, ReplayTable] | None = None, seed: int = 0, capacity_bytes: float = math.inf,
        bring: dict[str, tuple[int, ...]] | None = None, forgets: Callable[[int], bool] = lambda iteration: False,
        reservoirs: dict[str, Reservoir] | None = None,
    ) -> None:  # fmt: skip
        """`workers` write here, and `bring` rows of interfaces: those who do, by interface, all where it isn't said; `consumers` (interface replicas) acknowledge each iteration; `capacity` is in fragments per worker,
        `capacity_bytes` of all that wait here (those of the iteration that is due are always taken);
        `tables` are the replay tables of the interfaces that have one; they are cleared before iterations for which `forgets`;
        `reservoirs` are those of the interfaces that imitate."""
        self.forgets, self.reservoirs = forgets, reservoirs or {}
        self.tables, self.seed, self.capacity_bytes = tables or {}, seed, capacity_bytes
        self.drawn: dict[str, tuple[int, dict[str, Tensor]]] = {}  # interface -> iteration, what was drawn for it
        self.index, self.workers, self.consumers, self.capacity = index, workers, consumers, capacity
        self.bring = bring or {}
        self.parking = Parking()
        self.fragments: dict[tuple[int, int], Fragment] = {}
        self.accepted = dict.fromkeys(workers, start)  # worker -> next sequence
        self.consumed = start  # iterations that every consumer has acknowledged
        self.acknowledged: dict[int, set[tuple[str, int]]] = {}
        self.evaluations: dict[int, dict[int, Tensor]] = {}
        self.started = time.monotonic()
        self.last_insert: tuple[float, int] | None = None

    def next_sequence(self, worker: int) -> int:
        """What the worker collects next: one that replaces a lost worker goes on where that one's accepted fragments end."""
        with self.parking.lock:
            return self.accepted[worker]

    def insert(self, worker: int, sequence: int, rows: dict[str, dict[str, Tensor]], episodes: Tensor, version: int) -> Any:
        """Store a fragment; the answer (True) waits for room. Raises ValueError when a worker skips a sequence number."""
        size_bytes = bytes_of(rows)

        def ready() -> bool | None:
            if sequence < self.accepted[worker]:
                return True  # a repetition
            if sequence > self.accepted[worker]:
                raise ValueError(f"rollout/{worker} sent fragment {sequence}; dataset/{self.index} expects {self.accepted[worker]}")
            if sequence >= self.consumed + self.capacity:
                return None
            if sequence > self.consumed and self.size_bytes + size_bytes > self.capacity_bytes:
                return None
            if len(self.workers) * size_bytes > self.capacity_bytes:
                raise ValueError(
                    f"dataset.queue_bytes={self.capacity_bytes:.0f} doesn't hold an iteration's fragments, {len(self.workers)} of {size_bytes} "
                    "bytes; raise it, or lower rollout.fragment or rollout.envs"
                )
            self.fragments[worker, sequence] = Fragment(rows, episodes, version)
            self.accepted[worker] = sequence + 1
            self.last_insert = (time.monotonic(), worker)
            return True

        with self.parking.lock:
            answer = self.parking.answer(ready)
            self.parking.settle()
        return answer

    def sample(self, iteration: int, interface: str, part: int, parts: int) -> Any:
        """One interface's rows of this iteration's fragments, for replica `part` of `parts`: {worker: ({"rows": [T, B', row], …}, first
        column, episodes, version)}. Waits until all workers of this shard have delivered."""

        def ready() -> dict[int, tuple[dict[str, Tensor], int, Tensor, int]] | None:
            bringing = self.bring.get(interface, self.workers)
            if any((worker, iteration) not in self.fragments for worker in bringing):
                return None
            answer = {}
            for worker in bringing:
                fragment = self.fragments[worker, iteration]
                tensors = fragment.rows[interface]
                copies = tensors["rows"].shape[1]
                first, last = part * copies // parts, (part + 1) * copies // parts
                own = {name: x[:, first:last] for name, x in tensors.items()}
                answer[worker] = (own, first, fragment.episodes, fragment.version)
            return answer

        return self.parking.answer(ready)

    def draw(self, iteration: int, interface: str, updates: int, batch: int) -> Any:
        """Items of an interface's replay table for an iteration (see `ReplayTable.draw`), after this iteration's fragments have
        entered it; fewer than `starts` steps there: {}. Waits until all workers of this shard have delivered."""

        def ready() -> dict[str, dict[str, Tensor]] | None:
            bringing = self.bring.get(interface, self.workers)
            if any((worker, iteration) not in self.fragments for worker in bringing):
                return None
            table = self.tables[interface]
            if self.drawn.get(interface, (-1, {}))[0] != iteration:  # another replica may have asked before
                if self.forgets(iteration):
                    table.clear()
                place = sorted(self.tables).index(interface)
                reservoir = self.reservoirs.get(interface)
                for worker in bringing:
                    table.insert(self.fragments[worker, iteration].rows[interface])
                    if reservoir is not None:
                        stream = generator(self.seed, RESERVOIR, iteration, self.index, place, worker)
                        reservoir.insert(self.fragments[worker, iteration].rows[interface], stream)
                items = {}
                if table.ready:
                    items = table.draw(generator(self.seed, REPLAY, iteration, self.index, place), updates, batch)
                if reservoir is not None and items:
                    imitated = {}
                    if reservoir.size:
                        imitated = reservoir.draw(generator(self.seed, RESERVOIR, iteration, self.index, place), updates)
                    items |= {f"{IMITATED}{name}": x for name, x in imitated.items()}
                    items[SEEN] = torch.tensor(reservoir.seen)
                self.drawn[interface] = (iteration, items)
            return {"items": self.drawn[interface][1]}

        return self.parking.answer(ready)

    def set_priorities(self, interface: str, places: Tensor, priorities: Tensor) -> None:
        with self.parking.lock:
            self.tables[interface].set_priorities(places, priorities)

    def save(self, folder: str) -> tuple[str, str] | None:
        """Write the replay tables; returns (file name, checksum), or None without any."""
        with self.parking.lock:
            state = {f"{name}:{key}": x for name, table in self.tables.items() for key, x in table.state().items()}
            state |= {f"{name}:reservoir.{key}": x for name, own in self.reservoirs.items() for key, x in own.state().items()}
            if not state:
                return None
            path = shard_file(Path(folder), self.index)
            save_file(state, path)
        return path.name, checksum(path)

    def load(self, folder: Path, shares: Sequence[float]) -> str:
        """Take up the replay tables of a checkpoint, and of its reservoirs this shard's part: `shares` are those of all shards now. Returns what is
        left behind where it was made by other shards, in words."""
        files = [path for k in range(len(list(folder.glob("dataset-*.safetensors")))) if (path := shard_file(folder, k)).is_file()]
        for place, (name, own) in enumerate(sorted(self.reservoirs.items())):
            states = [read(path, f"{name}:reservoir.") for path in files]
            capacities = [capacity_of(own.config, share) for share in shares]
            if [int(state["capacity"]) for state in states] != capacities:
                states = dealt(states, capacities, generator(self.seed, RESERVOIR, self.consumed, place))
            own.load_state(states[self.index])
        if not self.tables:
            return ""
        if self.index >= len(files):
            return "the checkpoint has no replay for it, it was made by fewer shards; it fills up anew"
        state = load_file(files[self.index])
        for name, table in self.tables.items():
            table.load_state({key.removeprefix(f"{name}:"): x for key, x in state.items() if key.startswith(f"{name}:")})
        if self.index == 0 and len(files) > len(shares):
            return f"the replay of {len(files) - len(shares)} of the checkpoint's {len(files)} shards is left behind: there are {len(shares)} now"
        return ""

    def acknowledge(self, iteration: int, interface: str, part: int) -> None:
        """This consumer has learned from the iteration; once all have, its fragments go and writers get room."""
        with self.parking.lock:
            done = self.acknowledged.setdefault(iteration, set())
            done.add((interface, part))
            while len(self.acknowledged.get(self.consumed, ())) == self.consumers:
                del self.acknowledged[self.consumed]
                for worker in self.workers:
                    self.fragments.pop((worker, self.consumed), None)
                self.consumed += 1
            self.parking.settle()

    def insert_evaluation(self, version: int, worker: int, episodes: Tensor) -> None:
        """Episodes [E, 3] (return, length, version that played) of one worker's part in an evaluation."""
        with self.parking.lock:
            self.evaluations.setdefault(version, {})[worker] = episodes
            self.parking.settle()

    def evaluation(self, version: int, wait: bool) -> Any:
        """{"episodes": [E, 3 + G]} of a version from this shard's workers; where some are missing, waits or answers {}."""

        def ready() -> dict[str, Tensor] | None:
            parts = self.evaluations.get(version, {})
            if len(parts) == len(self.workers):
                return {"episodes": torch.cat([parts[worker] for worker in self.workers])}
            return None if wait else {}

        return self.parking.answer(ready)

    @property
    def size_bytes(self) -> int:
        """Of the fragments that wait here."""
        return sum(bytes_of(fragment.rows) for fragment in self.fragments.values())

    def describe(self) -> str:
        """Who waits for whom, for an error message."""
        with self.parking.lock:
            stored = ", ".join(f"rollout/{worker} delivered {self.accepted[worker]}" for worker in self.workers)
            ago = "no insert yet"
            if self.last_insert is not None:
                ago = f"last insert {time.monotonic() - self.last_insert[0]:.0f} s ago by rollout/{self.last_insert[1]}"
            return f"dataset/{self.index}: {self.consumed} iterations consumed, {len(self.fragments)} fragments stored; {stored}; {ago}"

    def close(self) -> None:
        self.parking.close({"stopping": True})


def shard_file(folder: Path, index: int) -> Path:
    return folder / f"dataset-{index}.safetensors"


def read(path: Path, prefix: str) -> dict[str, Tensor]:
    """What a file has whose names begin like that, without their beginning."""
    with safe_open(path, "pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def bytes_of(rows: dict[str, dict[str, Tensor]]) -> int:
    return sum(x.nbytes for tensors in rows.values() for x in tensors.values())
