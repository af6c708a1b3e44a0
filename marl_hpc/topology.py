"""Graphs that agents coordinate over, and the names under which they are known. Pure math on sparse matrices, nothing dense n × n.

A topology is a function that returns a `Graph`; `TOPOLOGIES` maps names to functions, and a name with a colon is imported. An edge
(i, j) means that agent i reads what agent j holds. Weights to mix by are in `mixing` and can be had from here, too.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.mixing import (
    inside_and_between,
    laplacian,
    lazy,
    max_degree,
    metropolis_hastings,
    push_sum,
    second_largest_eigenvalue_modulus,
    spectral_gap,
    uniform,
)

__all__ = [
    "TOPOLOGIES", "Graph", "complete", "erdos_renyi", "exponential", "from_adjacency", "from_edges", "from_networkx", "grid", "inside_and_between", "laplacian",
    "lazy", "make", "max_degree", "metropolis_hastings", "one_peer_exponential", "push_sum", "random_geometric", "ring",
    "second_largest_eigenvalue_modulus", "spectral_gap", "star", "torus", "uniform",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Graph:
    """Agents 0 … n-1 and who reads whom: `adjacency` is a SciPy CSR matrix [n, n] of ones, without a diagonal, columns sorted."""

    adjacency: Any
    directed: bool = False

    @property
    def agents(self) -> int:
        return self.adjacency.shape[0]

    @cached_property
    def degrees(self) -> np.ndarray:
        """[n]: how many each agent reads."""
        return np.diff(self.adjacency.indptr)

    @property
    def edges(self) -> np.ndarray:
        """[E, 2] pairs (i, j), each way of an undirected edge, ordered."""
        return np.stack([np.repeat(np.arange(self.agents), self.degrees), self.adjacency.indices], 1)

    def components(self) -> list[np.ndarray]:
        """Agents of each part that no edge leads out of, the largest first; of a digraph, parts in which everybody reaches everybody."""
        from scipy.sparse.csgraph import connected_components

        count, labels = connected_components(self.adjacency, directed=self.directed, connection="strong")
        order = np.argsort(labels, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(labels, minlength=count))[:-1])
        return sorted(parts, key=len, reverse=True)

    def check_connected(self) -> Graph:
        """Itself. Raises ValueError naming the components of a graph that isn't connected."""
        parts = self.components()
        if len(parts) > 1:
            shown = "; ".join(f"{len(part):,} agents: {_few(part)}" for part in parts[:4])
            more = f"; and {len(parts) - 4:,} more" if len(parts) > 4 else ""
            kind = "strongly connected" if self.directed else "connected"
            raise ValueError(
                f"the graph isn't {kind}: it has {len(parts):,} components ({shown}{more}), which would never agree; add edges, e.g. a "
                "larger radius, degree or probability, or train the parts apart"
            )
        return self


def _few(part: np.ndarray) -> str:
    return ", ".join(map(str, part[:5].tolist())) + (", …" if len(part) > 5 else "")


# regular graphs


def ring(n: int) -> Graph:
    """Each agent and its two neighbors.

    >>> ring(4).edges.tolist()
    [[0, 1], [0, 3], [1, 0], [1, 2], [2, 1], [2, 3], [3, 0], [3, 2]]
    """
    agents = np.arange(_counted(n, 2, "a ring"))
    return from_edges(np.stack([agents, (agents + 1) % n], 1), n)  # a ring of two has its edge twice


def grid(rows: int, columns: int) -> Graph:
    """Neighbors up, down, left and right, in row-major order."""
    if rows < 1 or columns < 1:
        raise ValueError(f"a grid is rows × columns, both 1 or more; got {rows} × {columns}")
    places = np.arange(_counted(rows * columns, 2, "a grid")).reshape(rows, columns)
    across = np.stack([places[:, :-1].ravel(), places[:, 1:].ravel()], 1)
    down = np.stack([places[:-1].ravel(), places[1:].ravel()], 1)
    return from_edges(np.concatenate([across, down]), rows * columns)


def torus(rows: int, columns: int) -> Graph:
    """A grid whose borders meet. With two rows those above and below are the same agent, and neighbors once."""
    if rows < 2 or columns < 2:
        raise ValueError(
            f"a torus is rows × columns, both 2 or more (3 or more for four neighbors each); got {rows} × {columns}: take a ring, or "
            "another number of agents, since a prime one is a single row"
        )
    places = np.arange(rows * columns).reshape(rows, columns)
    pairs = [np.stack([places.ravel(), np.roll(places, -1, axis).ravel()], 1) for axis in (0, 1)]
    return from_edges(np.concatenate(pairs), rows * columns)


def star(n: int) -> Graph:
    """Agent 0 and everybody else."""
    others = np.arange(1, _counted(n, 2, "a star"))
    return from_edges(np.stack([np.zeros_like(others), others], 1), n)


def complete(n: int) -> Graph:
    """Everybody and everybody: n · (n - 1) edges."""
    return from_edges(np.stack(np.triu_indices(_counted(n, 2, "a complete graph"), 1), 1), n)


