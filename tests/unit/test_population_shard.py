"""Parameter shard 0 where populations are: who waits for what, who has what to simulate, and what outlives it."""

import numpy as np
import pytest

from marl_hpc.config import Population
from marl_hpc.populations import content_hash
from marl_hpc.roles.population import PopulationShard

PSRO = Population(name="psro", payoffs="simulated", half_width=0.15, min_episodes=100, max_episodes=400, meta_solver="uniform")


def shard_of(section=PSRO):
    return PopulationShard(
        0, ("p",), section=section, populations=(0, 1), exact=False, seed=0, state=None,
    )  # fmt: skip


def member(population, number, values=None):
    content = content_hash(np.array([population, number] if values is None else values, float))
    return ((population, number), None, 0, 0, "test", "drawn", content)


def freeze(shard, number, values=None):
    for population in (0, 1):
        shard.admit(member(population, number, values))


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
