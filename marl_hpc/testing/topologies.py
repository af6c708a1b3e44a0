"""What a topology has to be for agents to agree over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from marl_hpc import topology
from marl_hpc.testing.environments import ContractError


def topology_contract(function: Callable[..., Any], **options: Any) -> None:
    """Check a function that returns a `Graph`, or one for each round in turns. Raises ContractError saying what is wrong."""
    made = function(**options)
    graphs = made if isinstance(made, list) else [made]
    if not graphs or not all(isinstance(graph, topology.Graph) for graph in graphs):
        raise ContractError(f"a topology returns a marl_hpc.topology.Graph, or a list of them; got {made!r}")
    again = function(**options)
    for number, (graph, other) in enumerate(zip(graphs, again if isinstance(again, list) else [again], strict=True)):
        where = f"the graph of round {number}: " if len(graphs) > 1 else ""
        adjacency = graph.adjacency
        if graph.agents != graphs[0].agents:
            raise ContractError(f"{where}{graph.agents} agents, but round 0 has {graphs[0].agents}")
        if not np.array_equal(graph.edges, other.edges):
            raise ContractError(f"{where}a second call with the same arguments gave other edges; draw from a generator with a seed")
        if adjacency.diagonal().any():
            raise ContractError(f"{where}agent {int(np.flatnonzero(adjacency.diagonal())[0])} is its own neighbor")
        if not adjacency.has_sorted_indices or (adjacency.data != 1).any():
            raise ContractError(f"{where}adjacency isn't a matrix of ones with sorted columns; make it by topology.from_edges")
        if not graph.directed and (adjacency != adjacency.T).nnz:
            raise ContractError(f"{where}an undirected graph has an edge one way only; say directed=True, or add the other way")
        weights = topology.push_sum(graph) if graph.directed else topology.metropolis_hastings(graph)
        if not (np.asarray(weights.sum(0)).ravel() == 1).all():
            raise ContractError(f"{where}its weights don't keep the mean")
    try:
        topology.union(graphs).check_connected()
    except ValueError as error:
        raise ContractError(str(error)) from error
