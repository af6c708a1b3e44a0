"""From `topology` in a configuration to who is whose neighbor, which rank has which agents, and how ranks exchange for them.

All ranks derive the same from the configuration and the environment's spec, so nothing is negotiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from marl_hpc import mixing, topology
from marl_hpc.comm import compiled
from marl_hpc.comm.exchange_plan import Crossing, ExchangePlan
from marl_hpc.comm.graphs import GraphExchange, Messages, discounted
from marl_hpc.comm.neighbors import choose_transport
from marl_hpc.comm.shared_memory import SharedMemory
from marl_hpc.comm.transports import AllToAll, Mpi, Nobody, PointToPoint
from marl_hpc.config import ConfigError, Topology
from marl_hpc.partition import Partition, partition
from marl_hpc.types import EnvSpec, GroupSpec, InterfaceSpec

TRANSPORTS = {"shared_memory": SharedMemory, "all_to_all": AllToAll, "point_to_point": PointToPoint, "mpi": Mpi}
LEAST_REWARD = 0.01  # farther rewards count less than this
UNEVEN = 1e-6  # columns of weights sum to one, but for rounding
EVEN_DIRECTED = (
    "take a directed graph whose agents read, and are read by, equally many, such as topology=exponential, or an undirected one: push-sum, "
    "which needs neither, is in the library (marl_hpc.comm.neighbors.push_sum) and not in runs"
)


class Neighborhoods:
    """The graph of a group's N agents, spread over ranks."""

    def __init__(self, section: Topology, spec: EnvSpec, group: GroupSpec, ranks: int) -> None:
        """Raises ConfigError where the topology can't be, or has fewer agents than ranks."""
        if len(group.agents) < ranks:
            raise ConfigError(
                f"{ranks} learners for the {len(group.agents)} agents of {group.name!r}: each needs one at least; set roles.learner lower"
            )
        self.section, self.group = section, group
        self.graphs = graphs_of(section, spec, group)
        self.left_out = 0 if section.name != "environment" else len(edges_of(spec, group)[1])
        self.union = topology.union(self.graphs)
        self.partition: Partition = partition(self.union, ranks, section.partition)
        self.ranks = ranks
        self.transport: str | None = None  # none is chosen yet

    @cached_property
    def weights(self) -> list[Any]:
        """W of each of the graphs that are used in turn, SciPy CSR [N, N]; where agents average nothing, one that says who reads whom."""
        if self.section.mix == "none":
            return [mixing.uniform(self.union)]
        asked = f"topology.weights={self.section.weights} for topology={self.section.name}"
        try:
            found = [getattr(mixing, self.section.weights)(graph) for graph in self.graphs]
        except ValueError as error:
            raise ConfigError(f"{asked}: {error}") from error
        for weights, graph in zip(found, self.graphs, strict=True):
            columns = np.asarray(weights.sum(0)).ravel()
            if np.abs(columns - 1).max() > UNEVEN:
                raise ConfigError(
                    f"{asked}: agents would agree on a mean that counts some more than others, since the weights of one that is read sum to "
                    f"{columns.min():.3g} to {columns.max():.3g} instead of 1 (agents read {graph.degrees.min()} to {graph.degrees.max()} "
                    f"others); {EVEN_DIRECTED if graph.directed else 'take topology.weights=metropolis_hastings'}"
                )
        return found

    @cached_property
    def reward_weights(self) -> Any:
        """How each agent's reward counts for the others, SciPy CSR [N, N]; None where it doesn't."""
        discount = self.section.reward_discount
        if not discount:
            return None
        hops = self.section.reward_hops or max(1, math.floor(math.log(LEAST_REWARD) / math.log(discount)))
        return discounted(self.union.adjacency, discount, hops)

    @cached_property
    def order(self) -> np.ndarray:
        """All agents, rank by rank, in the order of rows: that of `ExchangePlan.in_turn`."""
        return Crossing.of(self.union.adjacency, self.partition.owners).order(self.partition.owners)

    def agents(self, rank: int) -> np.ndarray:
        """The numbers of a rank's agents, in the order of its rows."""
        return self.order[self.partition.owners[self.order] == rank]

    def part(self, interface: InterfaceSpec, rank: int) -> InterfaceSpec:
        """What a rank trains of the interface."""
        if self.ranks == 1:
            return interface
        names = tuple(self.group.agents[i] for i in self.agents(rank))
        group = replace(self.group, name=f"{self.group.name}-{rank}", agents=names)
        return replace(interface, name=f"{interface.name}-{rank}", part_of=interface.name, groups=(group,))

    def exchange(self, rank: int, device: torch.device, deadline_s: float, group: Any = None) -> GraphExchange:
        """What a rank's agents exchange by; all ranks call it alike. `group`: of these ranks, MPI's communicator where they exchange by MPI."""
        owners = self.partition.owners
        plans = ExchangePlan.in_turn(self.weights, owners, rank)
        rewards = None if self.reward_weights is None else ExchangePlan(self.reward_weights, owners, rank)
        name = self.section.transport
        check_kernel(self.section, device)
        exchanged = rewards if self.section.mix == "none" else plans[0]
        if self.ranks == 1 or exchanged is None:
            transport = Nobody()
        elif name == "auto":
            transport = choose_transport(exchanged, device, deadline_s=deadline_s)
        else:
            transport = TRANSPORTS[name](group, deadline_s)
        self.transport = transport.name
        return GraphExchange(self.agents(rank), plans, rewards, transport, self.section.rounds, self.section.kernel)

    def messages(self, rank: int, group: Any, deadline_s: float, hops: int = 1) -> Messages:
        """What a rank's agents hear others by that are at most so many hops away, among the ranks of a process group; of graphs that are
        used in turn, an edge of any is a hop."""
        transport = Nobody() if self.ranks == 1 else PointToPoint(group, deadline_s)
        adjacency = topology.within(self.union, hops).adjacency
        return Messages(adjacency, self.partition.owners, rank, transport, self.agents(rank))

    def describe(self) -> str:
        """What a person wants to know of it; without the transport while none is chosen."""
        chosen = "" if self.transport is None else f"transport: {self.transport}, "
        unused = f"; to agents of other groups, not used: {self.left_out:,}" if self.left_out else ""
        return (
            f"{len(self.group.agents):,} agents on {self.section.name} ({self.union.adjacency.nnz:,} directed edges{unused}); {self.partition}; "
            f"{chosen}kernel: {self.section.kernel}"
        )

    def record(self) -> dict[str, Any]:
        """The same as plain data."""
        cut = self.partition
        return {
            "topology": self.section.name, "agents": len(self.group.agents), "edges": cut.edges, "learners": self.ranks, "partition": cut.name,
            "edges_cut": cut.cut, "halo_rows": int(cut.halo.sum()), "transport": self.transport, "kernel": self.section.kernel,
        }  # fmt: skip


