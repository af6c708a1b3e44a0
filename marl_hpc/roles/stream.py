"""A dataset shard of asynchronous training: a queue of what workers collected, for whichever learner comes next.

A fragment is cut into as many *items* as an interface has learners, each some of its copies. An item is *leased* to a learner, and
acknowledged once that has learned from it; when all of a fragment's items are, its worker gets room for another. What a learner held
that is gone is issued again. So each item takes effect once. Items that were collected by a policy too old are passed over and counted.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, NamedTuple

from torch import Tensor

from marl_hpc.keyed_random import REPLAY, generator
from marl_hpc.roles.dataset import DatasetShard, bytes_of
from marl_hpc.storage.replay import ReplayTable


class Item(NamedTuple):
    """Part `part` of a fragment."""

    worker: int
    sequence: int
    part: int


class Stored(NamedTuple):
    rows: dict[str, dict[str, Tensor]]  # interface -> packed rows [T, B, row], and memories [C, B, …]
    episodes: Tensor
    versions: dict[str, int]  # that collected it, by interface
    size_bytes: int


class StreamShard(DatasetShard):
    handlers = (
        "next_sequence", "insert", "lease", "acknowledge", "enlist", "insert_evaluation", "evaluation", "describe", "draw", "set_priorities",
        "save", "counts", "end",
    )  # fmt: skip

    def __init__(
        self, index: int, workers: tuple[int, ...], learners: dict[str, int], capacity: int, capacity_bytes: float = math.inf,
        max_staleness: float = math.inf, tables: dict[str, ReplayTable] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        """`workers` write here. `learners` of each interface: into so many items its fragments are cut. A worker may have `capacity`
        fragments here that aren't learned from yet, all together `capacity_bytes`. Items whose policy is more than `max_staleness`
        versions old are passed over."""
        super().__init__(index, workers, sum(learners.values()), capacity, 0, tables, seed, capacity_bytes)
        self.learners, self.max_staleness = learners, max_staleness
        self.stored: dict[tuple[int, int], Stored] = {}
        self.open: dict[tuple[int, int], set[tuple[str, int]]] = {}  # fragment -> its items that aren't acknowledged
        self.queues: dict[str, deque[Item]] = {name: deque() for name in learners}
        self.leased: dict[str, dict[Item, int]] = {name: {} for name in learners}  # item -> learner
        self.passed_over = dict.fromkeys(learners, 0)
        self.over = False  # nobody learns any more

    def insert(self, worker: int, sequence: int, rows: dict[str, dict[str, Tensor]], episodes: Tensor, version: Any) -> Any:
        """Store a fragment, collected with these versions {interface: version}; the answer (True) waits for room. Raises ValueError when
        a worker skips a sequence number."""
        size_bytes = bytes_of(rows)

        def ready() -> bool | None:
            if sequence < self.accepted[worker] or self.over:
                return True  # a repetition, or nobody wants it any more
            if sequence > self.accepted[worker]:
                raise ValueError(f"rollout/{worker} sent fragment {sequence}; dataset/{self.index} expects {self.accepted[worker]}")
            if sum(w == worker for w, _ in self.stored) >= self.capacity:
                return None
            if self.stored and self.size_bytes + size_bytes > self.capacity_bytes:
                return None
            self._store(worker, sequence, Stored(rows, episodes, version, size_bytes))
            return True

        with self.parking.lock:
            answer = self.parking.answer(ready)
            self.parking.settle()
        return answer

    def _store(self, worker: int, sequence: int, fragment: Stored) -> None:
        self.stored[worker, sequence] = fragment
        self.accepted[worker] = sequence + 1
        self.last_insert = (time.monotonic(), worker)
        self.open[worker, sequence] = {(name, part) for name, parts in self.learners.items() for part in range(parts)}
        for name, parts in self.learners.items():
            self.queues[name].extend(Item(worker, sequence, part) for part in range(parts))
            if name in self.tables:
                self.tables[name].insert(fragment.rows[name])

    @property
    def size_bytes(self) -> int:
        return sum(fragment.size_bytes for fragment in self.stored.values())

    def lease(self, name: str, learner: int, most: int, version: int) -> Any:
        """Up to `most` items of an interface for a learner at this version, the oldest first, at least one: waits for it.
        [(item, {"rows": [T, B', row], …}, episodes, version, environment steps)]; no rows where the interface draws from replay; [] when
        training is over."""

        def ready() -> list[Any] | None:
            queue = self.queues[name]
            found = []
            while queue and len(found) < most:
                item = queue.popleft()
                fragment = self.stored[item.worker, item.sequence]
                collected = fragment.versions[name]
                if version - collected > self.max_staleness:
                    self.passed_over[name] += 1
                    self._settle(name, item)
                    continue
                self.leased[name][item] = learner
                parts = self.learners[name]
                copies = fragment.rows[name]["rows"].shape[1]
                own = slice(item.part * copies // parts, (item.part + 1) * copies // parts)
                rows = {} if name in self.tables else {key: x[:, own] for key, x in fragment.rows[name].items()}
                steps = fragment.rows[name]["rows"].shape[0] * (own.stop - own.start)
                # episodes of a fragment are told once, with its first item
                episodes = fragment.episodes if item.part == 0 else fragment.episodes[:0]
                found.append((tuple(item), rows, episodes, collected, steps))
            return found or ([] if self.over else None)

        with self.parking.lock:
            answer = self.parking.answer(ready)
            self.parking.settle()  # what was passed over made room
        return answer

    def acknowledge(self, name: str, learner: int, items: list[tuple[int, int, int]]) -> None:  # type: ignore[override]
        """The learner has learned from these items. A repetition, or word from one whose lease has ended, changes nothing."""
        with self.parking.lock:
            for item in (Item(*fields) for fields in items):
                if self.leased[name].get(item) == learner:
                    del self.leased[name][item]
                    self._settle(name, item)
            self.parking.settle()

    def _settle(self, name: str, item: Item) -> None:
        """An item is done with; with the last one of a fragment that goes."""
        fragment = (item.worker, item.sequence)
        self.open[fragment].discard((name, item.part))
        if not self.open[fragment]:
            del self.open[fragment]
            del self.stored[fragment]

    def end(self) -> None:
        """Training is over: nobody waits for items any more."""
        with self.parking.lock:
            self.over = True
            self.parking.settle()

    def enlist(self, learner: int) -> None:
        """A learner begins: what an earlier one of this number held is issued again, before everything else."""
        with self.parking.lock:
            for name, leases in self.leased.items():
                back = [item for item, owner in leases.items() if owner == learner]
                for item in back:
                    del leases[item]
                self.queues[name].extendleft(reversed(back))
            self.parking.settle()

    def draw(self, iteration: int, interface: str, updates: int, batch: int) -> Any:
        """Items of an interface's replay table (see `ReplayTable.draw`); fewer than `starts` steps there: {}. `iteration` keys the
        draw: it is the asking learner's own."""
        with self.parking.lock:
            table = self.tables[interface]
            if not table.ready:
                return {"items": {}}
            place = sorted(self.tables).index(interface)
            return {"items": table.draw(generator(self.seed, REPLAY, iteration, self.index, place), updates, batch)}

    def counts(self) -> dict[str, Any]:
        """What waits here, and what was passed over."""
        with self.parking.lock:
            return {
                "queued": {name: len(queue) for name, queue in self.queues.items()},
                "passed_over": dict(self.passed_over),
                "size_bytes": self.size_bytes,
            }

    def describe(self) -> str:
        with self.parking.lock:
            queued = ", ".join(
                f"{name}: {len(queue)} items queued, {len(self.leased[name])} with learners {sorted(set(self.leased[name].values()))}"
                for name, queue in self.queues.items()
            )
            stored = ", ".join(f"rollout/{worker} delivered {self.accepted[worker]}" for worker in self.workers)
            return f"dataset/{self.index}: {len(self.stored)} fragments stored ({self.size_bytes} bytes); {queued}; {stored}"