def exponential(n: int) -> Graph:
    """Directed: agent i reads i - 1, i - 2, i - 4, … around the ring; weigh it by `uniform`. Source: Ying et al. 2021, static exponential."""
    agents = np.arange(_counted(n, 2, "an exponential graph"))
    hops = 2 ** np.arange(int(np.ceil(np.log2(n))))
    return from_edges(np.stack([np.repeat(agents, len(hops)), (agents[:, None] - hops).ravel() % n], 1), n, directed=True)


def one_peer_exponential(n: int) -> list[Graph]:
    """One graph a round, in turns: in round k agent i reads i - 2^k only. With `uniform` weights and n a power of two, log2 n rounds give
    everybody the exact mean. Source: Ying et al. 2021, one-peer exponential."""
    agents = np.arange(_counted(n, 2, "an exponential graph"))
    hops = 2 ** np.arange(int(np.ceil(np.log2(n))))
    return [from_edges(np.stack([agents, (agents - hop) % n], 1), n, directed=True) for hop in hops]


# random graphs


def erdos_renyi(n: int, degree: float = 8.0, seed: int = 0) -> Graph:
    """Each pair is joined with probability degree / (n - 1), so that an agent has `degree` neighbors on average. Raises ValueError where it
    comes out disconnected, as it does below a degree of about log n."""
    pairs = _counted(n, 2, "a random graph") * (n - 1) // 2
    probability = degree / (n - 1)
    if not 0 < probability <= 1:
        raise ValueError(f"degree={degree} of {n} agents must lie over 0 and up to {n - 1}")
    random = np.random.default_rng(seed)
    chosen = _sample_without_replacement(random, pairs, int(random.binomial(pairs, probability)))
    # pair number k stands in row i of the upper triangle, whose rows have n-1, n-2, … pairs
    first = (n - 2 - np.floor(np.sqrt(-8.0 * chosen + 4.0 * n * (n - 1) - 7) / 2 - 0.5)).astype(np.int64)
    second = chosen + first + 1 - n * (n - 1) // 2 + (n - first) * (n - first - 1) // 2
    return from_edges(np.stack([first, second], 1), n).check_connected()


def _sample_without_replacement(random: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`count` different numbers below `total`, ordered."""
    if 3 * count > total:
        return np.sort(random.permutation(total)[:count])
    found = np.unique(random.integers(0, total, count))
    while len(found) < count:
        found = np.unique(np.r_[found, random.integers(0, total, count - len(found))])
    return found


def random_geometric(n: int, degree: float = 12.0, seed: int = 0) -> Graph:
    """Agents at random places of a unit square, joined up to the distance at which one has `degree` neighbors on average (fewer at the
    border). Raises ValueError where it comes out disconnected: a mean degree of 8 often is."""
    from scipy.spatial import KDTree

    if not degree > 0:
        raise ValueError(f"degree={degree} of a random geometric graph must be over 0")
    places = np.random.default_rng(seed).random((_counted(n, 2, "a random geometric graph"), 2))
    edges = KDTree(places).query_pairs(np.sqrt(degree / (np.pi * n)), output_type="ndarray")
    return from_edges(edges, n).check_connected()


# a user's own


def from_edges(edges: Any, n: int | None = None, directed: bool = False) -> Graph:
    """A graph of pairs (i, j) [E, 2]; both ways unless `directed`, where i reads j. Pairs may repeat. Raises ValueError for an agent
    that isn't there and for an agent joined to itself."""
    from scipy.sparse import csr_matrix

    edges = np.asarray(edges)
    if edges.size == 0:
        edges = edges.reshape(0, 2).astype(np.int64)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"edges are pairs of agents' numbers [E, 2]; got shape {edges.shape} of {edges.dtype}")
    n = int(edges.max(initial=-1)) + 1 if n is None else n
    wrong = edges[((edges < 0) | (edges >= n)).any(1)]
    if len(wrong):
        raise ValueError(f"edge {tuple(wrong[0].tolist())} names an agent that isn't there; agents are 0 to {n - 1}")
    if n < 1:
        raise ValueError("a graph has 1 agent or more; got none")
    loops = edges[edges[:, 0] == edges[:, 1]]
    if len(loops):
        raise ValueError(
            f"edge {tuple(loops[0].tolist())} joins an agent to itself; its own weight is the mixing weights' business"
        )
    i, j = (edges[:, 0], edges[:, 1]) if directed else (np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]])
    adjacency = csr_matrix((np.ones(len(i), np.int8), (i, j)), shape=(n, n))
    adjacency.sum_duplicates()
    adjacency.data[:] = 1
    return Graph(adjacency, directed)


