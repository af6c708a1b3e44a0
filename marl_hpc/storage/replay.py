"""Replay: what workers collected, kept in a ring and drawn from many times.

Fragments stay as they came, packed bytes in one preallocated array; an item is a sequence of consecutive steps of one copy inside a
fragment, known by (slot, start, copy). Draws are uniform or in proportion to priorities (Schaul et al. 2016), by a generator that the
caller keys, so that they don't depend on who asks when.

F fragments in the ring, T steps, B copies, L steps of an item.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marl_hpc.types import ReplayConfig


class SumTree:
    """Non-negative numbers that can be changed, and drawn in proportion to, in logarithmic time; all operations on arrays."""

    def __init__(self, size: int) -> None:
        self.leaves = 1 << max(0, size - 1).bit_length()
        self.nodes = np.zeros(2 * self.leaves)

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def get(self, places: np.ndarray) -> np.ndarray:
        return self.nodes[places + self.leaves]

    def set(self, places: np.ndarray, values: np.ndarray) -> None:
        self.nodes[places + self.leaves] = values
        above = np.unique((places + self.leaves) >> 1)
        while above[-1] >= 1:
            self.nodes[above] = self.nodes[2 * above] + self.nodes[2 * above + 1]
            above = np.unique(above >> 1)

    def find(self, amounts: np.ndarray) -> np.ndarray:
        """The leaf at which the running sum passes each amount in [0, total)."""
        node = np.ones(len(amounts), np.int64)
        amounts = amounts.copy()
        for _ in range(self.leaves.bit_length() - 1):
            left = self.nodes[2 * node]
            right = (amounts >= left) & (self.nodes[2 * node + 1] > 0)
            amounts -= np.where(right, left, 0)
            node = 2 * node + right
        return node - self.leaves


class ReplayTable:
    """One shard's part of an interface's replay, a `share` in (0, 1] of it all.

    It takes at most `capacity_bytes`, and lies in a file in the folder `spill` instead of in memory where one is given.
    """

    def __init__(self, config: ReplayConfig, share: float, capacity_bytes: float = math.inf, spill: Path | None = None) -> None:
        self.config, self.share, self.capacity_bytes, self.spill = config, share, capacity_bytes, spill
        self.inserted = 0  # fragments
        self.rings: dict[str, np.ndarray] = {}  # rows [F, T, B, row]; memories [F, C, B, …]
        self.tree: SumTree | None = None
        self.highest = 1.0

    def insert(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep one worker's fragment, {"rows": [T, B, row], "policy/memory": [C, B, …]}; the oldest goes when the ring is full."""
        arrays = {name: x.numpy() for name, x in tensors.items()}
        if not self.rings:
            steps, copies = arrays["rows"].shape[:2]
            fragments = max(1, int(self.config.capacity * self.share) // (steps * copies))
            size_bytes = sum(x.nbytes for x in arrays.values())
            if size_bytes > self.capacity_bytes:
                raise ValueError(
                    f"dataset.replay_bytes={self.capacity_bytes:.0f} doesn't hold one fragment of {size_bytes} bytes; raise it, or lower "
                    "rollout.fragment or rollout.envs"
                )
            fragments = int(min(fragments, self.capacity_bytes // size_bytes))
            self.rings = {name: self.allocate((fragments, *x.shape), x.dtype) for name, x in arrays.items()}
            if self.config.priority_exponent > 0:
                self.tree = SumTree(fragments * self.items)
        slot = self.inserted % len(self.rings["rows"])
        for name, x in arrays.items():
            self.rings[name][slot] = x
        self.inserted += 1
        if self.tree is not None:
            places = slot * self.items + np.arange(self.items)
            self.tree.set(places, np.full(len(places), self.highest**self.config.priority_exponent))

    def clear(self) -> None:
        """Forget everything."""
        self.inserted, self.highest = 0, 1.0
        if self.tree is not None:
            self.tree = SumTree(len(self.rings["rows"]) * self.items)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Zeros, in memory or in a file that goes with this process."""
        if self.spill is None:
            return np.zeros(shape, dtype)
        self.spill.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.spill, prefix="replay-") as file:
            return np.memmap(file, dtype, "w+", shape=shape)

    @property
    def items(self) -> int:
        """Items of a fragment."""
        _, steps, copies = self.rings["rows"].shape[:3]
        return max(0, (steps - self.config.length) // self.config.stride + 1) * copies

    @property
    def fragments(self) -> int:
        return min(self.inserted, len(self.rings["rows"])) if self.rings else 0

    @property
    def steps(self) -> int:
        """Environment steps that are there."""
        return self.fragments * self.rings["rows"].shape[1] * self.rings["rows"].shape[2] if self.rings else 0

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from: `starts` steps, or as many whole fragments as fit."""
        return bool(self.rings) and (self.steps >= self.config.starts * self.share or self.inserted >= len(self.rings["rows"]))

    def draw(self, generator: np.random.Generator, updates: int, batch: int) -> dict[str, Tensor]:
        """Items for `updates` gradient steps of `batch` each: rows [L, U, S, row], memories [1, U, S, …] as of their starts, places
        [1, U, S] (what `set_priorities` takes), and importance weights [1, U, S]."""
        count, number = updates * batch, self.fragments * self.items
        if self.tree is None:
            places, weights = generator.integers(number, size=count), np.ones(count)
        else:
            places = self.tree.find((np.arange(count) + generator.random(count)) / count * self.tree.total)
            places = generator.permutation(places)  # strata in order would give each minibatch its own part of the table
            probability = self.tree.get(places) / self.tree.total
            weights = (number * probability) ** -self.config.importance_exponent
        slot, item = np.divmod(places, self.items)
        copies = self.rings["rows"].shape[2]
        start, copy = np.divmod(item, copies)
        first = start * self.config.stride
        steps = first + np.arange(self.config.length)[:, None]
        drawn = {"rows": self.rings["rows"][slot, steps, copy]}
        for name, ring in self.rings.items():
            if name != "rows":
                drawn[name] = ring[slot, start, copy][None]
        drawn |= {
            "place": (places + self.laps(slot) * len(self.rings["rows"]) * self.items)[None],
            "weight": weights.astype(np.float32)[None],
        }
        return {name: torch.from_numpy(x.reshape(x.shape[0], updates, batch, *x.shape[2:])) for name, x in drawn.items()}

    def set_priorities(self, places: Tensor, priorities: Tensor) -> None:
        """New priorities, such as absolute TD errors, of items that were drawn; those that have been overwritten since are left out."""
        assert self.tree is not None, "only prioritized tables are told"
        size = len(self.rings["rows"]) * self.items
        lap, place = np.divmod(places.numpy().ravel(), size)
        values = priorities.double().numpy().ravel() + 1e-6
        there = lap == self.laps(place // self.items)
        if not there.any():
            return
        self.highest = max(self.highest, float(values[there].max()))
        self.tree.set(place[there], values[there] ** self.config.priority_exponent)

    def laps(self, slots: np.ndarray) -> np.ndarray:
        """How often each slot's fragment had been overwritten before it came."""
        return (self.inserted - 1 - slots) // len(self.rings["rows"])

    def state(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        state = {f"ring.{name}": torch.from_numpy(x) for name, x in self.rings.items()}
        if self.tree is not None:
            state["tree"] = torch.from_numpy(self.tree.nodes)
        return {**state, "inserted": torch.tensor(self.inserted), "highest": torch.tensor(self.highest, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.rings = {}
        for name, x in state.items():
            if name.startswith("ring."):
                ring = self.allocate(tuple(x.shape), x.numpy().dtype)
                ring[:] = x.numpy()
                self.rings[name.removeprefix("ring.")] = ring
        self.inserted, self.highest = int(state["inserted"]), float(state["highest"])
        if "tree" in state:
            self.tree = SumTree(len(self.rings["rows"]) * self.items)
            self.tree.nodes[:] = state["tree"].numpy()


def table_for(
    config: ReplayConfig | None, share: float, capacity_bytes: float = math.inf, spill: Path | None = None
) -> ReplayTable | None:
    """The table that an algorithm asks for, or None where each fragment is learned from once."""
    return None if config is None else ReplayTable(config, share, capacity_bytes, spill)
