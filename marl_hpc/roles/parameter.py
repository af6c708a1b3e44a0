"""A parameter shard: a slice of every policy, by version.

The last few versions are kept, so that a reader can ask for one version from all shards and never sees half of two. Stored tensors
are never written again.
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

KEPT = 4  # versions; readers lag by at most one, and publishing waits for nobody


class ParameterShard:
    handlers = ("publish", "pull", "finish", "save")

    def __init__(self, index: int, policies: tuple[str, ...]) -> None:
        self.index, self.policies = index, policies
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

    def pull(self, version: int) -> Any:
        """{policy: slice} of exactly this version, when all policies have it; {"final": version} if training ended before it."""

        def ready() -> dict[str, Any] | None:
            if self.final is not None and version > self.final:
                return {"final": self.final}
            stored = self.versions.get(version, {})
            if len(stored) == len(self.policies):
                return {"values": dict(stored)}
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
