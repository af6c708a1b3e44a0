"""Agents spread over ranks: the cut that is printed is the one there is."""

import numpy as np
import pytest

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.config import ConfigError
from marl_hpc.partition import PARTITIONS, keep, partition


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize(
    "graph", [topology.grid(5, 7), topology.exponential(30), topology.erdos_renyi(60, 9)], ids=["grid", "exponential", "random"]
)
def test_cut_and_halo_are_counted_edge_by_edge(name, graph):
    found = partition(graph, 3, name)
    owners = found.owners
    crossing = [(i, j) for i, j in graph.edges if owners[i] != owners[j]]
    assert found.cut == len(crossing)
    assert found.halo.tolist() == [len({j for i, j in crossing if owners[i] == rank}) for rank in range(3)]
    weights = topology.uniform(graph)
    assert [len(ExchangePlan(weights, owners, rank).halo) for rank in range(3)] == found.halo.tolist()
    counts = np.bincount(owners)
    assert counts.max() - counts.min() <= (1 if name != "metis" else 0.1 * graph.agents)


def test_reordering_finds_cuts_that_the_given_order_hides():
    graph = topology.random_geometric(5000, 20, seed=2)
    given, rcm, metis = (partition(graph, 4, name) for name in ("keep", "rcm", "metis"))
    assert rcm.halo.sum() < 0.3 * given.halo.sum()
    assert metis.halo.sum() < rcm.halo.sum()
    assert "4 ranks with 1,250 agents each (rcm)" in str(rcm)


def test_parts_differ_by_one_agent_at_most():
    for agents, ranks in ((10, 3), (7, 7), (100, 1), (11, 4)):
        counts = np.bincount(keep(topology.ring(agents), ranks), minlength=ranks)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == agents


def test_unknown_partitions_and_too_many_ranks_are_refused():
    with pytest.raises(ConfigError, match=r"unknown partition 'mets'; did you mean 'metis'\?"):
        partition(topology.ring(9), 2, "mets")
    with pytest.raises(ConfigError, match="3 agents can't be spread over 4 ranks"):
        partition(topology.ring(3), 4)
