"""Parameter shard 0 where policies are kept: who is in the populations, what they return against one another, whom they meet next.

Frozen policies' values lie pinned on all shards; here are their lineages and the payoff table, whose batches are leased to rollout
workers. A stage's strategy is a function of the table's cells among those who were there then, so nothing depends on who computes what
or when, and a run that goes on from a checkpoint comes to the same. What has been simulated since the checkpoint stands in a journal.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl_hpc.comm.peers import Peer
from marl_hpc.config import Population, needs_table
from marl_hpc.metrics import Clock
from marl_hpc.populations import Lease, Member, PayoffTable, PolicyId, PolicyPopulation, Sampling, cross_play
from marl_hpc.populations.cells import Cell, sharing
from marl_hpc.populations.precision import loose_cells
from marl_hpc.populations.schemes import SCHEMES, Known, Meeting, Strategy, lines_of, needed, number_of
from marl_hpc.roles.clients import World, _Client
from marl_hpc.roles.parameter import ParameterShard, belonging
from marl_hpc.storage.journal import Journal

BATCH = 50  # episodes that a rollout worker simulates at once; with more players, rounded up to whole rotations of seats
REFINED = ("psro", "pipeline_psro")  # whose solution says which cells take more episodes


class PopulationShard(ParameterShard):
    handlers = (
        *ParameterShard.handlers, "admit", "work", "renew", "report", "fill", "strategy", "advance", "members", "table", "describe",
    )  # fmt: skip

    def __init__(
        self, *arguments: Any, section: Population, populations: Sequence[int], exact: bool, seed: int, lease_s: float,
        state: dict[str, Tensor] | None, journal: Journal | None = None, made_for: str = "",
    ) -> None:  # fmt: skip
        """`populations` of each player; `exact`: cells are computed, not simulated; `state` of a checkpoint, see `more_state`. The
        `journal` keeps what is simulated; of what it holds those batches count that were `made_for` the same: whatever else decides
        what policies return against one another."""
        super().__init__(*arguments)
        self.section, self.exact, self.lease_s, self.lines = section, exact, lease_s, lines_of(section)
        self.population = PolicyPopulation(populations)
        self.early: dict[PolicyId, Member] = {}  # admitted before those that come before them
        self.payoffs = PayoffTable(populations, None if exact else sampling(section, populations, lease_s), seed=seed)
        self.computing: tuple[str, float] | None = None  # exact: who has been given the missing cells, until when
        self.strategies: dict[int, Strategy] = {}
        self.advances, self.advanced_s = 0, time.monotonic()  # how often the table got something new, and when last
        self.journal, self.made_for = journal, made_for
        self.simulated: dict[Cell, dict[int, tuple[str, np.ndarray]]] = {}  # what the journal held: by batch (by whom, returns)
        for record in journal.found if journal is not None else ():
            batches = self.simulated.setdefault(tuple(record["cell"]), {})
            batches[record["batch"]] = record["by"], np.array(record["returns"])
        if state:
            self.population.load_state({key: x.numpy() for key, x in belonging(state, "population").items()})
            self.payoffs.load_state({key: x.numpy() for key, x in belonging(state, "table").items()})
            saved = belonging(state, "strategy")
            stages = {key.partition(".")[0] for key in saved}
            self.strategies = {int(stage): unpacked(belonging(saved, stage)) for stage in stages}

    def admit(self, member: tuple[Any, ...]) -> None:
        """A policy is frozen, and its values are pinned. Repeating it changes nothing. One that comes before its turn joins when that has
        come: its learner doesn't wait, since a stop would end that wait and leave a checkpoint without it."""
        new = Member(PolicyId(*member[0]), *member[1:])
        with self.parking.lock:
            if new.id.number <= self._size(new.id.population):
                self.population.admit(new)
            elif self.early.setdefault(new.id, new) != new:
                raise ValueError(f"policy {new.id} is {self.early[new.id]} already; it can't become {new}")
            while (name := self.population.next_id(new.id.population)) in self.early:
                self.population.admit(self.early.pop(name))
            self.parking.settle()

    def work(self, owner: str, stage: int, wait: bool) -> Any:
        """What a rollout worker is to do before it collects for a stage: {"lease": episodes to simulate} or {"cells": to compute}, and
        once the table is complete {"strategy"}. Where others are at it, waits or answers {}."""
        with self.parking.lock:
            known = len(self.strategies)
            answer = self.parking.answer(lambda: self._work(owner, stage) or (None if wait else {}))
            if len(self.strategies) > known:
                self.parking.settle()  # others wait for that
        return answer

    def _work(self, owner: str, stage: int) -> dict[str, Any] | None:
        if not self._frozen(stage):
            return None
        if needs_table(self.section) and stage not in self.strategies:
            self.payoffs.grow((self._members(stage),) * self.players, needed(self.section, stage, self.players))
            self._recall()
            while not len(self.payoffs.missing()) and self._refine(stage):
                self._recall()
            missing, now_s = self.payoffs.missing(), time.monotonic()
            if len(missing) and self.exact:
                if self.computing is not None and self.computing[0] != owner and self.computing[1] > now_s:
                    return None
                self.computing = owner, now_s + self.lease_s
                return {"cells": torch.from_numpy(missing)}
            if len(missing):
                leases = self.payoffs.lease(owner, now_s=now_s)
                return {"lease": tuple(leases[0])} if leases else None
        return {"strategy": packed(self._strategy(stage))}

    def renew(self, owner: str) -> None:
        """This worker is still at what it has been given."""
        with self.parking.lock:
            self.payoffs.renew(owner, now_s=time.monotonic())
            if self.computing is not None and self.computing[0] == owner:
                self.computing = owner, time.monotonic() + self.lease_s

    def report(self, cell: tuple[int, ...], batch: int, returns: Tensor) -> None:
        """Returns [E, players] of a lease's episodes. Repeating it changes nothing."""
        with self.parking.lock:
            if self.payoffs.report(cell, batch, returns.numpy()):
                if self.journal is not None:
                    by = self._identity(tuple(cell))
                    self.journal.append({"cell": list(cell), "batch": batch, "by": by, "returns": returns.tolist()})
                self._advance()

    def fill(self, cells: Tensor, means: Tensor, beats: Tensor) -> None:
        """Cells [M, players] that have been computed, see `PayoffTable.fill`. Repeating it changes nothing."""
        with self.parking.lock:
            self.payoffs.fill(cells.numpy(), means.numpy(), beats.numpy())
            self.computing = None
            self._advance()

    def strategy(self, stage: int, wait: bool) -> Any:
        """{"strategy"} of a stage; where it isn't known yet, waits or answers {}."""

        def ready() -> dict[str, Any] | None:
            if self._is_known(stage):
                return {"strategy": packed(self._strategy(stage))}
            return None if wait else {}

        return self.parking.answer(ready)

    def advance(self, stage: int, seen: int) -> Any:
        """{"known": whether a stage's strategy is, "advances": how often the payoff table has got something new}; waits until it is known or
        those are more than `seen`."""

        def ready() -> dict[str, Any] | None:
            known = self._is_known(stage)
            return {"known": known, "advances": self.advances} if known or self.advances > seen else None

        return self.parking.answer(ready)

    def members(self) -> list[tuple[Any, ...]]:
        """All lineages."""
        with self.parking.lock:
            return [(tuple(member.id), *member[1:]) for member in self.population]

    def table(self) -> dict[str, Tensor]:
        """`PayoffTable.state`."""
        with self.parking.lock:
            return tensors(self.payoffs.state())

    def describe(self) -> str:
        """How far the payoff table is, for an error message."""
        with self.parking.lock:
            ago = "nothing has come yet" if not self.advances else f"the last came {time.monotonic() - self.advanced_s:.0f} s ago"
            return (
                f"parameter/{self.index}: {len(self.population)} policies are frozen, {len(self.payoffs.missing())} cells of the payoff table are "
                f"missing, {'computed' if self.exact else 'simulated'} by {', '.join(self._at_it()) or 'nobody'}; {ago}"
            )

    def _at_it(self) -> list[str]:
        if self.exact:
            return [] if self.computing is None else [self.computing[0]]
        return self.payoffs.owners(now_s=time.monotonic())

    def save(self, folder: str, version: int) -> tuple[str, str]:
        if self.journal is not None:
            with self.parking.lock:
                self.journal.cut()
        return super().save(folder, version)

    def _advance(self) -> None:
        self.advances, self.advanced_s = self.advances + 1, time.monotonic()
        self.parking.settle()

    def _is_known(self, stage: int) -> bool:
        return stage in self.strategies or (self._frozen(stage) and not needs_table(self.section))

    def _recall(self) -> None:
        """Count what the journal holds of cells that are asked for. A fault takes the table back to the last checkpoint, and with it
        policies that were frozen since: what stands there of others than those that are here now isn't theirs."""
        if not self.simulated:
            return
        for cell in map(tuple, self.payoffs.missing().tolist()):
            for batch, (by, returns) in self.simulated.get(cell, {}).items():
                if by == self._identity(cell):
                    self.payoffs.report(cell, batch, returns)

    def _identity(self, cell: Cell) -> str:
        """What decides the returns of a cell's batches, beside their numbers."""
        members = [self.population.member(PolicyId(*name)) for name in zip(self.payoffs.populations, cell, strict=True)]
        played = [(member.content, member.played) for member in members]
        assert self.payoffs.sampling is not None, "exact cells aren't simulated"
        text = json.dumps([self.made_for, self.payoffs.seed, self.payoffs.sampling.batch, played])
        return hashlib.sha256(text.encode()).hexdigest()

    def _refine(self, stage: int) -> bool:
        """Ask for more episodes of the cells that a stage's strategy rests on, as long as they are too uncertain for that; whether any
        are."""
        if self.section.name in REFINED and not self.exact and self._complete(stage):
            errors = np.where(
                needed(self.section, stage, self.players), self.payoffs.errors()[(slice(None), *self._here(stage))], np.nan
            )
            meetings = [pair for line in self._strategy(stage).meetings for pair in enumerate(line)]
            loose = loose_cells(self.payoffs.populations, meetings, errors, self.section.half_width)
            if self.payoffs.refine(loose):
                del self.strategies[stage]
                return True
        return False

    def _frozen(self, stage: int) -> bool:
        return min(self.population.sizes) >= self._members(stage)

    def _size(self, population: int) -> int:
        return self.population.sizes[self.population.populations.index(population)]

    def _members(self, stage: int) -> int:
        """How many each population has when a stage begins."""
        return 1 + stage * self.lines

    @property
    def players(self) -> int:
        return len(self.payoffs.populations)

    def _complete(self, stage: int) -> bool:
        """Whether every cell that a stage's strategy is made of is done."""
        if not needs_table(self.section):
            return True
        if min(self.payoffs.sizes) < self._members(stage):
            return False
        return not (np.isnan(self._known(stage)[0]) & needed(self.section, stage, self.players)).any()

    def _known(self, stage: int) -> np.ndarray:
        """Payoffs [players, *sizes] among the members of a stage."""
        return self.payoffs.known_payoffs()[(slice(None), *self._here(stage))]

    def _here(self, stage: int) -> tuple[slice, ...]:
        return (slice(self._members(stage)),) * self.players

    def _strategy(self, stage: int) -> Strategy:
        if stage not in self.strategies:
            payoffs = self._known(stage) if needs_table(self.section) else None
            wins = rates_of_wins(self.payoffs, stage, self.lines) if self.section.name == "league" else None
            known = Known(stage, self.lines, self.players, payoffs, wins)
            self.strategies[stage] = SCHEMES[self.section.name](known, self.section)
        return self.strategies[stage]

    def more_state(self) -> dict[str, Tensor]:
        assert not self.early, "all learners have frozen a stage's policies before they save"
        record = {f"population.{key}": x for key, x in tensors(self.population.state()).items()}
        record |= {f"table.{key}": x for key, x in tensors(self.payoffs.state()).items()}
        for stage, strategy in self.strategies.items():
            record |= {f"strategy.{stage}.{key}": x for key, x in packed(strategy).items()}
        return record


