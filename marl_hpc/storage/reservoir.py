"""A reservoir: a uniform sample of all that ever came (Vitter 1985, algorithm R), here of what agents did by their best responses.

Whatever came, each of it is kept with the same chance, so that what is drawn is uniform over the past; of several shards' reservoirs,
where each is drawn from in proportion to what it has seen. Draws and what gives way are keyed by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        self.capacity, self.batch = max(1, int(config.capacity * share)), config.batch
        self.interface, self.dtype = interface, dtype
        self.kept: dict[str, np.ndarray] = {}  # [capacity, …] each
        self.seen = 0  # actions that came

    @property
    def size(self) -> int:
        return min(self.seen, self.capacity)

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
        number = self.seen + np.arange(count)
        place = np.where(number < self.capacity, number, random.integers(0, number + 1))
        inside = place < self.capacity
        for name, x in items.items():
            self.kept[name][place[inside]] = x[inside]  # in order: of several that want a place the last one has it
        self.seen += count

    def draw(self, random: np.random.Generator, updates: int) -> dict[str, Tensor]:
        """Uniformly, with replacement: fields [1, U, S, …] of a whole batch each."""
        places = random.integers(self.size, size=(1, updates, self.batch))
        return {name: torch.from_numpy(x[places]) for name, x in self.kept.items()}

    def state(self) -> dict[str, Tensor]:
        state = {f"kept.{name}": torch.from_numpy(x[: self.size]) for name, x in self.kept.items()}
        return {**state, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.seen, self.kept = int(state["seen"]), {}
        for name, x in state.items():
            if name.startswith("kept."):
                whole = np.zeros((self.capacity, *x.shape[1:]), x.numpy().dtype)
                whole[: len(x)] = x.numpy()
                self.kept[name.removeprefix("kept.")] = whole
