"""Algorithms: what is optimized, never who else optimizes it. One file each; `ALGORITHMS` maps names to classes.

An algorithm is a class with a `Config` dataclass and the methods of `Algorithm` below. Sums that have to run over all replicas of
a learner go through the `exchange` it is given; alone, that adds nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marl_hpc.config import ConfigError
from marl_hpc.networks import Actor, FlatParameters
from marl_hpc.types import Exchange, GroupSpec

ALGORITHMS: dict[str, str | type] = {"ppo": "marl_hpc.algorithms.ppo:PPO"}

Batch = dict[str, torch.Tensor]


class Algorithm(Protocol):
    """What an AgentInterface trains with. Shapes: T time, B copies that this replica holds, N agents of the group."""

    Config: ClassVar[type]
    actor: Actor
    parameters: FlatParameters  # the actor first, so that a policy is the buffer's beginning
    sums: tuple[str, ...]  # what `loss` sums beside the gradient; one of them is `count`, the samples summed over

    def __init__(self, config: Any, group: GroupSpec, exchange: Exchange, *, device: Any, dtype: Any, seed: int) -> None: ...

    @staticmethod
    def check(config: Any, group: GroupSpec) -> None:
        """Raise ConfigError where the algorithm can't serve this group's spaces, saying what would work."""
        ...

    def minibatches(self, batch: Batch, columns: torch.Tensor, total: int, seed: int) -> Iterator[Batch]:
        """Minibatches of one batch of fields [T, B, N, …]; `columns` [B] are its places among the `total` copies of all
        replicas. Every replica yields equally many, and together they are the global minibatches."""
        ...

    def loss(self, minibatch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, the numbers named by `sums`), both summed over this replica's part of the minibatch."""
        ...

    def summarize(self, sums: torch.Tensor) -> dict[str, float]:
        """Metrics of one batch from the sums of its minibatches, [M, len(self.sums)], over all replicas."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Everything beside parameters and optimizer that training goes on from."""
        ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...


def resolve(name: str) -> type:
    """The class behind an algorithm's name. Raises ConfigError with the nearest names."""
    target = ALGORITHMS.get(name, name if ":" in name else None)
    if target is None:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown algorithm.name={name!r}{hint} known: {', '.join(sorted(ALGORITHMS))}; or my_module:Class")
    if isinstance(target, type):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"algorithm.name={name!r} could not be imported: {error}") from error


def configure(section: dict[str, Any]) -> tuple[type, Any]:
    """(algorithm class, its typed configuration) from the `algorithm` section. Raises ConfigError naming key and choices."""
    section = dict(section)
    algorithm = resolve(section.pop("name"))
    known = [f.name for f in fields(algorithm.Config)]
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean algorithm.{near[0]}?" if near else ";"
            raise ConfigError(f"unknown key algorithm.{key}={section[key]!r}{hint} known: {', '.join(known)}")
    try:
        schema = OmegaConf.structured(algorithm.Config)
        OmegaConf.set_readonly(schema, False)
        typed = OmegaConf.to_object(OmegaConf.merge(schema, section))
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"algorithm{f'.{key}={section.get(key)!r}' if key else ''}: {str(error).splitlines()[0]}") from error
    return algorithm, typed