def sampling(section: Population, populations: Sequence[int], lease_s: float) -> Sampling:
    rotation = int(np.prod([np.prod(np.arange(1, len(group) + 1)) for group in sharing(populations)]))
    batch = -(-BATCH // rotation) * rotation
    half_width = math.inf if section.name in REFINED else section.half_width
    return Sampling(
        half_width=half_width, min_episodes=section.min_episodes, max_episodes=section.max_episodes, batch=batch, lease_s=lease_s
    )


def rates_of_wins(table: PayoffTable, stage: int, lines: int) -> list[list[list[np.ndarray]]]:
    """See `schemes.Known`; against itself half."""
    newest = [number_of(stage, line, lines) if stage else 0 for line in range(lines)]
    members = range(1 + stage * lines)
    played = cross_play(table)
    place = {name: i for i, name in enumerate(played.names)}
    scores = np.where(played.games > 0, (played.wins + played.draws / 2) / np.maximum(played.games, 1e-300), 0.5)

    def rates(own: int, number: int, other: int) -> np.ndarray:
        return scores[place[PolicyId(own, number)], [place[PolicyId(other, member)] for member in members]]

    return [[[rates(own, number, other) for other in table.populations] for own in table.populations] for number in newest]


def packed(strategy: Strategy) -> dict[str, Tensor]:
    """As it is sent and saved."""
    arrays = {"live": np.array(strategy.live)} | {f"mixture.{player}": mixture for player, mixture in enumerate(strategy.mixtures)}
    for line, meetings in enumerate(strategy.meetings):
        for player, meeting in enumerate(meetings):
            arrays |= {f"profiles.{line}.{player}": meeting.profiles, f"weights.{line}.{player}": meeting.weights}
    return tensors(arrays)


def unpacked(record: Mapping[str, Tensor]) -> Strategy:
    players = sum(key.startswith("mixture.") for key in record)
    arrays = {key: x.numpy() for key, x in record.items()}
    meetings = tuple(
        tuple(Meeting(arrays[f"profiles.{line}.{i}"], arrays[f"weights.{line}.{i}"]) for i in range(players))
        for line in range(len(arrays["live"]))
    )
    return Strategy(meetings, tuple(arrays["live"].tolist()), tuple(arrays[f"mixture.{i}"] for i in range(players)))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.array(x, order="C")) for key, x in arrays.items()}


