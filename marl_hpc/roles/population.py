"""Parameter shard 0 where policies are kept: who is in the populations, what they return against one another, whom they meet next.

Frozen policies' values lie pinned on all shards; here are their lineages and the payoff table, whose batches are leased to rollout
workers. A stage's strategy is a function of the table's cells among those who were there then, so nothing depends on who computes what
or when, and a run that goes on from a checkpoint comes to the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl_hpc.comm.peers import Peer
from marl_hpc.config import NEEDS_TABLE, Population, needs_table
from marl_hpc.metrics import Clock
from marl_hpc.populations import Lease, Member, PayoffTable, PolicyId, PolicyPopulation, Sampling, cross_play
from marl_hpc.populations.cells import sharing
from marl_hpc.populations.schemes import SCHEMES, Known, Meeting, Strategy
from marl_hpc.roles.clients import World, _Client
from marl_hpc.roles.parameter import ParameterShard, belonging

BATCH = 50  # episodes that a rollout worker simulates at once; with more players, rounded up to whole rotations of seats


class PopulationShard(ParameterShard):
    handlers = (*ParameterShard.handlers, "admit", "work", "report", "fill", "strategy", "members", "table")

    def __init__(
        self, *arguments: Any, section: Population, populations: Sequence[int], exact: bool, seed: int, state: dict[str, Tensor] | None
    ) -> None:  # fmt: skip
        """`populations` of each player; `exact`: cells are computed, not simulated; `state` of a checkpoint, see `more_state`."""
        super().__init__(*arguments)
        self.section, self.exact = section, exact
        self.population = PolicyPopulation(populations)
        self.payoffs = PayoffTable(populations, None if exact else sampling(section, populations), seed=seed)
        self.computing: tuple[str, float] | None = None  # exact: who has been given the missing cells, until when
        self.strategies: dict[int, Strategy] = {}
        if state:
            self.population.load_state({key: x.numpy() for key, x in belonging(state, "population").items()})
            self.payoffs.load_state({key: x.numpy() for key, x in belonging(state, "table").items()})

    def admit(self, member: tuple[Any, ...]) -> None:
        """A policy is frozen, and its values are pinned. Repeating it changes nothing."""
        name, *rest = member
        with self.parking.lock:
            self.population.admit(Member(PolicyId(*name), *rest))
            self.parking.settle()

    def work(self, owner: str, stage: int) -> Any:
        """What a rollout worker is to do before it collects for a stage: {"lease": episodes to simulate} or {"cells": to compute}, and
        once the table is complete {"strategy"}. Waits where others are at it."""
        return self.parking.answer(lambda: self._work(owner, stage))

    def _work(self, owner: str, stage: int) -> dict[str, Any] | None:
        if not self._frozen(stage):
            return None
        if needs_table(self.section):
            self.payoffs.grow((stage + 1,) * len(self.payoffs.populations))
            missing, now_s = self.payoffs.missing(), time.monotonic()
            if len(missing) and self.exact:
                if self.computing is not None and self.computing[0] != owner and self.computing[1] > now_s:
                    return None
                self.computing = owner, now_s + 60.0
                return {"cells": torch.from_numpy(missing)}
            if len(missing):
                leases = self.payoffs.lease(owner, now_s=now_s)
                return {"lease": tuple(leases[0])} if leases else None
        return {"strategy": packed(self._strategy(stage))}

    def report(self, cell: tuple[int, ...], batch: int, returns: Tensor) -> None:
        """Returns [E, players] of a lease's episodes. Repeating it changes nothing."""
        with self.parking.lock:
            self.payoffs.report(cell, batch, returns.numpy())
            self.parking.settle()

    def fill(self, cells: Tensor, means: Tensor, beats: Tensor) -> None:
        """Cells [M, players] that have been computed, see `PayoffTable.fill`. Repeating it changes nothing."""
        with self.parking.lock:
            self.payoffs.fill(cells.numpy(), means.numpy(), beats.numpy())
            self.computing = None
            self.parking.settle()

    def strategy(self, stage: int, wait: bool) -> Any:
        """{"strategy"} of a stage; where it isn't known yet, waits or answers {}."""

        def ready() -> dict[str, Any] | None:
            if self._frozen(stage) and self._complete(stage):
                return {"strategy": packed(self._strategy(stage))}
            return None if wait else {}

        return self.parking.answer(ready)

    def members(self) -> list[tuple[Any, ...]]:
        """All lineages."""
        with self.parking.lock:
            return [(tuple(member.id), *member[1:]) for member in self.population]

    def table(self) -> dict[str, Tensor]:
        """`PayoffTable.state`."""
        with self.parking.lock:
            return tensors(self.payoffs.state())

    def _frozen(self, stage: int) -> bool:
        return min(self.population.sizes) > stage

    def _complete(self, stage: int) -> bool:
        """Whether every cell among the members of a stage is done."""
        if not needs_table(self.section):
            return True
        here = (slice(stage + 1),) * len(self.payoffs.populations)
        return min(self.payoffs.sizes) > stage and not np.isnan(self.payoffs.known_payoffs()[(slice(None), *here)]).any()

    def _strategy(self, stage: int) -> Strategy:
        if stage not in self.strategies:
            sizes = (stage + 1,) * len(self.payoffs.populations)
            payoffs = wins = None
            if self.section.name in NEEDS_TABLE:
                payoffs = self.payoffs.known_payoffs()[(slice(None), *map(slice, sizes))]
                wins = rates_of_wins(self.payoffs, stage)
            self.strategies[stage] = SCHEMES[self.section.name](Known(sizes, payoffs, wins), self.section)
        return self.strategies[stage]

    def more_state(self) -> dict[str, Tensor]:
        record = {f"population.{key}": x for key, x in tensors(self.population.state()).items()}
        return record | {f"table.{key}": x for key, x in tensors(self.payoffs.state()).items()}


