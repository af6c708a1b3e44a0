"""Neighbor-only all-reduce over real ranks, against dense W X."""

import os
import re
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rigs.exchanging_in_pairs import hosts_of_two
from rigs.graphs import random_weights
from rigs.ranks import Ranks, together

from marl_hpc.comm import neighbors
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import KERNELS, Mixing, neighbor_allreduce, neighbor_gather, neighbor_mix, push_sum
from marl_hpc.comm.peers import PeerLost
from marl_hpc.comm.shared_memory import SharedMemory
from marl_hpc.comm.transports import AllToAll, Nobody, PointToPoint

AGENTS, WIDTH, STEPS = 60, 33, 5
KINDS = {
    "point-to-point": PointToPoint, "all-to-all": AllToAll, "shared memory": SharedMemory, "two ranks a host": hosts_of_two,
}  # fmt: skip


def owners_of(ranks, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(AGENTS) % ranks)


def values(width=WIDTH, dtype=torch.float32):
    return torch.randn(AGENTS, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def whole(plans_agents, parts):
    """All agents' rows, from what ranks returned."""
    found = np.zeros((AGENTS, *parts[0].shape[1:]), parts[0].dtype)
    for agents, part in zip(plans_agents, parts, strict=True):
        found[agents] = part
    return found


def mixed_by_all_transports(rank, ranks, weights, kernel):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    found = {}
    for name, kind in KINDS.items() if ranks > 1 else [("none", Nobody)]:
        transport = kind()
        mixing = Mixing(plan, transport, WIDTH, kernel=kernel)
        mixing.rows.copy_(values()[plan.agents])
        x = values()[plan.agents]
        for _ in range(STEPS):
            before = x.clone()
            x = neighbor_allreduce(x, plan, transport=transport, kernel=kernel)
            assert torch.equal(mixing.step(), x)
            assert not torch.equal(before, x)
        found[name] = x.numpy()
    return plan.agents, found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("directed", [False, True])
def test_all_transports_and_numbers_of_ranks_give_the_bits_of_one_rank(directed, kernel):
    weights = random_weights(AGENTS, 6, directed=directed)
    results = {}
    for ranks in (1, 2, 4):
        parts = together(mixed_by_all_transports, ranks, weights, kernel)
        for name in parts[0][1]:
            results[ranks, name] = whole([agents for agents, _ in parts], [found[name] for _, found in parts])
    dense = np.linalg.matrix_power(weights.toarray(), STEPS) @ values().double().numpy()
    one = results.pop((1, "none"))
    assert np.abs(one - dense).max() <= 1e-6 * np.abs(dense).max()
    assert len(results) == 2 * len(KINDS)
    for found in results.values():
        assert (found == one).all()


def variants(rank, ranks, weights):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    x = values()[plan.agents]
    transport = PointToPoint()
    once = neighbor_allreduce(x, plan, transport=transport)
    thrice = neighbor_allreduce(x, plan, transport=transport, rounds=3)
    again = x
    for _ in range(3):
        again = neighbor_allreduce(again, plan, transport=transport)
    assert torch.equal(thrice, again)
    some = neighbor_allreduce(x, plan, transport=transport, columns=slice(5, 9))
    torch.testing.assert_close(some[:, 5:9], once[:, 5:9])  # a matrix of another width is multiplied in other pieces
    assert torch.equal(some[:, :5], x[:, :5])
    assert torch.equal(some[:, 9:], x[:, 9:])
    shaped = neighbor_allreduce(x.view(len(x), 3, 11), plan, transport=transport)
    assert torch.equal(shaped, once.view(len(x), 3, 11))
    handles = [neighbor_allreduce(x * factor, plan, transport=transport, async_op=True) for factor in (1.0, 2.0)]
    first, second = (handle.wait() for handle in handles)
    assert torch.equal(first, once)
    torch.testing.assert_close(second, 2 * once)
    own = x.clone()
    assert neighbor_allreduce(own, plan, transport=transport, out=own).data_ptr() == own.data_ptr()
    assert torch.equal(own, once)
    double = neighbor_allreduce(x.double(), plan, transport=transport)
    torch.testing.assert_close(double.float(), once, rtol=1e-6, atol=1e-6)
    return type(neighbors.choose_transport(plan)).__name__


def test_columns_rounds_shapes_and_handles_say_what_one_step_after_another_says():
    assert together(variants, 2, random_weights(AGENTS, 6)) == ["SharedMemory"] * 2


def backward(rank, ranks, weights):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    transport = PointToPoint() if ranks > 1 else Nobody()
    x = values(3, torch.float64)[plan.agents].requires_grad_()
    messages = neighbor_gather(x.tanh(), plan, transport)
    assert len(messages) == plan.rows
    loss = (neighbor_mix(x.sin(), plan, transport) ** 3).sum() + (messages**2).sum() * 0.5
    loss.backward()
    return plan.agents, x.grad.numpy(), [len(plan.agents) + list(plan.halo).index(a) for a in plan.halo]


@pytest.mark.parametrize("directed", [False, True])
def test_gradients_through_the_exchange_are_those_of_dense_autograd(directed):
    weights = random_weights(AGENTS, 6, directed=directed)
    owners = owners_of(3)
    parts = together(backward, 3, weights)
    x = values(3, torch.float64).requires_grad_()
    loss = ((torch.from_numpy(weights.toarray()) @ x.sin()) ** 3).sum()
    for rank in range(3):
        plan = ExchangePlan(weights, owners, rank)
        loss = loss + (x[np.r_[plan.agents, plan.halo]].tanh() ** 2).sum() * 0.5
    loss.backward()
    found = whole([agents for agents, *_ in parts], [gradient for _, gradient, _ in parts])
    np.testing.assert_allclose(found, x.grad.numpy(), atol=1e-12)


def averaged(rank, ranks, weights):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    transport = SharedMemory()
    x = values(4, torch.float64)[plan.agents]
    mass = torch.ones(len(x), dtype=torch.float64)
    naive = x
    for _ in range(400):
        x, mass = push_sum(x, mass, plan, transport=transport)
    rows = weights.multiply(1 / weights.sum(1)).tocsr()  # each averages what it hears: row-stochastic
    plan = ExchangePlan(rows, owners_of(ranks), rank)
    for _ in range(400):
        naive = neighbor_allreduce(naive, plan, transport=transport)
    return (x / mass[:, None]).numpy(), naive.numpy()


def test_push_sum_finds_the_mean_on_a_digraph_and_plain_averaging_does_not():
    mean = values(4, torch.float64).mean(0).numpy()
    for found, naive in together(averaged, 3, random_weights(AGENTS, 5, directed=True)):
        np.testing.assert_allclose(found, np.broadcast_to(mean, found.shape), atol=1e-12)
        assert np.ptp(naive, axis=0).max() < 1e-9  # it agrees, too, but on something else
        assert np.abs(naive - mean).max() > 1e-3


def mixing_for_ever(rank, ranks, weights, kind):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    transport = KINDS[kind](deadline_s=2.0)
    x = values()[plan.agents]
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < 30:
            x = neighbor_allreduce(x, plan, transport=transport)
            if rank == 1 and time.monotonic() - begun > 0.5:
                os.kill(os.getpid(), signal.SIGKILL if weights.shape[0] == AGENTS else signal.SIGSTOP)
    except PeerLost as error:
        return str(error), time.monotonic() - begun
    return "nothing was noticed", 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbor_that_dies_is_an_error_that_names_it(kind):
    with Ranks(mixing_for_ever, 3, random_weights(AGENTS, 6), kind) as started:
        for rank in (0, 2):
            said, after_s = started.answer(rank, 20)
            if kind == "all-to-all":  # can't say more
                assert said.startswith(f"one of the ranks {sorted({0, 1, 2} - {rank})} is gone or late")
            else:
                named = re.match(r"neighbor ranks? ([\d, ]+) (is|are) gone", said)
                assert named, said
                assert "1" in named[1].split(", ")
            assert after_s < 5


def stopped_neighbor(rank, ranks, weights, kind):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    transport = KINDS[kind](deadline_s=1.0)
    x = values()[plan.agents]
    x = neighbor_allreduce(x, plan, transport=transport)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(PeerLost) as raised:
        neighbor_allreduce(x, plan, transport=transport)
    return str(raised.value), time.monotonic() - begun


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbor_that_stands_still_is_an_error_at_the_deadline(kind):
    with Ranks(stopped_neighbor, 2, random_weights(AGENTS, 6), kind) as started:
        said, after_s = started.answer(0, 20)
    assert "neighbor rank" in said
    assert "1" in said
    assert 0.9 < after_s < 4


def wrong_calls(rank, ranks, weights):
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    x = values()[plan.agents]
    for wrong, options, said in (
        (x[:-1], {}, "the first dimension is theirs"),
        (x.int(), {}, "floating-point"),
        (x[:, :, None], {"columns": slice(0, 1)}, "matrix"),
        (x, {"rounds": 0}, "rounds=0"),
    ):
        with pytest.raises(ValueError, match=said):
            neighbor_allreduce(wrong, plan, **options)
    mixing = Mixing(plan, PointToPoint(), 2)
    with pytest.raises(RuntimeError, match="no exchange is under way"):
        mixing.finish()
    mixing.start()
    with pytest.raises(RuntimeError, match="under way; finish it"):
        mixing.start()
    mixing.finish()
    dist.barrier()


def test_wrong_calls_are_refused_before_anything_is_sent():
    together(wrong_calls, 2, random_weights(AGENTS, 6))
