"""A parameter shard: a slice of every policy, by version.

The last few versions are kept, so that a reader can ask for one version from all shards and never sees half of two. Stored tensors
are never written again.

This is bulk synchronous training's: a learner *publishes* each policy. Asynchronous training's is in `optimizing`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from marl_hpc.comm.peers import Parking
from marl_hpc.storage.checkpoint import checksum
from marl_hpc.storage.transfer import Sender

KEPT = 4  # published versions; readers lag by at most one, and publishing waits for nobody


class ParameterShard:
    handlers = ("publish", "pull", "finish", "save")

    def __init__(self, index: int, policies: tuple[str, ...], transfer: str = "full") -> None:
        """`transfer`: how policies are sent to their readers, see `storage.transfer`."""
        self.index, self.policies = index, policies
        self.senders = {policy: Sender(transfer) for policy in policies}
        self.parking = Parking()
        self.versions: dict[int, dict[str, Tensor]] = {}
        self.final: int | None = None

    def publish(self, policy: str, version: int, values: Tensor) -> None:
        """Store this shard's slice. Publishing a version again changes nothing: a retry can't do harm."""
        with self.parking.lock:
            self.versions.setdefault(version, {}).setdefault(policy, values)
            for old in sorted(self.versions)[:-KEPT]:
                del self.versions[old]
            self.parking.settle()

    def pull(self, version: int, have: int = -1) -> Any:
        """{policy: slice} of exactly this version, when all policies have it, as it is sent to a reader who has version `have`;
        {"final": version} if training ended before it."""

        def ready() -> dict[str, Any] | None:
            if self.final is not None and version > self.final:
                return {"final": self.final}
            stored = self.versions.get(version, {})
            if len(stored) == len(self.policies):
                return {"values": {name: self.senders[name].send(version, values, have) for name, values in stored.items()}}
            newest = max(self.versions, default=-1)
            if version < newest and version not in self.versions:
                raise LookupError(f"parameter/{self.index} keeps {KEPT} versions, the newest {newest}; version {version} is gone")
            return None

        return self.parking.answer(ready)

    def finish(self, version: int) -> None:
        """Training ended with this version."""
        with self.parking.lock:
            self.final = version
            self.parking.settle()

    def save(self, folder: str, version: int) -> tuple[str, str]:
        """Write the slices of a version; returns (file name, checksum)."""
        with self.parking.lock:
            stored = dict(self.versions[version])
        path = Path(folder) / f"parameter-{self.index}.safetensors"
        save_file({name: values.contiguous() for name, values in stored.items()}, path)
        return path.name, checksum(path)

    def close(self) -> None:
        self.parking.close({"stopping": True})


def slices(size: int, shards: int) -> list[slice]:
    """Where a flat buffer is cut: as equal as possible, in order.

    >>> slices(7, 2)
    [slice(0, 4, None), slice(4, 7, None)]
    """
    bounds = torch.arange(shards + 1, dtype=torch.int64) * size
    cuts = (-(-bounds // shards)).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]
