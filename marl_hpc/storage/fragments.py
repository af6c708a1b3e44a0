"""A fragment on the wire: T steps of B copies, one packed row per (step, copy) for each group.

Rows are NumPy structured arrays, so a worker writes its fields straight into the message and a learner reads views of it: packing
costs nothing. T time, B copies, N agents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from marl_hpc.types import GroupSpec


def row_dtype(group: GroupSpec, dtype: str) -> np.dtype:
    """The packed row of one step of one copy; `dtype` is float32 or float64, for what training computes with."""
    n, space = len(group.agents), group.action_space
    fields = [
        ("observation", dtype, (n, *group.observation_shape)),
        ("next_observation", dtype, (n, *group.observation_shape)),  # what the action led to, also at an episode's end
        ("action", "int64", (n,)) if space.kind == "discrete" else ("action", dtype, (n, int(np.prod(space.shape)))),
        ("log_prob", dtype, (n,)),
        ("reward", dtype, (n,)),
        ("active", "bool", (n,)),
        ("terminated", "bool", (n,)),
        ("truncated", "bool", (n,)),
    ]
    if group.action_mask:
        fields.append(("action_mask", "bool", (n, space.n)))
    # aligned: a torch view needs offsets and strides that are multiples of the item's size
    return np.dtype(fields, align=True)


def allocate(group: GroupSpec, dtype: str, steps: int, copies: int) -> np.ndarray:
    """An empty fragment [T, B] of structured rows."""
    return np.zeros((steps, copies), row_dtype(group, dtype))


def pack(rows: np.ndarray) -> Tensor:
    """The same memory as bytes [T, B, row]."""
    return torch.from_numpy(rows.view(np.uint8).reshape(*rows.shape, rows.dtype.itemsize))


def unpack(packed: Tensor, group: GroupSpec, dtype: str) -> dict[str, Tensor]:
    """Fields [T, B, N, …] as views into the packed bytes. Raises ValueError when the rows have another schema's size."""
    row = row_dtype(group, dtype)
    if packed.shape[-1] != row.itemsize:
        raise ValueError(f"rows of {packed.shape[-1]} bytes for group {group.name!r}, whose schema has {row.itemsize}")
    rows = packed.numpy().view(row).squeeze(-1)
    return {name: torch.from_numpy(rows[name]) for name in row.names or ()}
