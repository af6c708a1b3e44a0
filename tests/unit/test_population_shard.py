"""Parameter shard 0 where populations are: who waits for what, who has what to simulate, and what outlives it."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.futures import Future

from marl_hpc.config import Population
from marl_hpc.metrics import Clock
from marl_hpc.populations import Lease, content_hash
from marl_hpc.roles.clients import Stopping
from marl_hpc.roles.population import PopulationClient, PopulationShard
from marl_hpc.storage.journal import Journal

PSRO = Population(name="psro", payoffs="simulated", half_width=0.15, min_episodes=100, max_episodes=400, meta_solver="uniform")
LEASE_S = 100.0


def shard_of(journal=None, section=PSRO, state=None, made_for="this", populations=(0, 1)):
    return PopulationShard(
        0, ("p",), section=section, populations=populations, exact=False, seed=0, lease_s=LEASE_S, state=state,
        journal=None if journal is None else Journal(journal), made_for=made_for,
    )  # fmt: skip


def member(population, number, values=None):
    content = content_hash(np.array([population, number] if values is None else values, float))
    return ((population, number), None, 0, 0, 0, "test", "drawn", content)


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


def same_table(one, other):
    for key, x in one.table().items():
        assert torch.equal(other.table()[key], x), key


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


def undisturbed(stages=2):
    shard = shard_of()
    batches = []
    for stage in range(stages):
        freeze(shard, stage)
        batches += simulate(shard, stage)
    return shard, batches


def test_what_was_simulated_since_the_checkpoint_isnt_simulated_again(tmp_path):
    """The shard dies in the middle of stage 1; the checkpoint is of stage 0, whose members are frozen again."""
    expected, batches = undisturbed()
    first = shard_of(tmp_path / "journal")
    freeze(first, 0)
    before = simulate(first, 0)
    name, _ = saved(first, tmp_path)
    freeze(first, 1)
    before += simulate(first, 1, 3)
    resumed = shard_of(tmp_path / "journal", state=load_file(tmp_path / name))
    freeze(resumed, 1)
    after = simulate(resumed, 1)
    assert sorted(before + after) == sorted(batches)
    assert len(after) == len(batches) - len(before) > 0
    same_table(resumed, expected)
    assert torch.equal(resumed.strategy(1, True)["strategy"]["mixture.0"], expected.strategy(1, True)["strategy"]["mixture.0"])


def saved(shard, folder):
    shard.publish("p", 0, torch.zeros(1))
    return shard.save(str(folder), 0)


def test_cells_that_were_refined_are_taken_up_again_too(tmp_path):
    expected, batches = undisturbed(1)
    assert len(batches) > 2  # more than min_episodes
    shard = shard_of(tmp_path / "journal")
    freeze(shard, 0)
    simulate(shard, 0)
    again = shard_of(tmp_path / "journal")
    freeze(again, 0)
    assert simulate(again, 0) == []
    same_table(again, expected)


@pytest.mark.parametrize("other", [{"values": [9.0, 9.0]}, {"made_for": "another reward"}, {"played": "greedy"}])
def test_batches_of_other_policies_or_of_another_run_are_ignored(tmp_path, other):
    shard = shard_of(tmp_path / "journal")
    freeze(shard, 0)
    batches = simulate(shard, 0)
    again = shard_of(tmp_path / "journal", made_for=other.get("made_for", "this"))
    for population in (0, 1):
        *rest, _, content = member(population, 0, other.get("values"))
        again.admit((*rest, other.get("played", "drawn"), content))
    assert simulate(again, 0) == batches


def test_a_checkpoint_cuts_the_journal_back_to_what_came_after_the_one_before(tmp_path):
    def cells():
        return {tuple(json.loads(line)["cell"]) for line in (tmp_path / "journal").read_text().splitlines()}

    shard = shard_of(tmp_path / "journal")
    freeze(shard, 0)
    simulate(shard, 0)
    saved(shard, tmp_path)
    assert cells() == {(0, 0)}  # the checkpoint may not get complete
    freeze(shard, 1)
    simulate(shard, 1)
    saved(shard, tmp_path)
    assert cells() == {(0, 1), (1, 0), (1, 1)}
    saved(shard, tmp_path)
    assert not cells()


def test_a_journal_whose_writer_was_killed_in_the_middle_of_a_line_goes_on(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.append({"number": 0})
    journal.append({"number": 1})
    text = (tmp_path / "journal").read_text()
    (tmp_path / "journal").write_text(text[:-5])
    again = Journal(tmp_path / "journal")
    again.append({"number": 2})
    assert [record["number"] for record in Journal(tmp_path / "journal").found] == [0, 2]


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
