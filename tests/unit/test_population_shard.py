"""Parameter shard 0 where populations are: who waits for what, who has what to simulate, and what outlives it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.futures import Future

from marl_hpc.config import Population
from marl_hpc.metrics import Clock
from marl_hpc.populations import Lease, content_hash
from marl_hpc.roles.clients import Stopping
from marl_hpc.roles.population import PopulationClient, PopulationShard

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


def simulate(shard, stage, batches=10**6):
    """A worker until the table is complete, or so many batches; the leases that it had."""
    done = []
    while len(done) < batches and "lease" in (work := shard.work("rollout/0", stage, True)):
        cell, *rest = work["lease"]
        lease = Lease(tuple(cell), *rest)
        shard.report(lease.cell, lease.batch, returns_of(lease))
        done.append((lease.cell, lease.batch))
    return done


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


class Quick:
    """A world in which patience is short."""

    patience_s = 0.5

    def stamp(self):
        pass


class Parked:
    """A peer whose parked answers are waited for, as over RPC."""

    def __init__(self, shard):
        self.name, self.shard = "parameter/0", shard

    def call(self, method, *arguments):
        return Said(getattr(self.shard, method)(*arguments))


class Said:
    def __init__(self, answer):
        self.answer = answer

    def wait(self, *, deadline_s, describe, alive=None):
        until = time.monotonic() + deadline_s
        while isinstance(self.answer, Future) and not self.answer.done():
            if time.monotonic() > until:
                raise TimeoutError(describe())
            time.sleep(0.01)
        return self.answer.value() if isinstance(self.answer, Future) else self.answer


def awaiting(shard, stage):
    """[what waiting for a stage's strategy ended with] and its thread."""
    found = []

    def wait():
        try:
            PopulationClient(Parked(shard), "learner/0", Quick(), Clock()).await_strategy(stage)  # type: ignore[arg-type]
            found.append("known")
        except (TimeoutError, Stopping) as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return found, thread


def test_a_learner_waits_for_a_table_as_long_as_batches_come_in():
    shard = shard_of()
    freeze(shard, 0)
    found, thread = awaiting(shard, 0)
    began = time.monotonic()
    while simulate(shard, 0, 1):
        time.sleep(0.3)
    thread.join(5)
    assert found == ["known"]
    assert time.monotonic() - began > 2 * Quick.patience_s


def test_a_table_that_stands_still_is_called_that():
    shard = shard_of()
    freeze(shard, 0)
    simulate(shard, 0, 1)
    shard.work("rollout/3", 0, True)
    found, thread = awaiting(shard, 0)
    thread.join(5)
    assert str(found[0]).startswith(
        "the payoffs that stage 0 needs stand still, nothing new came in 0 s: parameter/0: 2 policies are frozen"
    )
    assert "1 cells of the payoff table are missing, simulated by rollout/3; the last came" in str(found[0])
    assert "raise timeouts.wait_s" in str(found[0])


def test_who_waits_for_a_table_is_let_go_by_a_stop():
    shard = shard_of()
    freeze(shard, 0)
    found, thread = awaiting(shard, 0)
    time.sleep(0.1)
    shard.close()
    thread.join(5)
    assert isinstance(found[0], Stopping)


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