def from_adjacency(matrix: Any) -> Graph:
    """A graph of an adjacency matrix [n, n], dense or sparse: nonzero where i reads j; directed unless it is symmetric."""
    from scipy.sparse import csr_matrix

    sparse: Any = csr_matrix(matrix, copy=True)
    if sparse.shape[0] != sparse.shape[1]:
        raise ValueError(f"an adjacency matrix is square; got shape {sparse.shape}")
    sparse.eliminate_zeros()
    pattern: Any = sparse.astype(bool)
    return from_edges(np.stack(pattern.nonzero(), 1), sparse.shape[0], directed=(pattern != pattern.T).nnz > 0)


def from_networkx(graph: Any) -> Graph:
    """A networkx graph; agents are numbered in the order of its nodes. In a digraph, i reads j where an edge leads from j to i: what j says
    travels along it."""
    number = {node: place for place, node in enumerate(graph.nodes)}
    edges = [(number[a], number[b]) for a, b in graph.edges() if a != b]
    if graph.is_directed():
        edges = [(b, a) for a, b in edges]
    return from_edges(np.array(edges, np.int64).reshape(-1, 2), len(number), directed=graph.is_directed())


def _counted(n: int, least: int, what: str) -> int:
    if n < least:
        raise ValueError(f"{what} needs {least} agents or more; got {n}")
    return n


def within(graph: Graph, hops: int) -> Graph:
    """Everybody whom an agent reaches in at most so many steps, but itself, as its neighbors.

    >>> within(from_edges([(0, 1), (1, 2), (2, 3)]), 2).degrees.tolist()
    [2, 3, 3, 2]
    """
    from scipy.sparse import eye

    if hops < 1:
        raise ValueError(f"hops={hops} must be 1 or more")
    if hops == 1:
        return graph
    steps = (graph.adjacency != 0).astype(np.int64)
    reached = steps
    for _ in range(min(hops, graph.agents) - 1):
        wider = ((reached + reached @ steps) != 0).astype(np.int64)
        if wider.nnz == reached.nnz:
            break
        reached = wider
    pairs = np.stack((reached - reached.multiply(eye(graph.agents))).nonzero(), 1)
    return from_edges(pairs, graph.agents, graph.directed)


# by name

TOPOLOGIES: dict[str, str | Callable[..., Graph | list[Graph]]] = {
    "ring": ring,
    "grid": grid,
    "torus": torus,
    "star": star,
    "complete": complete,
    "exponential": exponential,
    "one_peer_exponential": one_peer_exponential,
    "erdos_renyi": erdos_renyi,
    "random_geometric": random_geometric,
}


def make(name: str, agents: int, **options: Any) -> list[Graph]:
    """The graphs of a topology for so many agents, one unless it changes from round to round. Functions of rows and columns get the most
    square ones that there are. Raises ConfigError for an unknown name, for an option that is unknown, missing or of a wrong type, and
    where the numbers of agents differ; ValueError where the graph isn't connected."""
    target = TOPOLOGIES.get(name, name if ":" in name else None)
    if target is None:
        near = difflib.get_close_matches(name, TOPOLOGIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(
            f"unknown topology {name!r}{hint} known: {', '.join(sorted(TOPOLOGIES))}; your own: my_package.module:function"
        )
    if isinstance(target, str):
        module, _, function = target.partition(":")
        try:
            target = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"topology {name!r} can't be imported: {error}") from error
    if not callable(target):
        raise ConfigError(f"topology {name!r} is no function but a {type(target).__name__}; name my_package.module:function")
    parameters = inspect.signature(target).parameters
    known = [key for key in parameters if key != "n"]  # that one is the environment's to say
    takes = f"it takes {', '.join(known) or 'none'}"
    unknown = [key for key in options if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"topology {name!r} has no option {unknown[0]!r}{hint} {takes}")
    if "rows" in known and "columns" in known and not options.keys() & {"rows", "columns"}:
        rows = max(d for d in range(1, int(agents**0.5) + 1) if agents % d == 0)
        options |= {"rows": rows, "columns": agents // rows}
    if "n" in parameters:
        options = {"n": agents, **options}
    try:
        made: Any = target(**options)
    except TypeError as error:  # one is missing, or of another type
        raise ConfigError(f"topology {name!r} can't be made with {options}: {error}; {takes}") from error
    graphs: list[Graph] = list(made) if isinstance(made, list | tuple) else [made]
    if not graphs or not all(isinstance(graph, Graph) for graph in graphs):
        raise ConfigError(
            f"topology {name!r} gave {type(made).__name__} {made!r:.100}; a graph is asked for, as topology.from_edges or from_adjacency makes "
            "it, or a list of them, used in turn"
        )
    for graph in graphs:
        if graph.agents != agents:
            raise ConfigError(f"topology {name!r} has {graph.agents} agents, but the environment has {agents}; make them alike")
    union(graphs).check_connected()
    return graphs


def union(graphs: Sequence[Graph]) -> Graph:
    """Who reads whom in some round."""
    if len(graphs) == 1:
        return graphs[0]
    return from_edges(np.concatenate([graph.edges for graph in graphs]), graphs[0].agents, any(graph.directed for graph in graphs))
