"""Versions that are kept under a name until somebody lets them go: opponents, what is being evaluated.

What is pinned never changes: its content hash is taken when it is pinned, and checked whenever it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Pin(NamedTuple):
    version: int
    values: Tensor
    content: str  # hash of the values


class Pins:
    """
    >>> pins = Pins()
    >>> pins.keep("rock", 3, torch.zeros(2))
    >>> pins.read("rock")
    (3, tensor([0., 0.]))
    """

    def __init__(self) -> None:
        self._pins: dict[str, Pin] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._pins)

    def __len__(self) -> int:
        return len(self._pins)

    def keep(self, name: str, version: int, values: Tensor) -> None:
        """Pin `values`, which nobody may write to any more. Repeating it changes nothing; raises ValueError where the name stands for
        something else."""
        content = content_hash(values)
        pin = self._pins.setdefault(name, Pin(version, values, content))
        if (pin.version, pin.content) != (version, content):
            raise ValueError(
                f"{name!r} is pinned as version {pin.version} already, with other numbers than version {version}; unpin it first"
            )

    def read(self, name: str) -> tuple[int, Tensor]:
        """(version, values). Raises RuntimeError when somebody has written into them."""
        if name not in self._pins:
            raise LookupError(f"nothing is pinned as {name!r}; pins: {', '.join(self._pins) or 'none'}")
        version, values, content = self._pins[name]
        if content_hash(values) != content:
            raise RuntimeError(f"pinned version {name!r} has changed")
        return version, values

    def drop(self, name: str) -> None:
        """Let go; nothing happens where nothing is pinned."""
        self._pins.pop(name, None)

    def state(self) -> dict[str, Tensor]:
        """Everything that is pinned, for `load_state`."""
        record = {}
        for name in self:
            version, values = self.read(name)
            record |= {f"values.{name}": values, f"version.{name}": torch.tensor(version)}
        return record

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Pin what a state holds instead of what is pinned."""
        names = [key.removeprefix("values.") for key in state if key.startswith("values.")]
        self._pins = {}
        for name in names:
            self.keep(name, int(state[f"version.{name}"]), state[f"values.{name}"])


def content_hash(values: Tensor) -> str:
    """SHA-256 of a tensor's numbers.

    >>> content_hash(torch.zeros(2)) == content_hash(torch.zeros(2))
    True
    """
    return hashlib.sha256(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