class Work(NamedTuple):
    """One of: a strategy, a lease, or cells [M, players]; none where others are at it."""

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

    def work(self, stage: int, *, wait: bool) -> Work:
        answer = self._call("work", self.owner, stage, wait, of=stage)
        if not answer:
            return Work()
        if "strategy" in answer:
            return Work(strategy=unpacked(answer["strategy"]))
        if "cells" in answer:
            return Work(cells=answer["cells"].numpy())
        cell, *rest = answer["lease"]
        return Work(lease=Lease(tuple(cell), *rest))

    def renew(self) -> None:
        self._call("renew", self.owner)

    def report(self, lease: Lease, returns: np.ndarray) -> None:
        self._call("report", lease.cell, lease.batch, torch.from_numpy(returns))

    def fill(self, cells: np.ndarray, means: np.ndarray, beats: np.ndarray) -> None:
        self._call("fill", *(torch.from_numpy(np.ascontiguousarray(x)) for x in (cells, means, beats)))

    def strategy(self, stage: int, *, wait: bool) -> Strategy | None:
        answer = self._call("strategy", stage, wait, of=stage)
        return unpacked(answer["strategy"]) if answer else None

    def await_strategy(self, stage: int) -> None:
        """Return when a stage's strategy is known, however long its payoffs take: what has to come in time is each next batch of them."""
        seen, known = -1, False
        while not known:
            answer = self._call("advance", stage, seen, of=stage)
            seen, known = answer["advances"], answer["known"]

    def members(self) -> list[Member]:
        return [Member(PolicyId(*name), *rest) for name, *rest in self._call("members")]

    def table(self) -> dict[str, np.ndarray]:
        return {key: x.numpy() for key, x in self._call("table").items()}

    def _call(self, method: str, *arguments: Any, of: int | None = None) -> Any:
        """`of` a stage: for its strategy, which workers may have to find out before."""
        (peer,) = self.peers

        def describe() -> str:
            if of is None:
                return f"{peer.name} doesn't answer {method}"
            state = peer.call("describe").wait(deadline_s=5.0, describe=lambda: f"{peer.name} doesn't answer {method}")
            return (
                f"the payoffs that stage {of} needs stand still, nothing new came in {self.world.patience_s:.0f} s: {state}; where a batch of "
                "episodes takes longer, raise timeouts.wait_s"
            )

        return self._wait(peer.call(method, *arguments), "the population", describe)
