"""How a rank's agents exchange over its configuration's topology: against dense products, and what learners say of it all."""

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.ranks import together

from marl_hpc import algorithms, topology
from marl_hpc.agents import NetworkedAgent
from marl_hpc.config import Topology
from marl_hpc.neighborhoods import Neighborhoods
from marl_hpc.types import ActionSpace, EnvSpec, GroupSpec, InterfaceSpec

T, B = 6, 4
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


def learned(rank, ranks, agents, section, options, batches=2):
    """Metrics of each batch, by a rank's part of the agents."""
    neighborhoods = around(agents, ranks, **section)
    whole = InterfaceSpec(
        name="all", paradigm="networked", groups=(neighborhoods.group,), stacked=True, mix=neighborhoods.section.mix
    )
    kind, config = algorithms.configure({"name": "ppo", "hidden": [8], **options})
    exchange = neighborhoods.exchange(rank, CPU, 30.0)
    interface = neighborhoods.part(whole, rank)
    agent = NetworkedAgent(kind, config, interface, exchange, device=CPU, dtype=torch.float64, seed=1)
    own, name = exchange.agents, interface.groups[0].name
    rows = torch.linspace(-1, 1, agents, dtype=torch.float64)[own]
    for block in agent.blocks:  # networks of ranks would begin alike
        block += rows[:, None] * torch.linspace(0, 1, block.shape[1], dtype=torch.float64)
    batch = batch_of(whole, T, B)
    batch = {key.replace("all/", f"{name}/"): x[:, :, own] if key.startswith("all/") else x for key, x in batch.items()}
    found = []
    for k in range(batches):
        found.append(agent.learn(batch, torch.arange(B), total=B, seed=k, env_steps=0))
    rows = torch.cat([torch.zeros(len(own), 0, dtype=torch.float64), *agent.mixed], 1)
    return found, own, rows.numpy(), [block.shape[1] for block in agent.mixed]


@pytest.mark.parametrize(("agents", "ranks"), [(3, 3), (6, 2), (7, 3)])
@pytest.mark.parametrize("mix", ["critic", "all"])
def test_how_far_agents_are_apart_is_said_of_all_of_them_wherever_they_are(agents, ranks, mix):
    section, options = {"name": "grid", "mix": mix, "rounds": 2}, {"epochs": 2, "minibatches": 2, "max_grad_norm": 0.1}
    ((alone, _, rows, _),) = together(learned, 1, agents, section, options)
    apart = np.linalg.norm(rows - rows.mean(0)) / np.linalg.norm(rows.mean(0)) / np.sqrt(agents)
    assert alone[-1]["consensus/error"] == pytest.approx(apart, rel=1e-12)
    assert apart > 1e-6
    for metrics, *_ in together(learned, ranks, agents, section, options):
        for one, other in zip(alone, metrics, strict=True):
            for name in ("consensus/error", "consensus/distance"):
                assert one[name] > 0
                assert other[name] == pytest.approx(one[name], rel=1e-6)


@pytest.mark.parametrize("transport", ["shared_memory", "point_to_point", "all_to_all"])
def test_learners_say_what_they_sent(transport):
    """A line of 9 over 3 ranks: the outer ones send a row to the middle, which sends one to each of them."""
    epochs, minibatches, rounds = 2, 3, 2
    section = {"name": "grid", "options": {"rows": 1, "columns": 9}, "mix": "all", "rounds": rounds, "transport": transport}
    section |= {"reward_discount": 0.5, "reward_hops": 2}
    parts = together(learned, 3, 9, section, {"epochs": epochs, "minibatches": minibatches})
    for rank, (found, _, _, widths) in enumerate(parts):
        neighbors = 2 if rank == 1 else 1
        mixes = epochs * minibatches * rounds
        parameters = neighbors * 8 * sum(widths) * mixes
        moments = neighbors * 8 * 3 * mixes
        rewards = 2 * neighbors * 8 * T * B  # rows of two agents reach across
        exchanges = (len(widths) + 1) * mixes + 1
        each = {"shared_memory": 0, "point_to_point": neighbors, "all_to_all": 2}[transport]
        for metrics in found:
            assert metrics["exchange/bytes"] == parameters + moments + rewards
            assert metrics["exchange/messages"] == each * exchanges
            assert metrics["exchange/ranks"] == neighbors


def test_who_averages_nothing_and_cares_for_nobody_exchanges_nothing():
    for found, *_ in together(learned, 2, 6, {"name": "ring", "mix": "none"}, {}):
        assert [found[0][f"exchange/{name}"] for name in ("bytes", "messages", "ranks")] == [0, 0, 0]
        assert "consensus/error" not in found[0]
