"""What repeated exchanges over real ranks do to all agents together: the mean is kept, disagreement dies at the rate of theory."""

import numpy as np
import pytest
import torch
from rigs.exchanging_in_pairs import hosts_of_two
from rigs.graphs import random_weights
from rigs.ranks import together

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, hierarchical, neighbor_allreduce
from marl_hpc.comm.shared_memory import SharedMemory
from marl_hpc.comm.transports import PointToPoint


def values(agents, width, dtype=torch.float32):
    """[N, P], standard normal."""
    return torch.randn(agents, width, generator=torch.Generator().manual_seed(2), dtype=dtype)


def whole(parts):
    """All agents' rows, from (agents, rows) of each rank."""
    agents = np.concatenate([agents for agents, _ in parts])
    return np.concatenate([rows for _, rows in parts])[np.argsort(agents)]


def mixed(rank, ranks, weights, kind, width, dtype, moments):
    """This rank's agents, and their rows after so many steps."""
    agents = weights.shape[0]
    plan = ExchangePlan(weights, np.arange(agents) * ranks // agents, rank)
    mixing = Mixing(plan, kind(), width, dtype)
    mixing.rows.copy_(values(agents, width, dtype)[plan.agents])
    found, done = [], 0
    for moment in moments:
        mixing.step(moment - done)
        done = moment
        found.append((plan.agents, mixing.rows.numpy().copy()))
    return found


def after(moments, weights, kind, width, dtype):
    """All agents' rows after each of so many steps."""
    parts = together(mixed, 2, weights, kind, width, dtype, moments)
    return [whole([part[i] for part in parts]) for i in range(len(moments))]


@pytest.mark.parametrize("kind", [SharedMemory, PointToPoint])
def test_a_thousand_steps_keep_the_mean_over_all_agents(kind):
    weights = topology.metropolis_hastings(topology.torus(12, 10))
    mean = values(120, 16).double().mean(0).numpy()
    (late,) = after([1000], weights, kind, 16, torch.float32)
    assert np.abs(late.astype(np.float64).mean(0) - mean).max() <= 1e-6
    assert np.ptp(late, axis=0).max() < 1e-4  # mixing took place: rows began some units apart


RATES = {  # closed forms: eigenvalues of circulant matrices; moments late enough that only the slowest mode is left, and above rounding
    "ring": (topology.metropolis_hastings, lambda: topology.ring(64), 1 / 3 + 2 / 3 * np.cos(2 * np.pi / 64), (600, 1200)),
    "torus": (topology.metropolis_hastings, lambda: topology.torus(16, 16), (3 + 2 * np.cos(2 * np.pi / 16)) / 5, (200, 400)),
    "static exponential": (topology.uniform, lambda: topology.exponential(256), 7 / 9, (30, 60)),
}


@pytest.mark.parametrize("name", RATES)
def test_disagreement_dies_at_the_rate_of_the_second_largest_eigenvalue(name):
    weigh, graph, modulus, moments = RATES[name]
    weights = weigh(graph())
    assert topology.second_largest_eigenvalue_modulus(weights) == pytest.approx(modulus, abs=1e-6)
    mean = values(weights.shape[0], 8, torch.float64).mean(0).numpy()
    early, late = (np.linalg.norm(x - mean) for x in after(moments, weights, SharedMemory, 8, torch.float64))
    rate = (late / early) ** (1 / (moments[1] - moments[0]))
    assert rate == pytest.approx(modulus, rel=0.01)
    assert 1 - rate == pytest.approx(1 - modulus, rel=0.05)  # which tells 0.9968 from 0.9999


def one_peer(rank, ranks, agents, periods):
    graphs = topology.one_peer_exponential(agents)
    owners = np.random.default_rng(0).permutation(np.arange(agents) % ranks)
    plans = ExchangePlan.in_turn([topology.uniform(graph) for graph in graphs], owners, rank)
    transport = SharedMemory()
    start = values(agents, 5, torch.float64)[plans[0].agents]
    x, made = start, []
    for period in range(periods):
        x = start * (1 + period)
        for t in range(period * len(plans), (period + 1) * len(plans)):
            x = neighbor_allreduce(x, plans[t % len(plans)], transport=transport)
        made.append([id(mixing) for plan in plans for waiting in plan.mixings.values() for mixing in waiting])
    assert made[0] == made[-1]  # buffers and matrices of the first period serve all of them
    assert len(made[0]) == len(plans) == agents.bit_length() - 1
    return x.numpy()


def test_one_peer_exponential_rounds_give_everybody_the_mean_and_plans_are_used_again():
    mean = values(32, 5, torch.float64).mean(0).numpy()
    for found in together(one_peer, 2, 32, 3):
        np.testing.assert_allclose(found, np.broadcast_to(3 * mean, found.shape), rtol=0, atol=1e-14)


class Watched(PointToPoint):
    """Remembers to whom it sent."""

    def __init__(self):
        super().__init__()
        self.sent_to = set()

    def exchange(self, sent, received):
        self.sent_to |= sent.keys() | received.keys()
        return super().exchange(sent, received)


def inside_then_between(rank, ranks, weights, owners):
    plans = ExchangePlan.in_turn(weights, owners, rank)
    transports = [Watched(), Watched()]
    x = values(len(owners), 6, torch.float64)[plans[0].agents]
    by_hosts = hosts_of_two()  # one for both: memory inside, messages between
    by_hosts.between = Watched()
    assert torch.equal(hierarchical(x, plans[:1], transports=[by_hosts]), hierarchical(x, plans[:1], transports=[PointToPoint()]))
    assert not by_hosts.between.sent_to
    mixed = hierarchical(x, plans, transports=[by_hosts] * 2)
    assert torch.equal(mixed, hierarchical(x, plans, transports=[PointToPoint()] * 2))
    assert sorted(by_hosts.between.sent_to) == [[3], [2], [1], [0]][rank]
    return plans[0].agents, hierarchical(x, plans, transports=transports).numpy(), [sorted(t.sent_to) for t in transports]


def test_mixing_inside_nodes_and_then_between_them_is_the_product_and_stays_inside_at_first():
    agents = 24
    owners = np.arange(agents) * 4 // agents  # ranks 0 and 1 on one node, 2 and 3 on another
    node = owners // 2
    graph = random_weights(agents, 6, seed=3)
    graph.setdiag(0)
    within, _ = topology.inside_and_between(topology.from_adjacency(graph), node)
    weights = [within, topology.uniform(topology.ring(agents))]
    inside = within.toarray()
    assert not inside[node[:, None] != node].any()
    parts = together(inside_then_between, 4, weights, owners)
    expected = weights[1].toarray() @ inside @ values(agents, 6, torch.float64).numpy()
    np.testing.assert_allclose(whole([part[:2] for part in parts]), expected, rtol=0, atol=1e-14)
    assert [first for *_, (first, _) in parts] == [[1], [0], [3], [2]]
    assert [second for *_, (_, second) in parts] == [[1, 3], [0, 2], [1, 3], [0, 2]]


def columns_in_rounds(rank, ranks, weights, kind):
    plan = ExchangePlan(weights, np.arange(40) * ranks // 40, rank)
    x = values(weights.shape[0], 9, torch.float64)[plan.agents]
    before = x.clone()
    out = torch.full_like(x, torch.nan)
    found = neighbor_allreduce(x, plan, transport=kind(), columns=slice(2, 6), rounds=4, out=out)
    assert found is out
    assert torch.equal(x, before)
    return plan.agents, found.numpy()


@pytest.mark.parametrize("kind", [SharedMemory, PointToPoint])
def test_several_rounds_of_some_columns_are_a_power_of_w_there_and_nothing_elsewhere(kind):
    weights = random_weights(40, 6, seed=5)
    found = whole(together(columns_in_rounds, 2, weights, kind))
    start = values(40, 9, torch.float64).numpy()
    expected = np.linalg.matrix_power(weights.toarray(), 4) @ start[:, 2:6]
    np.testing.assert_allclose(found[:, 2:6], expected, rtol=0, atol=1e-14)
    assert (found[:, [0, 1, 6, 7, 8]] == start[:, [0, 1, 6, 7, 8]]).all()
