"""Frozen policies: names, lineage, and that nobody can change them."""

import numpy as np
import pytest

from marl_hpc.populations import MemoryValues, PolicyId, PolicyPopulation, content_hash


class Tampered(MemoryValues):
    """Gives back something else than what was put."""

    def get(self, name):
        return super().get(name) + 1


def two():
    population = PolicyPopulation((0, 1))
    population.add(PolicyId(0, 0), np.arange(3.0), made_by="by hand")
    population.add(PolicyId(0, 1), np.ones(3), made_by="best response", parent=0, iteration=1, env_steps=500)
    population.add(PolicyId(1, 0), np.zeros(2), made_by="by hand")
    return population


def test_names_count_up_in_each_population():
    population = two()
    assert population.sizes == (2, 1)
    assert [str(member.id) for member in population] == ["0/0", "0/1", "1/0"]
    assert population.next_id(1) == PolicyId(1, 1)
    assert population.member(PolicyId(0, 1)).parent == 0


def test_players_of_a_symmetric_game_share_a_population():
    population = PolicyPopulation((0, 0, 1))
    population.add(PolicyId(0, 0), np.ones(1), made_by="by hand")
    assert population.sizes == (1, 1, 0)


def test_adding_a_policy_again_changes_nothing():
    population = two()
    before = population.state()
    population.add(PolicyId(0, 1), np.ones(3), made_by="best response", parent=0, iteration=1, env_steps=500)
    for key, array in population.state().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize(
    ("name", "values", "keywords", "message"),
    [
        (PolicyId(0, 0), np.zeros(3), {}, "frozen"),
        (PolicyId(0, 0), np.arange(3.0), {"env_steps": 1}, "frozen"),
        (PolicyId(0, 3), np.zeros(3), {}, "next one of its population; that is 0/2"),
        (PolicyId(2, 0), np.zeros(3), {}, "no population 2"),
        (PolicyId(0, 2), np.zeros(3), {"parent": 2}, "has parent 2"),
        (PolicyId(0, 2), np.zeros(3), {"env_steps": -1}, "can be negative"),
        (PolicyId(0, 2), np.zeros(3), {"run_steps": -1}, "can be negative"),
    ],
)
def test_a_name_never_stands_for_anything_else(name, values, keywords, message):
    with pytest.raises(ValueError, match=message):
        two().add(name, values, made_by="by hand", **keywords)


def test_values_are_copies_that_nobody_can_write_to():
    given = np.ones(2)
    population = PolicyPopulation((0,))
    population.add(PolicyId(0, 0), given, made_by="by hand")
    given[0] = 5
    read = population.values(PolicyId(0, 0))
    assert read.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 5


def test_values_that_have_changed_are_noticed_when_they_are_read():
    population = PolicyPopulation((0,), Tampered())
    population.add(PolicyId(0, 0), np.ones(2), made_by="by hand")
    with pytest.raises(RuntimeError, match="frozen policy 0/0 have changed"):
        population.values(PolicyId(0, 0))


def test_the_hash_tells_types_and_shapes_apart():
    arrays = [np.zeros(2), np.zeros((1, 2)), np.zeros(2, np.float32), np.array([0.0, 1e-300]), np.array([0.0, -0.0])]
    assert len({content_hash(array) for array in arrays}) == len(arrays)
    strided = np.arange(6.0).reshape(2, 3)[:, ::2]
    assert content_hash(strided) == content_hash(strided.copy())


def test_equal_values_are_found():
    assert two().find(0, np.ones(3)).id == PolicyId(0, 1)
    assert two().find(1, np.ones(3)) is None


def test_a_state_restores_lineage_and_still_checks_values():
    values = MemoryValues()
    population = PolicyPopulation((0, 0), values)
    population.add(PolicyId(0, 0), np.ones(2), made_by="Rock, 100 % of the time – by hand", env_steps=2**40, run_steps=2**41)
    loaded = PolicyPopulation((0, 0), values)
    loaded.load_state(population.state())
    assert list(loaded) == list(population)
    assert loaded.values(PolicyId(0, 0)).tolist() == [1, 1]
    values.put(PolicyId(0, 0), np.zeros(2))
    with pytest.raises(RuntimeError, match="changed"):
        loaded.values(PolicyId(0, 0))
    with pytest.raises(ValueError, match=r"populations \(0, 0\), these are \(0, 1\)"):
        PolicyPopulation((0, 1)).load_state(population.state())


def test_what_is_not_there_is_named():
    with pytest.raises(LookupError, match="no policy 0/2; populations have 2, 1 policies"):
        two().values(PolicyId(0, 2))
    with pytest.raises(LookupError, match="no values of policy 0/0"):
        MemoryValues().get(PolicyId(0, 0))
    with pytest.raises(ValueError, match="numbered from 0"):
        PolicyPopulation((0, 2))
