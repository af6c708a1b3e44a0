"""What mixing with neighbors over real ranks comes to in the long run, against closed forms."""

import math

import numpy as np
import pytest
import torch
from rigs.ranks import together

from marl_hpc import mixing, topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, hierarchical, neighbor_allreduce
from marl_hpc.comm.transports import PointToPoint, SharedMemory

KINDS = {"point-to-point": PointToPoint, "shared memory": SharedMemory}


def start(agents, width, dtype=torch.float64):
    return torch.randn(agents, width, generator=torch.Generator().manual_seed(2), dtype=dtype)


def blocks(agents, ranks):
    return np.arange(agents) * ranks // agents


def mixed(rank, ranks, weights, kind, steps, width, dtype):
    """This rank's agents, and their rows after each of some steps."""
    plan = ExchangePlan(weights, blocks(weights.shape[0], ranks), rank)
    rows = Mixing(plan, KINDS[kind](), width, dtype)
    rows.rows.copy_(start(weights.shape[0], width, dtype)[plan.agents])
    return plan.agents, [rows.step().numpy().copy() for _ in range(max(steps))], rows.rows.numpy().copy()


def together_at(parts, agents, step):
    found = np.zeros((agents, parts[0][2].shape[1]), parts[0][2].dtype)
    for own, steps, _ in parts:
        found[own] = steps[step]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_stays_over_a_thousand_steps_in_float32(kind):
    graph = topology.random_geometric(200, seed=3)
    parts = together(mixed, 2, topology.metropolis_hastings(graph), kind, [1000], 5, torch.float32)
    before = start(200, 5, torch.float32)
    for step in (0, 99, 999):
        drift = together_at(parts, 200, step).astype(float).mean(0) - before.double().mean(0).numpy()
        assert np.abs(drift).max() <= 1e-6 * before.abs().max()


RATES = {
    "ring": (lambda: topology.metropolis_hastings(topology.ring(24)), 1 / 3 + 2 / 3 * math.cos(2 * math.pi / 24)),
    "torus": (lambda: topology.metropolis_hastings(topology.torus(8, 8)), (3 + 2 * math.cos(2 * math.pi / 8)) / 5),
    "exponential": (lambda: mixing.uniform(topology.exponential(64)), (6 - 1) / (6 + 1)),
}


@pytest.mark.parametrize("name", RATES)
def test_consensus_comes_at_the_rate_of_the_second_largest_eigenvalue(name):
    make, expected = RATES[name]
    weights = make()
    agents = weights.shape[0]
    assert mixing.second_largest_eigenvalue_modulus(weights) == pytest.approx(expected, rel=1e-6)
    late, later = (40, 70) if name == "exponential" else (150, 200)
    parts = together(mixed, 2, weights, "shared memory", [later], 3, torch.float64)
    errors = []
    for step in (late, later):
        x = together_at(parts, agents, step - 1)
        errors.append(np.linalg.norm(x - x.mean(0)))
    assert (errors[1] / errors[0]) ** (1 / (later - late)) == pytest.approx(expected, rel=0.01)


def in_turn(rank, ranks, agents):
    plans = [ExchangePlan(mixing.uniform(graph), blocks(agents, ranks), rank) for graph in topology.one_peer_exponential(agents)]
    transport = PointToPoint()
    found = []
    for period in range(3):
        x = (start(agents, 4) + period)[plans[0].agents]
        for plan in plans:
            order = np.argsort(plan.agents)
            x = neighbor_allreduce(x, plan, transport=transport)
            assert np.array_equal(plan.agents[order], np.sort(plans[0].agents))
            following = plans[(plans.index(plan) + 1) % len(plans)]
            x = x[order][np.argsort(np.argsort(following.agents))]  # plans have rows in orders of their own
        found.append(x.numpy())
        made = [len(mixings) for plan in plans for mixings in plan.mixings.values()]
        assert made == [1] * len(plans)  # nothing is made again in later periods
    return found


def test_one_peer_exponential_graphs_average_exactly_in_log2_n_rounds():
    agents = 64
    for found in together(in_turn, 2, agents):
        for period, x in enumerate(found):
            mean = (start(agents, 4) + period).mean(0).numpy()
            np.testing.assert_allclose(x, np.broadcast_to(mean, x.shape), atol=1e-13)


def in_levels(rank, ranks, inside, between):
    owners = blocks(inside.shape[0], ranks)
    plans = [ExchangePlan(weights, owners, rank) for weights in (inside, between)]
    assert plans[0].traffic.messages == 0
    assert len(plans[0].agents) == len(plans[1].agents)
    x = start(len(owners), 3)[plans[0].agents]
    transport = PointToPoint()
    if not np.array_equal(plans[0].agents, plans[1].agents):
        raise AssertionError("levels have rows in different orders")
    return plans[0].agents, hierarchical(x, plans, transports=[transport, transport]).numpy()


def test_hierarchical_mixing_is_the_product_and_sends_nothing_inside_a_node():
    import scipy.sparse as sp

    half = topology.metropolis_hastings(topology.ring(8)).toarray()
    inside = sp.csr_matrix(np.kron(np.eye(2), half))
    between = sp.csr_matrix(np.kron(np.array([[0.5, 0.5], [0.5, 0.5]]), np.eye(8)))
    expected = between.toarray() @ inside.toarray() @ start(16, 3).numpy()
    for agents, found in together(in_levels, 2, inside, between):
        np.testing.assert_allclose(found, expected[agents], atol=1e-14)


def some_columns(rank, ranks, weights):
    plan = ExchangePlan(weights, blocks(weights.shape[0], ranks), rank)
    x = start(weights.shape[0], 7)[plan.agents]
    found = neighbor_allreduce(x, plan, transport=SharedMemory(), columns=slice(2, 5), rounds=4)
    return plan.agents, found.numpy()


def test_several_rounds_of_some_columns_leave_the_others_alone():
    weights = topology.metropolis_hastings(topology.torus(4, 6))
    expected = start(24, 7).numpy().copy()
    expected[:, 2:5] = np.linalg.matrix_power(weights.toarray(), 4) @ expected[:, 2:5]
    for agents, found in together(some_columns, 2, weights):
        np.testing.assert_allclose(found, expected[agents], atol=1e-13)
        assert (found[:, [0, 1, 5, 6]] == expected[agents][:, [0, 1, 5, 6]]).all()
