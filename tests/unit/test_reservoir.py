"""Reservoirs: a uniform sample of all that best responses did."""

import numpy as np
import pytest
import torch

from marl_hpc.keyed_random import generator
from marl_hpc.roles.clients import among
from marl_hpc.storage.fragments import allocate, pack
from marl_hpc.storage.reservoir import IMITATED, SEEN, Reservoir, capacity_of, dealt
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec, ReservoirConfig

GROUP = GroupSpec(
    name="g", agents=("a", "b"), observation_shape=(2,), action_space=ActionSpace(kind="discrete", n=3), action_mask=True
)
INTERFACE = InterfaceSpec(name="g", paradigm="independent", groups=(GROUP,), modes=True)


def fragment(steps, copies, first, active=None, responds=None):
    """Observations count the (step, copy, agent) triples from `first`."""
    rows = allocate(INTERFACE, "float32", steps, copies)
    number = first + np.arange(steps * copies * 2).reshape(steps, copies, 2)
    rows["g/observation"] = number[..., None] * np.array([1.0, -1.0])
    rows["g/action"] = number % 3
    rows["g/action_mask"] = np.eye(3, dtype=bool)[number % 3]
    rows["g/active"] = True if active is None else active
    rows["g/best_response"] = True if responds is None else responds
    return {"rows": pack(rows)}


def test_only_what_best_responses_did_enters():
    random = np.random.default_rng(0)
    active, responds = random.random((2, 10, 4, 2)) < 0.6
    own = Reservoir(ReservoirConfig(capacity=1000, batch=5), 1.0, INTERFACE, "float32")
    own.insert(fragment(10, 4, 100, active, responds), generator(0))
    expected = 100 + np.flatnonzero(active & responds)
    assert own.seen == len(expected)
    kept = {name: x[: own.size] for name, x in own.kept.items()}
    assert kept["observation"][:, 0].tolist() == expected.tolist()
    assert kept["agent"].tolist() == ((expected - 100) % 2).tolist()
    assert kept["action"].tolist() == (expected % 3).tolist()
    assert (kept["action_mask"].argmax(1) == expected % 3).all()


def test_each_of_all_that_came_is_kept_with_the_same_chance():
    counts = np.zeros(240)
    for seed in range(400):
        own = Reservoir(ReservoirConfig(capacity=60, batch=5), 0.5, INTERFACE, "float32")
        for k in range(4):
            own.insert(fragment(15, 2, 60 * k), generator(seed, k))
        assert own.size == 30
        counts[own.kept["observation"][:, 0].astype(int)] += 1
    assert counts.sum() == 400 * 30
    expected, deviation = 400 * 30 / 240, np.sqrt(400 * (1 / 8) * (7 / 8))
    assert np.abs(counts - expected).max() < 5 * deviation
    for k in range(4):  # neither the first nor the last are preferred
        assert abs(counts[60 * k : 60 * (k + 1)].mean() - expected) < 5 * deviation / np.sqrt(60)


def test_a_reservoir_goes_on_from_its_state():
    whole, parts = (Reservoir(ReservoirConfig(capacity=50, batch=5), 1.0, INTERFACE, "float32") for _ in range(2))
    whole.insert(fragment(10, 2, 0), generator(1))
    parts.load_state({name: x.clone() for name, x in whole.state().items()})
    for own in (whole, parts):
        own.insert(fragment(10, 2, 40), generator(2))
    assert whole.seen == parts.seen == 80
    for name, x in whole.kept.items():
        assert (parts.kept[name] == x).all()
    drawn = whole.draw(generator(3), 2)
    assert drawn["observation"].shape == (1, 2, 5, 2)
    assert (drawn["observation"][..., 0] == -drawn["observation"][..., 1]).all()


def filled(share, capacity, sizes, first, seed):
    """A shard's reservoir after fragments of so many items each."""
    own = Reservoir(ReservoirConfig(capacity=capacity, batch=5), share, INTERFACE, "float32")
    for k, size in enumerate(sizes):
        own.insert(fragment(size // 2, 1, first + sum(sizes[:k])), generator(seed, first, k))
    return own


def numbers(own):
    return own.kept["observation"][: own.size, 0].astype(int) if own.kept else np.zeros(0, int)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5), (0.75, 0.25), (0.4, 0.3, 0.3)])
