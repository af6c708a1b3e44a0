"""How a rank's agents exchange over its configuration's topology, against dense products."""

import numpy as np
import pytest
import torch
from rigs.ranks import together

from marl_hpc import topology
from marl_hpc.config import Topology
from marl_hpc.neighborhoods import Neighborhoods
from marl_hpc.types import ActionSpace, EnvSpec, GroupSpec

CPU = torch.device("cpu")


def group_of(agents):
    names = tuple(f"agent_{i}" for i in range(agents))
    return GroupSpec(name="all", agents=names, observation_shape=(4,), action_space=ActionSpace(kind="discrete", n=3))


def around(agents, ranks, **section):
    """The neighborhoods of so many agents of an environment without edges of its own."""
    group = group_of(agents)
    spec = EnvSpec(name="e", version="1", groups=(group,), state_shape=(1,), state_from="environment")
    return Neighborhoods(Topology(**section), spec, group, ranks)


def circulant(n):
    """Directed and uneven in space: agent i reads i - 1 and i - 3."""
    agents = np.arange(n)
    pairs = [np.stack([agents, (agents - hop) % n], 1) for hop in (1, 3)]
    return topology.from_edges(np.concatenate(pairs), n, directed=True)


def ring_then_star(n):
    """Undirected, and another graph every second step."""
    return [topology.ring(n), topology.star(n)]


def start(agents, width=5):
    return torch.randn(agents, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mixed(rank, ranks, agents, section, steps):
    neighborhoods = around(agents, ranks, **section)
    exchange = neighborhoods.exchange(rank, CPU, 30.0)
    rows = start(agents)[exchange.agents]
    for step in steps:
        exchange.turn_to(step)
        exchange.mix(rows)
    # a rank's rows lie in one order for all rounds: nothing is permuted
    in_order = all(order is None for _, order in exchange.mixing)
    return exchange.agents, neighborhoods.agents(rank), rows.numpy(), in_order, len(exchange.mixing)


UNIFORM = {"weights": "uniform", "mix": "all"}
SECTIONS = {
    "one-peer exponential": {"name": "one_peer_exponential", **UNIFORM},
    "one-peer exponential, two rounds, rcm": {"name": "one_peer_exponential", "rounds": 2, "partition": "rcm", **UNIFORM},
    "static exponential": {"name": "exponential", **UNIFORM},
    "directed": {"name": f"{__name__}:circulant", **UNIFORM},
    "undirected, changing": {"name": f"{__name__}:ring_then_star", "mix": "all", "partition": "rcm"},
}


@pytest.mark.parametrize("transport", ["shared_memory", "point_to_point"])
@pytest.mark.parametrize("name", SECTIONS)
def test_steps_over_two_ranks_are_products_with_each_graphs_weights_in_turn(name, transport, monkeypatch):
    monkeypatch.setitem(topology.TOPOLOGIES, f"{__name__}:circulant", circulant)
    monkeypatch.setitem(topology.TOPOLOGIES, f"{__name__}:ring_then_star", ring_then_star)
    agents, steps, section = 16, [1, 2, 3, 4, 5, 6], {**SECTIONS[name], "transport": transport}
    weigh = topology.uniform if section.get("weights") == "uniform" else topology.metropolis_hastings
    dense = [weigh(graph).toarray() for graph in topology.make(section["name"], agents)]
    rounds, expected = section.get("rounds", 1), start(agents).numpy()
    for step in steps:
        for i in range(rounds):
            expected = dense[(step * rounds + i) % len(dense)] @ expected
    for own, said, rows, in_order, plans in together(mixed, 2, agents, section, steps):
        np.testing.assert_allclose(rows, expected[own], rtol=0, atol=1e-14)
        assert np.array_equal(own, said)
        assert in_order
        assert plans == len(dense)
