"""One shard's slice of a flat parameter vector that gradients are applied to.

All shards apply the same updates in the same order, which shard 0 decides; a gradient waits here, *staged*, until its place is known.
Each update makes a new version; the last few are kept, so that a reader who asks all shards for one version gets a vector that was
whole at one moment. Versions are new tensors: what has been handed out never changes.

L learners, P numbers in the slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl_hpc import optimizers
from marl_hpc.optimizers import OptimizerSpec
from marl_hpc.storage.pins import Pins

KEPT, KEPT_BYTES = 16, 2**28  # versions, fewer where they are large, but never less than 3
EVERY_PART = -1
NOBODY = -1


class Update(NamedTuple):
    """What made a version: the gradient that a learner staged under a sequence number; by NOBODY, none: the version is pinned only."""

    version: int
    learner: int
    sequence: int
    pins: tuple[str, ...] = ()


class VersionGone(LookupError):
    """So many updates came since that the version isn't kept any more; ask for a newer one."""


class VectorSlice:
    def __init__(self, values: Tensor, parts: Sequence[tuple[int, int, dict[str, Any]]]) -> None:
        """`values` [P]; each part (start, stop, optimizer) of the slice is optimized by itself."""
        self.version = 0
        self.values = values.clone()
        self.specs = [(slice(start, stop), OptimizerSpec(**spec)) for start, stop, spec in parts]
        self.optimizers = [optimizers.build(spec, self.values[part]) for part, spec in self.specs]
        self.staged: dict[int, tuple[int, Tensor, int]] = {}  # learner -> its next gradient: sequence, [P], which part it trains
        self.applied: dict[int, int] = {}  # learner -> sequence
        self.kept: dict[int, Tensor] = {0: self.values}
        self.keeps = max(3, min(KEPT, KEPT_BYTES // max(1, values.nbytes)))
        self.pins = Pins()

    def stage(self, learner: int, sequence: int, gradient: Tensor, part: int = EVERY_PART) -> None:
        """Keep a gradient [P] until its place in the order is known. A repetition changes nothing."""
        if gradient.shape != self.values.shape:
            raise ValueError(f"a gradient of shape {tuple(gradient.shape)} for a slice of shape {tuple(self.values.shape)}")
        if sequence > self.applied.get(learner, -1):
            self.staged[learner] = (sequence, gradient.to(self.values.dtype), part)

    def advance(self, order: Iterable[Update]) -> None:
        """Apply the updates of an order that aren't applied yet. Raises LookupError when a gradient was never staged here."""
        for update in order:
            if update.version <= self.version:
                continue
            if update.version != self.version + 1:
                raise LookupError(
                    f"version {update.version} can't follow version {self.version}: updates between them are unknown here"
                )
            if update.learner != NOBODY:
                self._apply(update)
            self.version = update.version
            self.kept[self.version] = self.values
            self.kept.pop(self.version - self.keeps, None)
            for name in update.pins:
                self.pins.keep(name, self.version, self.values)

    def _apply(self, update: Update) -> None:
        sequence, gradient, trained = self.staged.pop(update.learner, (None, None, None))
        if sequence != update.sequence or gradient is None:
            raise LookupError(
                f"version {update.version} is made by gradient {update.sequence} of learner {update.learner}, which isn't here"
            )
        values = self.values.clone()
        for place, ((part, _), optimizer) in enumerate(zip(self.specs, self.optimizers, strict=True)):
            if trained in (EVERY_PART, place):
                optimizer.step(values[part], gradient[part])
        self.values = values
        self.applied[update.learner] = update.sequence

    def read(self, version: int, order: Iterable[Update] = ()) -> Tensor:
        """The values [P] of exactly this version; `order` says what made it. Raises VersionGone when it isn't kept any more."""
        self.advance(order)
        if version not in self.kept:
            raise VersionGone(f"version {version} is gone; versions {min(self.kept)} to {self.version} are kept")
        return self.kept[version]

    def pinned(self, name: str, order: Iterable[Update] = ()) -> tuple[int, Tensor]:
        """(version, values [P]) of a pin. Raises RuntimeError when somebody has written into it."""
        self.advance(order)
        return self.pins.read(name)

    def state(self) -> dict[str, Tensor]:
        """What training goes on from: values [P], the optimizers' buffers and the version; copies."""
        record = {
            f"{place}.{name}": x.clone() for place, optimizer in enumerate(self.optimizers) for name, x in optimizer.state().items()
        }
        return {**record, "values": self.values.clone(), "version": torch.tensor(self.version)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; nothing is staged, pinned or kept beside it."""
        self.version = int(state["version"])
        self.values = state["values"].clone()
        for place, optimizer in enumerate(self.optimizers):
            prefix = f"{place}."
            optimizers.load_state(optimizer, {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)})
        self.staged, self.applied, self.kept, self.pins = {}, {}, {self.version: self.values}, Pins()


def resliced(states: Sequence[dict[str, Tensor]], size: int, cut: slice, parts: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The state of the slice `cut` of a vector of `size`, from the states of all slices in their order, however many those were.

    `parts` are (start, stop) in the whole vector.
    """
    merged: dict[str, Tensor] = {}
    for name, x in states[0].items():
        pieces = [state[name] for state in states]
        if x.dim() == 0:  # counts, alike everywhere; a slice that a part doesn't reach never counted
            merged[name] = torch.stack(pieces).max()
            continue
        whole = torch.cat(pieces)
        start, stop = (0, size) if name == "values" else parts[int(name.partition(".")[0])]
        if len(whole) != stop - start:
            raise ValueError(f"a checkpoint with {len(whole)} numbers of {name}, where {stop - start} are expected")
        merged[name] = whole[max(0, cut.start - start) : max(0, cut.stop - start)].clone()
    return merged
