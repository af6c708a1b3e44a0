"""A parameter shard: a slice of every policy, by version.

The last few versions are kept, so that a reader can ask for one version from all shards and never sees half of two; what is *pinned* is
kept until it is let go, over restarts too. Stored tensors are never written again.

This is bulk synchronous training's: a learner *publishes* each policy. Asynchronous training's is in `optimizing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from marl_hpc.comm.peers import Parking
from marl_hpc.storage.checkpoint import checksum
from marl_hpc.storage.pins import Pins
from marl_hpc.storage.transfer import Sender

KEPT = 4  # published versions; readers lag by at most one, and publishing waits for nobody


class ParameterShard:
    handlers: tuple[str, ...] = ("publish", "pull", "pin", "keep", "pinned", "unpin", "finish", "save")

    def __init__(
        self, index: int, policies: tuple[str, ...], transfer: str = "full", shards: int = 1, checkpoint: Path | None = None
    ) -> None:
        """`transfer`: how policies are sent to their readers, see `storage.transfer`. Pins go on from the `checkpoint`, however many
        shards wrote it; this is one of `shards`."""
        self.index, self.policies = index, policies
        self.senders = {policy: Sender(transfer) for policy in policies}
        self.parking = Parking()
        self.versions: dict[int, dict[str, Tensor]] = {}
        self.final: int | None = None
        self.pins = Pins()
        if checkpoint is not None:
            self.pins.load_state(pinned_before(checkpoint, index, shards))

    def publish(self, policy: str, version: int, values: Tensor) -> None:
        """Store this shard's slice. Publishing a version again changes nothing: a retry can't do harm."""
        with self.parking.lock:
            self.versions.setdefault(version, {}).setdefault(policy, values)
            for old in sorted(self.versions)[:-KEPT]:
                del self.versions[old]
            self.parking.settle()

    def pull(self, version: int, have: int = -1, wanted: Sequence[str] | None = None) -> Any:
        """{policy: slice} of exactly this version, of all policies or those that are `wanted`, when all of them have it, as it is sent to
        a reader who has version `have`; {"final": version} if training ended before it."""
        names = self.policies if wanted is None else wanted

        def ready() -> dict[str, Any] | None:
            if self.final is not None and version > self.final:
                return {"final": self.final}
            stored = self.versions.get(version, {})
            if all(name in stored for name in names):
                return {"values": {name: self.senders[name].send(version, stored[name], have) for name in names}}
            newest = max(self.versions, default=-1)
            if version < newest and version not in self.versions:
                raise LookupError(f"parameter/{self.index} keeps {KEPT} versions, the newest {newest}; version {version} is gone")
            return None

        return self.parking.answer(ready)

    def pin(self, name: str, policy: str, version: int) -> None:
        """Keep this shard's slice of a version that is here under a name. Repeating it changes nothing."""
        with self.parking.lock:
            if policy not in self.versions.get(version, {}):
                kept = ", ".join(map(str, sorted(self.versions))) or "none"
                raise LookupError(f"version {version} of {policy!r} can't be pinned: parameter/{self.index} keeps versions {kept}")
            self.pins.keep(name, version, self.versions[version][policy])

    def keep(self, name: str, version: int, values: Tensor) -> None:
        """Pin a slice that comes along. Repeating it changes nothing."""
        with self.parking.lock:
            self.pins.keep(name, version, values)

    def pinned(self, name: str) -> tuple[int, Tensor]:
        """(version, slice) of a pin, see `storage.pins`."""
        with self.parking.lock:
            return self.pins.read(name)

    def unpin(self, name: str) -> None:
        with self.parking.lock:
            self.pins.drop(name)

    def finish(self, version: int) -> None:
        """Training ended with this version."""
        with self.parking.lock:
            self.final = version
            self.parking.settle()

    def save(self, folder: str, version: int) -> tuple[str, str]:
        """Write the slices of a version and of all pins; returns (file name, checksum)."""
        with self.parking.lock:
            record = {f"policy.{name}": values for name, values in self.versions[version].items()}
            record |= {f"pins.{key}": values for key, values in self.pins.state().items()}
            record |= self.more_state()
        path = Path(folder) / f"parameter-{self.index}.safetensors"
        save_file({name: values.clone() for name, values in record.items()}, path)  # safetensors refuses tensors that share memory
        return path.name, checksum(path)

    def more_state(self) -> dict[str, Tensor]:
        """What else belongs into this shard's file."""
        return {}

    def close(self) -> None:
        self.parking.close({"stopping": True})


def shard_files(folder: Path) -> list[Path]:
    """What the parameter shards wrote into a checkpoint, in their order."""
    return sorted(folder.glob("parameter-*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2]))


def belonging(record: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The entries of one owner, without its name."""
    return {key.removeprefix(f"{owner}."): x for key, x in record.items() if key.startswith(f"{owner}.")}


def pinned_before(checkpoint: Path, index: int, shards: int) -> dict[str, Tensor]:
    """The state of this shard's `Pins`, from the files of all."""
    states = [belonging(load_file(path), "pins") for path in shard_files(checkpoint)]
    state = {}
    for key, x in (states[0] if states else {}).items():
        if x.dim() == 0:  # a version
            state[key] = x
            continue
        whole = torch.cat([other[key] for other in states])
        state[key] = whole[slices(len(whole), shards)[index]].clone()
    return state


def slices(size: int, shards: int) -> list[slice]:
    """Where a flat buffer is cut: as equal as possible, in order.

    >>> slices(7, 2)
    [slice(0, 4, None), slice(4, 7, None)]
    """
    bounds = torch.arange(shards + 1, dtype=torch.int64) * size
    cuts = (-(-bounds // shards)).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]