@pytest.mark.parametrize("before", [((0.5, 100), (0.5, 140)), ((0.75, 180), (0.25, 40)), ((1.0, 240),)])
def test_after_a_resume_with_other_shards_everything_that_came_is_there_with_the_same_chance(before, shares):
    """A reservoir of 60, from shards that have seen these numbers of items; then 120 more come."""
    config, repeats = ReservoirConfig(capacity=60, batch=5), 300
    old, new = (np.zeros((repeats, n)) for n in (sum(seen for _, seen in before), 120))
    for seed in range(repeats):
        seens = [seen for _, seen in before]
        states = [
            filled(share, 60, [seen // 2, seen - seen // 2], sum(seens[:k]), seed).state() for k, (share, seen) in enumerate(before)
        ]
        capacities = [capacity_of(config, share) for share in shares]
        shards = []
        for share, state in zip(shares, dealt(states, capacities, generator(seed, 9)), strict=True):
            own = Reservoir(config, share, INTERFACE, "float32")
            own.load_state(state)
            assert abs(own.seen - share * sum(seens)) <= 1
            assert own.size <= own.capacity
            assert own.draw(generator(seed), 2)["action_mask"].any(-1).all()  # nothing that never was
            shards.append(own)
        assert sum(own.seen for own in shards) == sum(seens)
        there = np.concatenate([numbers(own) for own in shards])
        assert len(set(there.tolist())) == len(there) > 40
        first = sum(seens)
        for own, share in zip(shards, shares, strict=True):
            count = int(share * 120)
            own.insert(fragment(count // 2, 1, first), generator(seed, 10, first))
            first += count
            assert own.draw(generator(seed), 2)["action_mask"].any(-1).all()
        there = np.concatenate([numbers(own) for own in shards])
        old[seed, there[there < old.shape[1]]] += 1
        new[seed, there[there >= old.shape[1]] - old.shape[1]] += 1
    chance = (old.sum() + new[:, : first - old.shape[1]].sum()) / repeats / first
    for counts in (old, new[:, : first - old.shape[1]]):
        deviation = np.sqrt(chance * (1 - chance) / repeats)
        assert np.abs(counts.mean(0) - chance).max() < 5 * deviation
        assert abs(counts.mean() - chance) < 0.02
    assert chance > 0.9 * 60 / first


def test_what_is_kept_grows_back_to_what_fits():
    """Two shards of which one had thrown away more than the other: what they have together is less than fits."""
    shards = [filled(0.5, 60, [200], 0, 1), filled(0.5, 60, [40], 200, 1)]
    (state,) = dealt([own.state() for own in shards], [60], generator(2))
    own = Reservoir(ReservoirConfig(capacity=60, batch=5), 1.0, INTERFACE, "float32")
    own.load_state(state)
    assert own.seen == 240
    assert own.size in (36, 37)  # 30 of 200, and as often 6 of 40
    own.insert(fragment(60, 1, 240), generator(3))
    assert 36 < own.size < 60
    own.insert(fragment(300, 1, 360), generator(4))
    assert own.size == own.capacity == 60
    assert own.seen == 960
    assert len(set(numbers(own).tolist())) == 60


def test_empty_reservoirs_are_dealt_as_such():
    empty = [Reservoir(ReservoirConfig(capacity=60, batch=5), 0.5, INTERFACE, "float32").state() for _ in range(2)]
    found = dealt(empty, [20, 20, 20], generator(0))
    assert [int(state["seen"]) for state in found] == [0, 0, 0]


def test_shards_are_drawn_from_in_proportion_to_what_they_have_seen():
    def piece(value, seen):
        return {f"{IMITATED}agent": torch.full((1, 3, 8), value), SEEN: torch.tensor(seen)}

    found = among([piece(0, 100), piece(1, 300)])
    assert found is not None
    assert found[f"{IMITATED}agent"][0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    empty = {SEEN: torch.tensor(0)}
    found = among([dict(empty), piece(1, 7)])
    assert found is not None
    assert found[f"{IMITATED}agent"].unique().tolist() == [1]
    assert among([dict(empty), dict(empty)]) is None
    assert among([{}, {}]) == {}
