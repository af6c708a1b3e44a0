"""A reservoir: a uniform sample of all that ever came (Vitter 1985, algorithm R), here of what agents did by their best responses.

Whatever came, each of it is kept with the same chance, so that what is drawn is uniform over the past; of several shards' reservoirs,
where each is drawn from in proportion to what it has seen. Draws and what gives way are keyed by the caller. A run that goes on with
other shards deals what there is anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from marl_hpc.storage.fragments import unpack
from marl_hpc.types import InterfaceSpec, ReservoirConfig

IMITATED, SEEN = "average/", "average_seen"  # what is drawn is called, beside what replay gives; and how much came in all
FIELDS = ("observation", "action", "action_mask")


class Reservoir:
    """One shard's part of an interface's, a `share` in (0, 1] of it all: actions of agents, with what they saw."""

    def __init__(self, config: ReservoirConfig, share: float, interface: InterfaceSpec, dtype: str) -> None:
        self.config, self.capacity, self.batch = config, capacity_of(config, share), config.batch
        self.interface, self.dtype = interface, dtype
        self.kept: dict[str, np.ndarray] = {}  # [capacity, …] each
        self.size = self.seen = 0  # actions that are kept, and that came

    def insert(self, tensors: Mapping[str, Tensor], random: np.random.Generator) -> None:
        """Take what best responses did in one worker's fragment {"rows": [T, B, row], …}."""
        (group,) = self.interface.groups
        batch = {name.removeprefix(f"{group.name}/"): x.numpy() for name, x in unpack(tensors, self.interface, self.dtype).items()}
        taken = batch["active"] & batch["best_response"]
        items = {name: batch[name][taken] for name in FIELDS if name in batch}
        items["agent"] = np.broadcast_to(np.arange(len(group.agents)), taken.shape)[taken]
        count = len(items["agent"])
        if not self.kept:
            self.kept = {name: np.zeros((self.capacity, *x.shape[1:]), x.dtype) for name, x in items.items()}
        place = np.full(count, self.capacity)  # nowhere
        begun = 0
        if self.size < min(
            self.seen, self.capacity
        ):  # dealt anew with less than fits: new ones are kept as often as the old ones were
            taken = np.flatnonzero(random.random(count) < self.size / self.seen)[: self.capacity - self.size]
            place[taken] = self.size + np.arange(len(taken))
            self.size += len(taken)
            begun = int(taken[-1]) + 1 if self.size == self.capacity else count
        number = self.seen + np.arange(begun, count)
        place[begun:] = np.where(number < self.capacity, number, random.integers(0, number + 1))
        inside = place < self.capacity
        for name, x in items.items():
            self.kept[name][place[inside]] = x[inside]  # in order: of several that want a place the last one has it
        self.seen += count
        if begun < count:
            self.size = min(self.seen, self.capacity)

    def draw(self, random: np.random.Generator, updates: int) -> dict[str, Tensor]:
        """Uniformly, with replacement: fields [1, U, S, …] of a whole batch each."""
        places = random.integers(self.size, size=(1, updates, self.batch))
        return {name: torch.from_numpy(x[places]) for name, x in self.kept.items()}

    def state(self) -> dict[str, Tensor]:
        state = {f"kept.{name}": torch.from_numpy(x[: self.size]) for name, x in self.kept.items()}
        return {**state, "seen": torch.tensor(self.seen), "capacity": torch.tensor(self.capacity)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state of a reservoir of the same capacity, or what `dealt` made for it."""
        self.size, self.seen, self.kept = 0, int(state["seen"]), {}
        for name, x in state.items():
            if name.startswith("kept."):
                self.size = len(x)
                whole = np.zeros((self.capacity, *x.shape[1:]), x.numpy().dtype)
                whole[: len(x)] = x.numpy()
                self.kept[name.removeprefix("kept.")] = whole


def capacity_of(config: ReservoirConfig, share: float) -> int:
    return max(1, int(config.capacity * share))


def dealt(
    states: Sequence[Mapping[str, Tensor]], capacities: Sequence[int], random: np.random.Generator
) -> list[dict[str, Tensor]]:
    """The states of reservoirs of these capacities that go on from those of other shards. Each gets a random part of all that is kept, and has
    seen its share, by capacity, of all that came.

    Where shards have kept different shares of what they saw, those that kept more give some up, so that each of all that came is there
    with the same chance.
    """
    seen = [int(state["seen"]) for state in states]
    kept = [{name: x for name, x in state.items() if name.startswith("kept.")} for state in states]
    sizes = [next((len(x) for x in fields.values()), 0) for fields in kept]
    chance = min((size / count for size, count in zip(sizes, seen, strict=True) if count), default=0.0)
    wanted = [min(size, int(chance * count + random.random())) for size, count in zip(sizes, seen, strict=True)]
    chosen = [random.choice(size, count, replace=False) for size, count in zip(sizes, wanted, strict=True)]
    order = torch.from_numpy(random.permutation(sum(wanted)))
    pooled = {
        name: torch.cat([fields[name][torch.from_numpy(places)] for fields, places in zip(kept, chosen, strict=True) if fields])[
            order
        ]
        for name in next(filter(None, kept), {})
    }
    ends = np.append(0, np.cumsum(capacities)) / sum(capacities)
    found = []
    for capacity, (start, end) in zip(capacities, pairwise(ends.tolist()), strict=True):
        first, last = (round(len(order) * end_) for end_ in (start, end))
        count = round(sum(seen) * end) - round(sum(seen) * start)
        last = min(last, first + min(capacity, count))
        found.append({**{name: x[first:last] for name, x in pooled.items()}, "seen": torch.tensor(count)})
    return found
