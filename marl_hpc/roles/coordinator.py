"""What parameter shard 0 decides in asynchronous training: the order of updates, who may go on, and what all have done together.

Gradients are staged on the other shards first; the commit to shard 0 gives an update its place in the order, and whoever speaks to
another shard afterwards brings that order along. So an update is applied on all shards at the same place or, where its learner stops in
between, by whoever comes next: nobody waits for it.

The caller holds the shard's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from marl_hpc.clocks import Clocks
from marl_hpc.returns import ValueNormalizer
from marl_hpc.storage.vectors import NOBODY, Update, VectorSlice


@dataclass
class Course:
    """One interface's training, as all of its learners see it."""

    clocks: Clocks
    order: list[Update] = field(default_factory=list)  # those that some shard may not know yet
    last: dict[int, tuple[int, int | None]] = field(
        default_factory=dict
    )  # learner -> its last gradient: sequence, version or None: dropped
    batches: dict[int, int] = field(default_factory=dict)  # learner -> batches learned
    updates: int = 0  # gradients that have been applied
    env_steps: int = 0
    learned: int = 0  # batches, over all attempts
    values: ValueNormalizer = field(default_factory=ValueNormalizer)
    delays: list[int] = field(default_factory=list)  # of gradients since they were last asked for, in updates


class Coordinator:
    def __init__(self, clocks: dict[str, Clocks], budget: int, evaluate_every: int) -> None:
        """`clocks` of each interface's learners; `budget` and `evaluate_every` in environment steps."""
        self.courses = {name: Course(c) for name, c in clocks.items()}
        self.budget, self.evaluate_every = budget, evaluate_every
        self.evaluation = 0  # the newest one whose policies are pinned, in multiples of evaluate_every
        self.collected = 0  # the newest one that nobody asks for any more
        self.saving = 0  # checkpoints that learners have been asked to add their files to
        self.final = False
        self.failed = ""
        self.held = False

    @property
    def env_steps(self) -> int:
        """Environment steps that every interface has learned from."""
        return min(course.env_steps for course in self.courses.values())

    @property
    def batches(self) -> int:
        """Batches that have been learned, over all attempts, of the interface that is behind."""
        return min(course.learned for course in self.courses.values())

    def commit(
        self, vectors: dict[str, VectorSlice], name: str, learner: int, sequence: int, gradient: Tensor, part: int, base: tuple[int, int],
        moments: Tensor | None, now: float,
    ) -> bool:  # fmt: skip
        """Give a gradient its place, or drop it; False while everything is held. A repetition changes nothing, and
        neither does a gradient that comes after the end. `base` are the
        version and the number of updates that it was computed at, `moments` [3] the (count, mean, M2) of the value targets of its batch."""
        course = self.courses[name]
        if course.last.get(learner, (-1, None))[0] >= sequence or self.over:
            return True
        if self.held:
            return False
        if not course.clocks.finish(learner, now):
            course.last[learner] = (sequence, None)
            return True
        vectors[name].stage(learner, sequence, gradient, part)
        course.last[learner] = (sequence, self.append(vectors, name, learner, sequence))
        version, updates = base
        course.delays.append(course.updates - updates)
        course.updates += 1
        if moments is not None:
            course.values.merge(moments)
        # its learner has read that version from all shards: none of them lacks anything up to there
        course.order = [update for update in course.order if update.version > version]
        return True

    def append(self, vectors: dict[str, VectorSlice], name: str, learner: int, sequence: int, pins: tuple[str, ...] = ()) -> int:
        version = vectors[name].version + 1
        update = Update(version, learner, sequence, pins)
        vectors[name].advance([update])
        self.courses[name].order.append(update)
        return version

    def pin(self, vectors: dict[str, VectorSlice], pin: str) -> None:
        """Keep every interface's version of this moment."""
        for name in self.courses:
            self.append(vectors, name, NOBODY, 0, (pin,))

    def learned(self, vectors: dict[str, VectorSlice], name: str, learner: int, batch: int, steps: int) -> None:
        """A learner has learned from its batch of this number, so many environment steps. A repetition changes nothing."""
        course = self.courses[name]
        if course.batches.get(learner, -1) >= batch:
            return
        course.batches[learner] = batch
        course.learned += 1
        course.env_steps += steps
        if self.final:
            return
        while (self.evaluation + 1) * self.evaluate_every <= min(self.env_steps, self.budget - 1):
            self.evaluation += 1
            self.pin(vectors, f"evaluation/{self.evaluation}")
        if self.env_steps >= self.budget:
            self.finish(vectors)

    def finish(self, vectors: dict[str, VectorSlice]) -> None:
        """Training ends with the versions of now."""
        if not self.final:
            self.pin(vectors, "final")
            self.final = True

    @property
    def over(self) -> bool:
        """Nobody learns any more."""
        return self.final or bool(self.failed)

    def status(self) -> dict[str, Any]:
        """What everybody wants to know."""
        return {
            "env_steps": self.env_steps, "evaluation": self.evaluation, "collected": self.collected, "saving": self.saving,
            "final": self.final, "failed": self.failed,
        }  # fmt: skip

    def counts(self) -> dict[str, dict[str, Any]]:
        """By interface: versions made, batches learned, gradients dropped by learner, and delays of gradients since the last call."""
        record = {}
        for name, course in self.courses.items():
            record[name] = {
                "learned": course.learned, "updates": course.updates, "dropped": dict(course.clocks.dropped),
                "clocks": dict(course.clocks.finished), "delays": course.delays,
            }  # fmt: skip
            course.delays = []
        return record

    def state(self) -> dict[str, Tensor]:
        record = {"collected": torch.tensor(self.collected)}
        for name, course in self.courses.items():
            record[f"{name}.moments"] = course.values.moments.clone()
            record[f"{name}.env_steps"] = torch.tensor(course.env_steps)
            record[f"{name}.learned"] = torch.tensor(course.learned)
            record[f"{name}.updates"] = torch.tensor(course.updates)
        return record

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.evaluation = self.collected = int(state["collected"])  # others begin again, with the versions of now
        for name, course in self.courses.items():
            course.values.moments = state[f"{name}.moments"].clone()
            course.env_steps, course.learned = int(state[f"{name}.env_steps"]), int(state[f"{name}.learned"])
            course.updates = int(state[f"{name}.updates"])
