"""The compiled kernel against exact sums, and where there is no compiler."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from rigs.graphs import random_weights

from marl_hpc.comm import compiled
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, neighbor_allreduce
from marl_hpc.comm.transports import Nobody
from marl_hpc.config import ConfigError

AGENTS = 40


@pytest.fixture
def plan():
    return ExchangePlan(random_weights(AGENTS, 6), np.zeros(AGENTS, int), 0)


def fused(weights, x, dtype):
    """Each product exact, each sum rounded once, in the order of agents."""
    out = np.zeros((AGENTS, x.shape[1]), dtype)
    for i in range(AGENTS):
        row = weights[i]
        for c in range(x.shape[1]):
            total = dtype(0)
            for k, w in zip(row.indices, row.data, strict=True):
                exact = Fraction(float(dtype(w))) * Fraction(float(x[k, c])) + Fraction(float(total))
                total = nearest(exact, dtype)
            out[i, c] = total
    return out


def nearest(exact, dtype):
    """The number of this type nearest to a fraction; ties to even."""
    guess = dtype(float(exact))  # within one step of it
    near = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    return min(
        near, key=lambda y: (abs(Fraction(float(y)) - exact), int(y.view(np.uint32 if dtype is np.float32 else np.uint64)) & 1)
    )


# a lone number, less than a vector, vectors and a rest, tiles and all of these
@pytest.mark.parametrize("width", [1, 3, 17, 64, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_product_is_fused_with_its_sum_in_the_order_of_agents(plan, width, dtype):
    x = np.random.default_rng(0).standard_normal((AGENTS, width)).astype(dtype)
    mixed = neighbor_allreduce(torch.from_numpy(x), plan, transport=Nobody(), kernel="compiled")
    assert np.array_equal(mixed.numpy(), fused(plan.weights, x, dtype))
    torch.testing.assert_close(mixed, neighbor_allreduce(torch.from_numpy(x), plan, transport=Nobody()))


@pytest.mark.parametrize("width", [1, 17, 1000, 1003])
def test_what_is_written_past_the_caches_is_the_same(plan, width, monkeypatch):
    x = torch.randn(AGENTS, width)
    usual = neighbor_allreduce(x, plan, transport=Nobody(), kernel="compiled")
    monkeypatch.setattr(compiled, "CACHE_BYTES", 0)
    assert torch.equal(neighbor_allreduce(x, plan, transport=Nobody(), kernel="compiled"), usual)


def test_an_agent_that_hears_nobody_at_all_becomes_zero():
    weights = random_weights(AGENTS, 6).tolil()
    weights[3] = 0
    alone = ExchangePlan(weights.tocsr(), np.zeros(AGENTS, int), 0)
    mixed = neighbor_allreduce(torch.ones(AGENTS, 5), alone, transport=Nobody(), kernel="compiled")
    assert not mixed[3].any()
    torch.testing.assert_close(mixed[:3], torch.ones(3, 5))


def test_without_a_compiler_the_error_says_what_to_do(plan, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    compiled.library.cache_clear()
    with pytest.raises(ConfigError, match=r"needs a C compiler.*no-such-compiler.*install gcc.*or take kernel 'torch'"):
        neighbor_allreduce(torch.ones(AGENTS, 5), plan, transport=Nobody(), kernel="compiled")


def test_kernels_are_refused_where_they_are_not(plan):
    with pytest.raises(ValueError, match="unknown kernel 'fast'; choose one of: torch, compiled"):
        neighbor_allreduce(torch.ones(AGENTS, 5), plan, transport=Nobody(), kernel="fast")
    with pytest.raises(ValueError, match="on the CPU; got device cuda"):
        Mixing(plan, Nobody(), 5, device="cuda", kernel="compiled")
