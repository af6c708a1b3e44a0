"""A fragment on the wire: T steps of B copies, one packed row per (step, copy) for each AgentInterface.

Rows are NumPy structured arrays, so a worker writes its fields straight into the message and a learner reads views of it: packing
costs nothing. T time, B copies, N agents. Fields are named group/field; `first` (an episode starts here), `state`,
`next_state` and, with joint actions, `joint_action`, `over` (an episode ends here, for everybody) and `cut` (because it was cut off) belong
to all groups. Beside the rows, where policies have a memory, it comes as of the start of each
chunk of steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from marl_hpc.types import InterfaceSpec

MEMORY = "memory"


def row_dtype(interface: InterfaceSpec, dtype: str) -> np.dtype:
    """The packed row of one step of one copy; `dtype` is float32 or float64, for what training computes with."""
    fields: list[tuple] = [("first", "bool")]
    if interface.critic_sees == "state":
        fields += [(name, dtype, (interface.state_size,)) for name in ("state", "next_state")]
    if interface.joint_agents:  # of all of them, also where the interface trains a few
        fields += [("joint_action", "int64", (len(interface.joint_agents),)), ("over", "bool"), ("cut", "bool")]
    for group in interface.groups:
        n, space = len(group.agents), group.action_space
        own = [
            ("observation", dtype, (n, *group.observation_shape)),
            ("next_observation", dtype, (n, *group.observation_shape)),  # what the action led to, also at an episode's end
            ("action", dtype if space.kind == "box" else "int64", (n, *space.action_shape)),
            ("log_prob", dtype, (n,)),
            ("reward", dtype, (n,)),
            ("active", "bool", (n,)),
            ("next_active", "bool", (n,)),
            ("terminated", "bool", (n,)),
            ("truncated", "bool", (n,)),
        ]
        if interface.modes:
            own.append(("best_response", "bool", (n,)))  # how the agent acts in this episode
        if group.action_mask:
            own += [(name, "bool", (n, space.size)) for name in ("action_mask", "next_action_mask")]
        fields += [(f"{group.name}/{name}", *rest) for name, *rest in own]
    # aligned: a torch view needs offsets and strides that are multiples of the item's size
    return np.dtype(fields, align=True)


def allocate(interface: InterfaceSpec, dtype: str, steps: int, copies: int) -> np.ndarray:
    """An empty fragment [T, B] of structured rows."""
    return np.zeros((steps, copies), row_dtype(interface, dtype))


def pack(rows: np.ndarray) -> Tensor:
    """The same memory as bytes [T, B, row]."""
    return torch.from_numpy(rows.view(np.uint8).reshape(*rows.shape, rows.dtype.itemsize))


def unpack(parts: Mapping[str, Tensor], interface: InterfaceSpec, dtype: str) -> dict[str, Tensor]:
    """Fields [T, B, N, …] as views into the packed bytes `parts["rows"]`, and the other parts as they are. Raises ValueError when the
    rows have another schema's size."""
    row, packed = row_dtype(interface, dtype), parts["rows"]
    if packed.shape[-1] != row.itemsize:
        raise ValueError(f"rows of {packed.shape[-1]} bytes for interface {interface.name!r}, whose schema has {row.itemsize}")
    rows = packed.numpy().view(row).squeeze(-1)
    fields = {name: torch.from_numpy(rows[name]) for name in row.names or ()}
    return fields | {name: x for name, x in parts.items() if name != "rows"}
