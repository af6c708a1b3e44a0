"""A parameter shard of asynchronous training: a slice of each interface's whole vector, critic and all, and its optimizer.

Learners *commit* gradients, and each makes a version. All shards apply the same updates in the same order, which shard 0 decides (see
`coordinator`). What has been handed out never changes.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from marl_hpc.comm.peers import Parking
from marl_hpc.roles.coordinator import Coordinator
from marl_hpc.roles.parameter import belonging, shard_files, slices
from marl_hpc.storage.checkpoint import checksum
from marl_hpc.storage.transfer import Sender
from marl_hpc.storage.vectors import Update, VectorSlice, VersionGone, resliced


class OptimizingShard:
    handlers = (
        "define", "stage", "commit", "read", "latest", "newest", "pinned", "learned", "status", "counts", "hold", "release", "save", "end", "leave", "unpin",
    )  # fmt: skip

    def __init__(
        self, index: int, shards: int, coordinator: Coordinator | None, checkpoint: Path | None = None, transfer: str = "full"
    ) -> None:
        """`coordinator` is shard 0's, None elsewhere. With a `checkpoint` the vectors go on from its files, however many shards wrote them.
        `transfer`: how policies are sent to their readers, see `storage.transfer`."""
        self.index, self.shards, self.coordinator = index, shards, coordinator
        self.parking = Parking()
        self.vectors: dict[str, VectorSlice] = {}
        self.transfer, self.senders = transfer, {}
        self.readable: dict[str, int] = {}  # how many numbers of each slice are policies': what rollout workers read
        self.loaded = [load_file(path) for path in shard_files(checkpoint)] if checkpoint else []
        if coordinator is not None and self.loaded:
            coordinator.load_state(belonging(self.loaded[0], "coordinator"))
        self.closed = threading.Event()
        limits = [course.clocks.limit_s for course in coordinator.courses.values()] if coordinator else []
        if limits and min(limits) < float("inf"):  # who waits for one who is late is freed by time alone
            threading.Thread(target=self._tick, args=(min(limits) / 20,), daemon=True, name="iteration limit").start()

    def _tick(self, interval_s: float) -> None:
        while not self.closed.wait(interval_s):
            self.parking.settle()

    def define(self, name: str, values: Tensor, size: int, policies: int, parts: list[tuple[int, int, dict[str, Any]]]) -> None:
        """An interface's vector as training starts: this shard's slice of its `size` numbers, the first `policies` of which are the
        policies', and its parts (start, stop, optimizer) in the whole. The first learner's word counts; a checkpoint's comes before it."""
        with self.parking.lock:
            if name in self.vectors:
                return
            cut = slices(size, self.shards)[self.index]
            own = [(max(0, start - cut.start), max(0, min(stop, cut.stop) - cut.start), spec) for start, stop, spec in parts]
            vector = VectorSlice(values, own)
            if self.loaded:
                states = [belonging(record, f"vector.{name}") for record in self.loaded]
                vector.load_state(resliced(states, size, cut, [(start, stop) for start, stop, _ in parts]))
            self.vectors[name], self.senders[name] = vector, Sender(self.transfer)
            self.readable[name] = max(0, min(policies, cut.stop) - cut.start)
            self.parking.settle()

    def stage(self, name: str, learner: int, sequence: int, gradient: Tensor, part: int) -> None:
        """Keep this shard's slice of a gradient until it is committed."""
        with self.parking.lock:
            self.vectors[name].stage(learner, sequence, gradient, part)

    def commit(
        self, name: str, learner: int, sequence: int, gradient: Tensor, part: int, base: tuple[int, int], moments: Tensor | None
    ) -> Any:
        """Shard 0: apply a gradient that all other shards hold, and answer with the newest version when its learner may go on:
        {"version", "values", "order", "dropped", "moments", and what `status` says}. A repetition is answered alike, not applied."""
        coordinator = self._coordinator()
        course = coordinator.courses[name]

        def ready() -> dict[str, Any] | None:
            now = time.monotonic()
            if not coordinator.commit(self.vectors, name, learner, sequence, gradient, part, base, moments, now):
                return None
            if not coordinator.over:
                if not course.clocks.may_start(learner, now):
                    return None
                course.clocks.start(learner, now)
            dropped = course.last.get(learner, (-1, None)) == (sequence, None)
            return {**self._latest(name), "dropped": dropped, "status": coordinator.status()}

        with self.parking.lock:
            answer = self.parking.answer(ready)
            self.parking.settle()
        return answer

    def latest(self, name: str) -> dict[str, Any]:
        """Shard 0: the newest version of a whole slice, and the order that other shards may not know yet."""
        with self.parking.lock:
            return self._latest(name)

    def _latest(self, name: str) -> dict[str, Any]:
        vector, course = self.vectors[name], self._coordinator().courses[name]
        return {
            "version": vector.version, "updates": course.updates, "values": vector.values, "order": [tuple(update) for update in course.order], "moments": course.values.moments.clone(),
        }  # fmt: skip

    def newest(self, have: dict[str, tuple[int, int]]) -> Any:
        """Shard 0: what a rollout worker wants to know: for each interface its version, values of the policies where they are newer
        than the version that the worker has, as they are sent to a reader with the base that it has, and the order; and `status`. `have`
        is {interface: (version, base)}. Waits until all vectors are defined."""
        coordinator = self._coordinator()

        def ready() -> dict[str, Any] | None:
            if len(self.vectors) < len(coordinator.courses):
                return None
            found = {}
            for name, vector in self.vectors.items():
                version, base = have.get(name, (-1, -1))
                if vector.version > version:
                    sent = self.senders[name].send(vector.version, vector.values[: self.readable[name]], base)
                    found[name] = (vector.version, sent, [tuple(update) for update in coordinator.courses[name].order])
            return {"newer": found, **coordinator.status()}

        return self.parking.answer(ready)

    def read(self, name: str, version: int, order: list[Update], policies: bool = False, base: int = -1) -> Any:
        """This shard's slice of exactly this version, all of it or the policies' part as it is sent to a reader with that `base`;
        {"gone": version} where it isn't kept."""

        def ready() -> dict[str, Any] | None:
            vector = self.vectors.get(name)
            if vector is None:
                return None
            try:
                values = vector.read(version, [Update(*update) for update in order])
            except VersionGone:
                return {"gone": vector.version}
            return {"values": self.senders[name].send(version, values[: self.readable[name]], base) if policies else values}

        return self.parking.answer(ready)

    def pinned(self, pin: str, orders: dict[str, list[Update]]) -> dict[str, Any]:
        """{interface: (version, this shard's part of its policies)} of a pin; and, on shard 0, the orders that others need."""
        with self.parking.lock:
            found = {}
            for name, vector in self.vectors.items():
                version, values = vector.pinned(pin, [Update(*update) for update in orders.get(name, [])])
                found[name] = (version, values[: self.readable[name]])
            own = (
                {name: [tuple(update) for update in course.order] for name, course in self.coordinator.courses.items()}
                if self.coordinator
                else {}
            )
            return {"pinned": found, "orders": own}

    def learned(self, name: str, learner: int, batch: int, steps: int) -> Any:
        """Shard 0: a learner has learned from a batch of so many environment steps. Answers with `status`."""
        coordinator = self._coordinator()

        def ready() -> dict[str, Any] | None:
            if coordinator.held:
                return None
            coordinator.learned(self.vectors, name, learner, batch, steps)
            return coordinator.status()

        with self.parking.lock:
            answer = self.parking.answer(ready)
            self.parking.settle()
        return answer

    def status(self) -> dict[str, Any]:
        with self.parking.lock:
            return self._coordinator().status()

    def counts(self) -> dict[str, Any]:
        with self.parking.lock:
            return self._coordinator().counts()

    def end(self, failed: str = "") -> None:
        """Shard 0: training ends now, with the newest versions; or nobody goes on because something `failed`."""
        coordinator = self._coordinator()
        with self.parking.lock:
            if failed:
                coordinator.failed = coordinator.failed or failed
            else:
                coordinator.finish(self.vectors)
            self.parking.settle()

    def unpin(self, evaluation: int) -> None:
        """Evaluations up to this one have been collected: their policies aren't kept any more."""
        with self.parking.lock:
            for vector in self.vectors.values():
                for name in [name for name in vector.pins if name.startswith("evaluation/")]:
                    if int(name.partition("/")[2]) <= evaluation:
                        vector.pins.drop(name)
            if self.coordinator is not None:
                self.coordinator.collected = max(self.coordinator.collected, evaluation)

    def leave(self, learner: int) -> None:
        """Shard 0: this learner makes no more gradients."""
        with self.parking.lock:
            for course in self._coordinator().courses.values():
                course.clocks.leave(learner)
            self.parking.settle()

    def hold(self) -> dict[str, Any]:
        """Shard 0: apply nothing until `release`. Answers with each interface's order, and `status`."""
        coordinator = self._coordinator()
        with self.parking.lock:
            coordinator.held = True
            orders = {name: [tuple(update) for update in course.order] for name, course in coordinator.courses.items()}
            return {"orders": orders, "learned": coordinator.batches, **coordinator.status()}

    def release(self, saving: int) -> None:
        """Shard 0: go on. Learners that have something to add to this checkpoint, the one of this number, are told by `status`."""
        coordinator = self._coordinator()
        with self.parking.lock:
            coordinator.held, coordinator.saving = False, saving
            for course in coordinator.courses.values():
                course.clocks.restart(time.monotonic())
            self.parking.settle()

    def save(self, folder: str, orders: dict[str, list[Update]]) -> tuple[str, str]:
        """Write this shard's part of what training goes on from, after these updates; returns (file name, checksum)."""
        with self.parking.lock:
            record = {}
            for name, vector in self.vectors.items():
                vector.advance([Update(*update) for update in orders[name]])
                record |= {f"vector.{name}.{key}": x for key, x in vector.state().items()}
            if self.coordinator is not None:
                record |= {f"coordinator.{key}": x for key, x in self.coordinator.state().items()}
        path = Path(folder) / f"parameter-{self.index}.safetensors"
        save_file({name: x.contiguous() for name, x in record.items()}, path)
        return path.name, checksum(path)

    def close(self) -> None:
        self.closed.set()
        self.parking.close({"stopping": True})

    def _coordinator(self) -> Coordinator:
        if self.coordinator is None:
            raise LookupError(f"parameter/{self.index} decides no order: ask parameter/0")
        return self.coordinator