def check_graph(section: Topology, spec: EnvSpec, group: GroupSpec, ranks: int) -> Neighborhoods:
    """The neighborhoods of a group on this topology. Raises ConfigError where they can't be, before ranks start."""
    around = Neighborhoods(section, spec, group, ranks)
    assert around.weights
    check_kernel(section)
    return around


def check_kernel(section: Topology, device: torch.device | None = None) -> None:
    """Raise ConfigError where this host, or this device, can't sum rows as asked."""
    if section.kernel == "compiled":
        if device is not None and device.type != "cpu":
            raise ConfigError(
                f"topology.kernel=compiled sums rows on the CPU, and learners are on {device}; set device=cpu or leave it out"
            )
        compiled.library(torch.float32)


def neighbors_of(section: Topology, spec: EnvSpec, group: GroupSpec) -> tuple[tuple[int, int], ...]:
    """Pairs (i, j) of a group's agents, ordered: i hears j. Of graphs that are used in turn, those who are neighbors in any."""
    return tuple(map(tuple, topology.union(graphs_of(section, spec, group)).edges.tolist()))


def graphs_of(section: Topology, spec: EnvSpec, group: GroupSpec) -> Sequence[topology.Graph]:
    """The graphs of a group's agents that are used in turn; one unless the topology changes from step to step."""
    options = section.options or {}
    if not isinstance(options, dict):
        raise ConfigError(f"topology.options={options!r} must be {{name: value, …}}")
    if len(group.agents) == 1:
        raise ConfigError(
            f"paradigm=networked needs neighbors, but {group.name!r} has a single agent; let agents share a group, as groups=shared does, or "
            "choose paradigm=independent"
        )
    try:
        if section.name != "environment":
            return topology.make(section.name, len(group.agents), **options)
        if spec.edges is None:
            raise ConfigError(
                f"env {spec.name} has no edges between its agents; choose a topology, for example topology=ring (an environment says "
                "who is whose neighbor by an attribute `edges`, pairs of agents, by name or by place in possible_agents)"
            )
        if options:
            raise ConfigError(f"topology.options={options} is about a named topology; topology=environment takes none")
        inside, left_out = edges_of(spec, group)
        graph = topology.from_edges(inside, len(group.agents))
        parts = graph.components()
        if len(parts) > 1 and len(left_out):
            shown = "; ".join(", ".join(group.agents[i] for i in part[:3]) + (", …" if len(part) > 3 else "") for part in parts[:4])
            raise ConfigError(
                f"topology=environment: {len(left_out):,} of its edges lead to agents of other groups, and without them the {len(group.agents):,} of "
                f"{group.name!r} fall into {len(parts):,} parts ({shown}), which would never agree; put agents that are neighbors into one group, "
                "or choose a topology, for example topology=ring"
            )
        return [graph.check_connected()]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"topology={section.name}: {error}") from error


def edges_of(spec: EnvSpec, group: GroupSpec) -> tuple[np.ndarray, np.ndarray]:
    """(pairs of a group's agents, by their numbers in it, that the environment says are neighbors; edges from one of it to another's)."""
    place = np.full(len(spec.agents), -1)
    first = spec.agents.index(group.agents[0])
    place[first : first + len(group.agents)] = np.arange(len(group.agents))  # agents stand in `spec.agents` group by group
    edges = place[np.asarray(spec.edges, int).reshape(-1, 2)]
    inside = (edges >= 0).all(1)
    return edges[inside], edges[~inside & (edges >= 0).any(1)]