def sampling(section: Population, populations: Sequence[int]) -> Sampling:
    rotation = int(np.prod([np.prod(np.arange(1, len(group) + 1)) for group in sharing(populations)]))
    batch = -(-BATCH // rotation) * rotation
    return Sampling(
        half_width=section.half_width, min_episodes=section.min_episodes, max_episodes=section.max_episodes, batch=batch
    )


def rates_of_wins(table: PayoffTable, stage: int) -> list[list[np.ndarray]]:
    """See `schemes.Known`; against itself half."""
    played = cross_play(table)
    place = {name: i for i, name in enumerate(played.names)}
    rates = []
    for own in table.populations:
        mine, others = place[PolicyId(own, stage)], []
        for other in table.populations:
            theirs = [place[PolicyId(other, number)] for number in range(stage + 1)]
            games = played.games[mine, theirs]
            scores = played.wins[mine, theirs] + played.draws[mine, theirs] / 2
            others.append(np.where(games > 0, scores / np.maximum(games, 1e-300), 0.5))
        rates.append(others)
    return rates


def packed(strategy: Strategy) -> dict[str, Any]:
    """As it is sent."""
    return {
        "meetings": [
            (torch.from_numpy(np.ascontiguousarray(m.profiles)), torch.from_numpy(np.array(m.weights))) for m in strategy.meetings
        ],
        "live": strategy.live,
        "mixtures": [torch.from_numpy(np.array(mixture)) for mixture in strategy.mixtures],
    }


def unpacked(record: dict[str, Any]) -> Strategy:
    meetings = tuple(Meeting(profiles.numpy(), weights.numpy()) for profiles, weights in record["meetings"])
    return Strategy(meetings, record["live"], tuple(mixture.numpy() for mixture in record["mixtures"]))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.array(x)) for key, x in arrays.items()}


class Work(NamedTuple):
    """One of: a strategy, a lease, or cells [M, players]."""

    strategy: Strategy | None = None
    lease: Lease | None = None
    cells: np.ndarray | None = None


class PopulationClient(_Client):
    """That shard, for learners and rollout workers."""

    def __init__(self, shard: Peer, owner: str, world: World, clock: Clock) -> None:
        super().__init__([shard], world, clock)
        self.owner = owner

    def admit(self, member: Member) -> None:
        self._call("admit", (tuple(member.id), *member[1:]))

    def work(self, stage: int) -> Work:
        answer = self._call("work", self.owner, stage)
        if "strategy" in answer:
            return Work(strategy=unpacked(answer["strategy"]))
        if "cells" in answer:
            return Work(cells=answer["cells"].numpy())
        cell, *rest = answer["lease"]
        return Work(lease=Lease(tuple(cell), *rest))

    def report(self, lease: Lease, returns: np.ndarray) -> None:
        self._call("report", lease.cell, lease.batch, torch.from_numpy(returns))

    def fill(self, cells: np.ndarray, means: np.ndarray, beats: np.ndarray) -> None:
        self._call("fill", *(torch.from_numpy(np.ascontiguousarray(x)) for x in (cells, means, beats)))

    def strategy(self, stage: int, *, wait: bool) -> Strategy | None:
        answer = self._call("strategy", stage, wait)
        return unpacked(answer["strategy"]) if answer else None

    def members(self) -> list[Member]:
        return [Member(PolicyId(*name), *rest) for name, *rest in self._call("members")]

    def table(self) -> dict[str, np.ndarray]:
        return {key: x.numpy() for key, x in self._call("table").items()}

    def _call(self, method: str, *arguments: Any) -> Any:
        def describe() -> str:
            return f"{self.peers[0].name} doesn't answer {method}: are the other workers simulating payoffs?"

        return self._wait(self.peers[0].call(method, *arguments), "the population", describe)
