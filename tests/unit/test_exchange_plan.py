"""The plan of an exchange with neighbors, against what edges say one by one."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.graphs import random_weights

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import MOST_UNDER_WAY, hierarchical, neighbor_allreduce, neighbor_mix, push_sum
from marl_hpc.comm.transports import Nobody


def plans_of(weights, owners):
    return [ExchangePlan(weights, owners, rank) for rank in range(max(owners) + 1)]


@st.composite
def cases(draw):
    ranks = draw(st.integers(1, 5))
    agents = draw(st.integers(max(4, ranks), 40))
    seed = draw(st.integers(0, 1000))
    owners = np.r_[np.arange(ranks), np.random.default_rng(seed).integers(0, ranks, agents - ranks)]
    np.random.default_rng(seed + 1).shuffle(owners)
    return random_weights(agents, draw(st.sampled_from([2, 4, 7])), seed, draw(st.booleans())), owners


@settings(deadline=None)
@given(cases())
def test_each_boundary_row_goes_once_to_each_rank_that_needs_it_and_nowhere_else(case):
    weights, owners = case
    plans = plans_of(weights, owners)
    sent = {
        (rank, q, int(agent))
        for rank, plan in enumerate(plans)
        for q, rows in plan.sends.items()
        for agent in plan.agents[rows.numpy()]
    }
    rows, columns = weights.nonzero()
    needed = {(owners[j], owners[i], j) for i, j in zip(rows, columns, strict=True) if owners[i] != owners[j]}
    assert sent == needed
    assert sum(plan.traffic.rows_sent for plan in plans) == len(needed)
    assert [plan.traffic.rows_received for plan in plans] == [
        len([x for x in needed if x[1] == rank]) for rank in range(len(plans))
    ]


@settings(deadline=None)
@given(cases())
def test_what_is_sent_lands_in_the_halo_in_the_order_that_its_reader_expects(case):
    weights, owners = case
    plans = plans_of(weights, owners)
    for plan in plans:
        assert sorted(plan.agents) == np.flatnonzero(owners == plan.rank).tolist()
        agents = np.r_[plan.agents, np.full(len(plan.halo), -1)]
        for q, place in plan.receives.items():
            agents[place] = plans[q].agents[plans[q].sends[plan.rank].numpy()]
        assert (agents[len(plan.agents) :] == plan.halo).all()


@settings(deadline=None)
@given(cases())
def test_interior_needs_nobody_and_the_matrix_is_the_dense_one(case):
    weights, owners = case
    for plan in plans_of(weights, owners):
        n = len(plan.agents)
        held = np.r_[plan.agents, plan.halo]
        matrix = plan.matrix(slice(0, n), torch.float64).to_dense().numpy()
        assert (matrix == weights.toarray()[plan.agents][:, held]).all()
        assert not matrix[: plan.interior, n:].any()
        assert (matrix[plan.interior :, n:] != 0).any(1).all()
        assert all((np.diff(plan.weights[i].indices) > 0).all() for i in range(n))  # summed in the order of agents


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w, o: (w.toarray(), o, 0), "SciPy sparse matrix"),
        (lambda w, o: (w[:3], o, 0), r"weights of shape \(3, 6\) need one owner for each agent"),
        (lambda w, o: (w, o[:4], 0), r"owners of shape \(4,\)"),
        (lambda w, o: (w, o.astype(float), 0), "owners are ranks"),
        (lambda w, o: (w, o - 1, 0), "owners are ranks, 0 or more; got int64 from -1"),
        (lambda w, o: (w, o, 2), "rank 2 owns none of 6 agents"),
    ],
)
def test_weights_and_owners_that_do_not_fit_are_refused(change, said):
    weights, owners = random_weights(6), np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=said):
        ExchangePlan(*change(weights, owners))


@settings(deadline=None)
@given(cases(), st.integers(0, 1000))
def test_plans_in_turn_have_their_rows_in_one_order_and_mix_as_their_own_matrices_say(case, seed):
    weights, owners = case
    others = random_weights(weights.shape[0], 4, seed, directed=True)
    for rank in range(max(owners) + 1):
        plans = ExchangePlan.in_turn([weights, others], owners, rank)
        n = len(plans[0].agents)
        for matrix, plan in zip((weights, others), plans, strict=True):
            assert (plan.agents == plans[0].agents).all()
            alone = ExchangePlan(matrix, owners, rank)
            assert sorted(plan.halo) == sorted(alone.halo)  # nothing is sent because another matrix needs it
            held = np.r_[plan.agents, plan.halo]
            mine = plan.matrix(slice(0, n), torch.float64).to_dense().numpy()
            assert (mine == matrix.toarray()[plan.agents][:, held]).all()
            assert not mine[: plan.interior, n:].any()
            for q, rows in plan.sends.items():
                theirs = ExchangePlan.in_turn([weights, others], owners, q)[0 if matrix is weights else 1]
                arriving = theirs.halo[np.arange(theirs.rows)[theirs.receives[rank]] - len(theirs.agents)]
                assert (plan.agents[rows.numpy()] == arriving).all()


def test_an_order_that_is_none_and_rows_of_different_orders_are_refused():
    weights, owners = random_weights(6), np.array([0, 0, 0, 1, 1, 1])
    for order in ([0, 1, 2, 3, 4, 4], [3, 4, 5, 0, 1, 2], [0, 1, 2]):
        with pytest.raises(ValueError, match="order must name each agent once, those of rank 0 first"):
            ExchangePlan(weights, owners, 0, order=np.array(order))
    with pytest.raises(ValueError, match="no weights are given"):
        ExchangePlan.in_turn([], owners, 0)
    plans = [ExchangePlan(weights, owners, 0, order=np.array(order)) for order in ([0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5])]
    with pytest.raises(ValueError, match=r"make them together by ExchangePlan\.in_turn"):
        hierarchical(torch.zeros(3, 2), plans, transports=[Nobody(), Nobody()])


def alone(n=6):
    return ExchangePlan(topology.metropolis_hastings(topology.ring(n)), np.zeros(n, int), 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": [0, 1]}, r"columns must be a slice, such as slice\(0, 2\); got \[0, 1\]"),
        ({"columns": torch.tensor([True, False, True, False])}, "columns must be a slice"),
        ({"columns": slice(10, 20)}, "name none of the 4 columns"),
        ({"columns": slice(3, 0, -1)}, "or count backward"),
        ({"rounds": 2.5}, "rounds=2.5 must be a whole number"),
        ({"out": torch.zeros(6, 4, requires_grad=True)}, "out requires a gradient"),
    ],
)
def test_options_that_would_mix_nothing_or_fail_halfway_are_refused(options, said):
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match=said):
        neighbor_allreduce(x, alone(), **options)


def test_rows_and_masses_that_do_not_fit_are_refused():
    plan, x = alone(), torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"x must be a torch.Tensor; got ndarray"):
        neighbor_allreduce(x.numpy(), plan)
    for mass in (torch.ones(6, 1), torch.ones(5), torch.ones(6, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"mass must be one number for each agent, of x's type: \[6\] of torch.float32"):
            push_sum(x, mass, plan)
    with pytest.raises(ValueError, match="2 plans need a transport each, or none; got 1"):
        hierarchical(x, [plan, plan], transports=[None])
    with pytest.raises(ValueError, match="weights are a list of matrices; got one csr_matrix"):
        ExchangePlan.in_turn(topology.metropolis_hastings(topology.ring(4)), [0] * 4, 0)


def test_a_plan_that_was_used_in_inference_mode_carries_gradients_afterward():
    plan, x = alone(), torch.randn(6, 4)
    with torch.inference_mode():
        neighbor_mix(x, plan, Nobody())
    leaf = x.clone().requires_grad_()
    neighbor_mix(leaf, plan, Nobody()).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.ones(6, 4))


def test_a_plan_that_is_dropped_takes_its_buffers_along():
    gc.disable()
    try:
        plan = alone()
        handle = neighbor_allreduce(torch.ones(6, 4), plan, async_op=True)
        gone = weakref.ref(plan)
        del plan
        torch.testing.assert_close(handle.wait(), torch.ones(6, 4))  # its handle keeps it
        del handle
        assert gone() is None
    finally:
        gc.enable()


def test_handles_that_nobody_waits_for_are_not_kept_without_end():
    plan, x = alone(), torch.ones(6, 4)
    for _ in range(MOST_UNDER_WAY):
        neighbor_allreduce(x, plan, async_op=True)
    with pytest.raises(RuntimeError, match=r"64 exchanges of one plan are under way.*wait for their handles"):
        neighbor_allreduce(x, plan)
