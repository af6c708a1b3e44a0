"""Uniformly random legal play: what an environment gives whoever knows nothing. May import types, besides NumPy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from marl_hpc.types import ActionSpace, EnvBatch, Step


def random_actions(space: ActionSpace, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Legal actions [N, *action_shape] by masks [N, size], uniform; a box's unbounded sides are cut a distance of 1 away."""
    drawn = random.random(mask.shape)
    if space.kind == "box":
        low, high = np.array(space.low), np.array(space.high)
        low = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - 1, -1))
        high = np.where(np.isfinite(high), high, np.maximum(low + 1, 1))
        return (low + drawn * (high - low)).astype(np.float32)
    parts = np.split(np.where(mask, drawn, -1), np.cumsum(space.choices)[:-1], -1)
    chosen = np.stack([part.argmax(-1) for part in parts], -1)
    return chosen[:, 0] if space.kind == "discrete" else chosen


def random_returns(
    env: EnvBatch, tally: Callable[[Step], np.ndarray], *, episodes: int = 32, limit_s: float = 3.0, seed: int = 0
) -> np.ndarray:
    """[E, …]: what the steps of whole episodes were tallied as in all; `tally` [B, …] is of one step. Fewer episodes, or none, where more
    aren't over in time."""
    random, spec = np.random.default_rng(seed), env.spec
    env.reset(list(range(env.copies)), list(range(env.copies)))
    sums, begun, found = np.zeros(0), env.copies, []
    until = time.monotonic() + limit_s
    while len(found) < episodes and time.monotonic() < until:
        seen, actions = env.observe(), {}
        for group in spec.groups:
            size = group.action_space.size
            mask = seen.action_mask[group.name] if group.action_mask else np.ones((env.copies, len(group.agents), size), bool)
            actions[group.name] = np.stack([random_actions(group.action_space, own, random) for own in mask])
        step = env.step(actions)
        gained = tally(step)
        sums = sums + gained if len(sums) else gained.astype(float)
        for copy in np.flatnonzero(step.over).tolist():
            found.append(sums[copy].copy())
            sums[copy] = 0
            env.reset([copy], [begun])
            begun += 1
    return np.array(found)
