"""Gymnasium spaces as policies know them: observations as float32 arrays, actions as choices that start at 0.

Observations: a Box keeps its shape (images of 0 … 255 are only cast: the network scales them); Discrete, MultiDiscrete and MultiBinary
become one number a choice; a Tuple or a Dict is flattened into one vector, a Dict's `action_mask` apart. May import types and config
only, besides gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace

FLAT = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Encoding(NamedTuple):
    """How one agent's observations become arrays [*shape] of float32."""

    shape: tuple[int, ...]
    image: bool  # three dimensions of 0 … 255
    masked: bool  # observations are dicts with an action_mask
    encode: Callable[[Any], np.ndarray]


def action_space(space: Any, owner: str) -> ActionSpace:
    """Describe a gymnasium action space. Raises ConfigError for kinds that no policy of ours can act in."""
    if isinstance(space, spaces.Discrete):
        return ActionSpace(kind="discrete", n=int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (tuple(float(v) for v in side.ravel()) for side in (space.low, space.high))
        return ActionSpace(kind="box", shape=tuple(space.shape), low=low, high=high)
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1:
            raise ConfigError(f"{owner}: action space {space}; a MultiDiscrete must have one dimension")
        return ActionSpace(kind="multi_discrete", nvec=tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpace(kind="multi_discrete", nvec=(2,) * int(np.prod(space.shape)))
    raise ConfigError(
        f"{owner}: action space {space} is none of Discrete, MultiDiscrete, MultiBinary and Box, the kinds that policies can act in"
    )


def decoder(space: Any) -> Callable[[Any], Any]:
    """From an agent's action in the batch (`ActionSpace.action_shape`, choices from 0) to what its environment takes.

    >>> decoder(spaces.Discrete(3, start=5))(np.int64(2))
    7
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda action: int(action) + start
    if isinstance(space, spaces.MultiDiscrete):
        return lambda action: (np.asarray(action) + space.start).astype(space.dtype)
    return lambda action: np.asarray(action, space.dtype).reshape(space.shape)


def flat_mask(mask: Any, choices: tuple[int, ...], owner: str) -> np.ndarray:
    """A mask, one array or one array for each part of the action, as bool [sum of choices]. Where nothing is legal in a part, its first
    choice is what remains: gymnasium samples that, too. Raises ValueError when the sizes differ."""
    parts = [mask] if isinstance(mask, np.ndarray) else list(mask)
    flat = np.concatenate([np.ravel(part) for part in parts]).astype(bool)
    if flat.size != sum(choices):
        raise ValueError(f"{owner}: its action mask has {flat.size} entries, its action space {sum(choices)} choices")
    first = 0
    for n in choices:
        if not flat[first : first + n].any():
            flat[first] = True
        first += n
    return flat


def encoding(space: Any, owner: str) -> Encoding:
    """How observations of this space become arrays. Raises ConfigError for what has no fixed size or isn't made of numbers."""
    masked = isinstance(space, spaces.Dict) and "action_mask" in space.spaces
    if masked:
        rest = {key: inner for key, inner in space.spaces.items() if key != "action_mask"}
        if not rest:
            raise ConfigError(f"{owner}: observation space {space} holds an action_mask and nothing to observe")
        if len(rest) > 1:  # `encode` gets the whole dict and takes what its space names
            return encoding(spaces.Dict(rest), owner)._replace(masked=True)
        (key, inner), = rest.items()  # fmt: skip
        plain = encoding(inner, owner)
        return plain._replace(masked=True, encode=lambda seen: plain.encode(seen[key]))
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape) or (1,)
        image = len(shape) == 3 and space.dtype == np.uint8 and space.high.max(initial=0) > 1
        return Encoding(shape, bool(image), False, lambda seen: np.asarray(seen, np.float32).reshape(shape))
    if not _flattens(space):
        raise ConfigError(
            f"{owner}: observation space {space} can't become one array; expected a Box, Discrete, MultiDiscrete or MultiBinary, "
            "or a Dict or Tuple of those"
        )
    size = int(spaces.flatdim(space))
    if isinstance(space, spaces.MultiDiscrete):
        return Encoding((size,), False, False, lambda seen: np.asarray(spaces.flatten(space, np.asarray(seen)), np.float32))
    return Encoding((size,), False, False, lambda seen: np.asarray(spaces.flatten(space, seen), np.float32))


def _flattens(space: Any) -> bool:
    inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces if isinstance(space, spaces.Tuple) else None
    return isinstance(space, FLAT) if inner is None else all(_flattens(part) for part in inner)
