"""What algorithms learn from without environments and ranks: made-up batches, and"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from marl_hpc.types import InterfaceSpec


def batch_of(
    interface: InterfaceSpec, steps: int, copies: int, seed: int = 0, ends: float = 0.12, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Fields as workers record them, [T, B, N, …], of agents that act at random. With probability `ends` an agent's episode terminates
    in a step, and with half of that all who live are truncated at once; the next step then starts an episode."""
    random, agents = np.random.default_rng(seed), len(interface.agents)
    shape = (steps, copies, agents)
    flags = {name: np.zeros(shape, bool) for name in ("active", "next_active", "terminated", "truncated")}
    first, alive, over = np.zeros((steps, copies), bool), np.ones((copies, agents), bool), np.ones(copies, bool)
    for t in range(steps):
        first[t], alive[over] = over, True
        flags["active"][t] = alive
        cut = random.random((copies, 1)) < ends / 2
        flags["truncated"][t] = alive & cut
        flags["terminated"][t] = alive & ~cut & (random.random(alive.shape) < ends)
        alive = alive & ~flags["truncated"][t] & ~flags["terminated"][t]
        flags["next_active"][t], over = alive, ~alive.any(1)
    batch: dict[str, np.ndarray] = {"first": first}

    def following(x: np.ndarray, apart: np.ndarray) -> np.ndarray:
        """x of the next step, something else where `apart` [T, B] or [T, B, N] and after the last one."""
        other = random.normal(size=x.shape)
        next_x = np.concatenate([x[1:], other[-1:]])
        return np.where(apart.reshape(*apart.shape, *[1] * (x.ndim - apart.ndim)), other, next_x)

    done = flags["terminated"] | flags["truncated"]
    if interface.state_size:
        batch["state"] = random.normal(size=(steps, copies, interface.state_size))
        batch["next_state"] = following(batch["state"], ~flags["next_active"].any(-1))
    start = 0
    for group in interface.groups:
        n, space = len(group.agents), group.action_space
        place = slice(start, start + n)
        start += n
        own = {name: x[..., place] for name, x in flags.items()}
        own["observation"] = random.normal(size=(steps, copies, n, *group.observation_shape))
        own["next_observation"] = following(own["observation"], done[..., place])
        own["reward"], own["log_prob"] = random.normal(size=(steps, copies, n)), -random.random((steps, copies, n))
        mask = np.ones((steps, copies, n, space.size), bool)
        if group.action_mask:
            mask = random.random(mask.shape) < 0.5
            for begin in np.cumsum([0, *space.choices[:-1]]):
                mask[..., begin] = True
            mask[~own["active"]] = True
            own["action_mask"] = mask
            own["next_action_mask"] = np.concatenate([mask[1:], mask[:1]]) | ~own["next_active"][..., None]
        if space.kind == "box":
            own["action"] = random.normal(size=(steps, copies, n, space.size))
        else:
            score, parts = np.where(mask, random.random(mask.shape), -1.0), np.cumsum([0, *space.choices])
            picks = [score[..., a:b].argmax(-1) for a, b in pairwise(parts)]
            own["action"] = picks[0] if space.kind == "discrete" else np.stack(picks, -1)
        batch |= {f"{group.name}/{name}": x for name, x in own.items()}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
