"""Which rank has which agents of a graph, so that few edges lead from rank to rank. Pure math.

`PARTITIONS` maps names to functions (graph, ranks) -> owners [n]; ranks get numbers of agents that differ by one at most, but for METIS.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.topology import Graph


class Partition(NamedTuple):
    """What a partition costs."""

    name: str
    owners: np.ndarray  # [n]: each agent's rank
    cut: int  # edges (i, j) whose ends are on two ranks, both ways of an undirected one
    edges: int
    halo: np.ndarray  # [ranks]: rows of others that each rank needs

    def __str__(self) -> str:
        counts = np.bincount(self.owners)
        size = f"{counts[0]:,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        return (
            f"{len(counts)} ranks with {size} agents each ({self.name}): {100 * self.cut / max(1, self.edges):.1f} % of edges cross ranks, "
            f"{self.halo.sum():,} rows do ({100 * self.halo.sum() / len(self.owners):.1f} % of all)"
        )


def keep(graph: Graph, ranks: int) -> np.ndarray:
    """Agents in their order, cut into equal parts: best where the order is the graph's own, as on rings, grids and tori."""
    return np.arange(graph.agents) * ranks // graph.agents


def rcm(graph: Graph, ranks: int) -> np.ndarray:
    """Agents in the order of reverse Cuthill–McKee, which brings neighbors close, cut into equal parts. Source: Cuthill and McKee 1969."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    both = (graph.adjacency + graph.adjacency.T).tocsr() if graph.directed else graph.adjacency
    owners = np.empty(graph.agents, np.int64)
    owners[reverse_cuthill_mckee(both, symmetric_mode=True)] = keep(graph, ranks)
    return owners


def metis(graph: Graph, ranks: int) -> np.ndarray:
    """METIS' multilevel partition: the smallest cuts; parts may differ in size by 3 %. Source: Karypis and Kumar 1998. Raises ConfigError
    where pymetis isn't installed."""
    try:
        import pymetis
    except ImportError as error:
        raise ConfigError("partition=metis needs pymetis: pip install 'marl_hpc[metis]', or take rcm") from error
    if ranks == 1:
        return np.zeros(graph.agents, np.int64)
    both = (graph.adjacency + graph.adjacency.T).tocsr() if graph.directed else graph.adjacency
    _, owners = pymetis.part_graph(ranks, pymetis.CSRAdjacency(both.indptr, both.indices))
    return np.asarray(owners, np.int64)


PARTITIONS: dict[str, Callable[[Graph, int], np.ndarray]] = {"keep": keep, "rcm": rcm, "metis": metis}


def partition(graph: Graph, ranks: int, name: str = "keep") -> Partition:
    """Agents spread over ranks. Raises ConfigError for an unknown name or more ranks than agents."""
    if name not in PARTITIONS:
        near = difflib.get_close_matches(name, PARTITIONS, n=1)
        raise ConfigError(
            f"unknown partition {name!r}{f'; did you mean {near[0]!r}?' if near else ';'} known: {', '.join(sorted(PARTITIONS))}"
        )
    if not 1 <= ranks <= graph.agents:
        raise ConfigError(f"{graph.agents} agents can't be spread over {ranks} ranks; every rank needs one or more")
    owners = PARTITIONS[name](graph, ranks)
    if len(np.unique(owners)) < ranks:
        raise ConfigError(
            f"partition={name} leaves a rank without agents ({graph.agents} agents, {ranks} ranks); take fewer ranks or keep"
        )
    edges = graph.edges
    crossing = owners[edges[:, 0]] != owners[edges[:, 1]]
    needed = np.unique(owners[edges[crossing, 0]] * graph.agents + edges[crossing, 1]) // graph.agents
    return Partition(name, owners, int(crossing.sum()), len(edges), np.bincount(needed, minlength=ranks))
