"""Parameter shard 0 where populations are: who waits for what, who has what to simulate, and what outlives it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from marl_hpc.config import Population
from marl_hpc.populations import content_hash
from marl_hpc.roles.population import PopulationShard

PSRO = Population(name="psro", payoffs="simulated", half_width=0.15, min_episodes=100, max_episodes=400, meta_solver="uniform")
LEASE_S = 100.0


def shard_of(section=PSRO):
    return PopulationShard(
        0, ("p",), section=section, populations=(0, 1), exact=False, seed=0, lease_s=LEASE_S, state=None,
    )  # fmt: skip


def member(population, number, values=None):
    content = content_hash(np.array([population, number] if values is None else values, float))
    return ((population, number), None, 0, 0, "test", "drawn", content)


def freeze(shard, number, values=None):
    for population in (0, 1):
        shard.admit(member(population, number, values))


def returns_of(lease):
    """What depends on the cell, the batch and nothing else."""
    first = np.random.default_rng([*lease.cell, lease.batch]).normal(size=(lease.episodes, 1))
    return torch.from_numpy(np.concatenate([first, -first], 1))


def test_a_member_that_comes_before_its_turn_joins_when_that_comes_and_nobody_waits():
    shard = shard_of(section=Population(name="pipeline_psro", levels=2))
    freeze(shard, 0)
    for number in (2, 1):
        assert shard.admit(member(0, number)) is None  # and no future
        assert shard.admit(member(0, number)) is None
    shard.close()
    assert [tuple(name) for name, *_ in shard.members()] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert shard.admit(member(1, 2)) is None  # also while the run is being stopped: the checkpoint has to have it
    assert shard.admit(member(1, 1)) is None
    assert len(shard.members()) == 6
    shard.admit(member(0, 5))
    with pytest.raises(ValueError, match="can't become"):
        shard.admit(member(0, 5, [7.0]))


def test_a_worker_that_says_it_is_at_it_keeps_its_batch(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("marl_hpc.roles.population.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    shard = shard_of()
    freeze(shard, 0)
    mine = shard.work("rollout/0", 0, True)["lease"][:2]
    assert shard.work("rollout/1", 0, True)["lease"][:2] != mine
    for now_s[0] in (0.9 * LEASE_S, 1.8 * LEASE_S, 2.7 * LEASE_S):
        shard.renew("rollout/0")
    assert shard.work("rollout/2", 0, True)["lease"][:2] != mine  # rollout/1's, who said nothing
    now_s[0] += 1.1 * LEASE_S
    assert shard.work("rollout/3", 0, True)["lease"][:2] == mine
