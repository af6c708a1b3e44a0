"""How versions of a vector are sent to readers: as they are, rounded to bfloat16, or as bfloat16 differences to what a reader has.

Differences are taken to what readers *have*, not to the last exact version, so that rounding errors don't add up: what a reader holds
is always within one rounding of the last difference. Half the bytes in both cases; differences are the more exact, the smaller steps are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("full", "bfloat16", "delta")
KEPT = 4  # versions


class Link(NamedTuple):
    version: int
    values: Tensor  # as readers have them
    delta: Tensor | None  # from the link before


class Sender:
    """A shard's side, for one vector."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.chain: list[Link] = []

    def send(self, version: int, values: Tensor, have: int) -> dict[str, Any]:
        """What a reader who has version `have` (-1: none) needs for `version`, whose exact `values` are given."""
        if self.kind == "full":
            return {"full": values}
        if self.kind == "bfloat16":
            return {"rounded": values.to(torch.bfloat16)}
        if not self.chain or version > self.chain[-1].version:
            self._extend(version, values)
        places = {link.version: place for place, link in enumerate(self.chain)}
        if version not in places:
            return {"full": values}  # older than what is kept: the reader begins anew
        if have in places and have <= version:
            return {"base": have, "deltas": [link.delta for link in self.chain[places[have] + 1 : places[version] + 1]]}
        return {"full": self.chain[places[version]].values}

    def _extend(self, version: int, values: Tensor) -> None:
        if not self.chain:
            self.chain = [Link(version, values, None)]
            return
        before = self.chain[-1].values
        delta = (values - before).to(torch.bfloat16)
        self.chain = [*self.chain[1 - KEPT :], Link(version, before + delta, delta)]


class Receiver:
    """A reader's side, for one vector of one shard."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kept: dict[int, Tensor] = {}

    @property
    def have(self) -> int:
        """The newest version that is here; -1 without any."""
        return max(self.kept, default=-1)

    def receive(self, version: int, sent: dict[str, Any]) -> Tensor:
        """The values of a version from what was sent."""
        if "deltas" not in sent:
            self.kept.clear()  # large vectors are not kept for nothing
        if "full" in sent:
            values = sent["full"]
        elif "rounded" in sent:
            values = sent["rounded"].to(self.dtype)
        else:
            values = self.kept[sent["base"]]
            for delta in sent["deltas"]:
                values = values + delta
        self.kept[version] = values
        for old in sorted(self.kept)[:-KEPT]:
            del self.kept[old]
        return values
