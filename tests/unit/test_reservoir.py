"""Reservoirs: a uniform sample of all that best responses did."""

import numpy as np
import torch

from marl_hpc.keyed_random import generator
from marl_hpc.roles.clients import among
from marl_hpc.storage.fragments import allocate, pack
from marl_hpc.storage.reservoir import IMITATED, SEEN, Reservoir
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
