"""Environments of users that say who is whose neighbor, and options of topologies on the command line."""

import math

import numpy as np
import pytest
from rigs.inline import train

from marl_hpc import envs
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.neighborhoods import neighbors_of

LINE = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize("named", [False, True])
def test_pairs_of_names_or_places_are_the_same_edges(named):
    pairs = [(f"h_{i}", f"h_{j}") for i, j in LINE] if named else LINE
    env = envs.make("rigs.games:street", copies=1, groups="shared", edges=pairs)
    assert env.spec.edges.tolist() == [list(pair) for pair in LINE]
    back = type(env.spec).from_json(env.spec.to_json())
    assert back.edges.tolist() == env.spec.edges.tolist()


def test_places_are_those_of_possible_agents_whatever_groups_are_made():
    groups = {f"h_{i}": "odd" if i % 2 else "even" for i in range(6)}
    env = envs.make("rigs.games:street", copies=1, groups=groups, edges=LINE)
    agents = env.spec.agents
    assert agents != tuple(f"h_{i}" for i in range(6))
    assert sorted(tuple(sorted((agents[i], agents[j]))) for i, j in env.spec.edges) == [(f"h_{i}", f"h_{j}") for i, j in LINE]


@pytest.mark.parametrize("pair", [(0, 6), ("h_0", "h_9"), (0, 1, 2), (0,)])
def test_a_pair_of_somebody_else_is_named(pair):
    with pytest.raises(ConfigError, match="expected pairs of agents"):
        envs.make("rigs.games:street", copies=1, groups="shared", edges=[(0, 1), pair])


def test_networked_agents_learn_on_the_environments_own_edges(tmp_path):
    given = "[[h_0,h_1],[h_1,h_2],[h_2,h_3],[h_3,h_4],[h_4,h_5]]"
    lines = train(tmp_path, "env.name=rigs.games:street", f"env.edges={given}", "paradigm=networked")
    assert all(math.isfinite(x) for line in lines for x in line.values())
    config = compose(["env.name=rigs.games:street", f"env.edges={given}", "paradigm=networked"])
    env = envs.make("rigs.games:street", copies=1, groups="shared", edges=config.env["edges"])
    pairs = neighbors_of(config.topology, env.spec, env.spec.groups[0])
    assert sorted(pairs) == sorted([(i, j) for i, j in LINE] + [(j, i) for i, j in LINE])


def test_without_edges_the_error_says_what_to_do():
    env = envs.make("mpe_fast/simple_spread", copies=1, groups="shared")
    config = compose(["env=mpe_fast/simple_spread", "paradigm=networked"])
    with pytest.raises(ConfigError, match="attribute `edges`"):
        neighbors_of(config.topology, env.spec, env.spec.groups[0])


def test_options_of_a_topology_are_single_overrides():
    env = envs.make("networked/wireless", copies=1, groups="shared", height=4, width=5)
    config = compose(["env=networked/wireless", "paradigm=networked", "topology=erdos_renyi", "topology.options.degree=6"])
    assert config.topology.options == {"degree": 6}
    degrees = np.bincount([i for i, _ in neighbors_of(config.topology, env.spec, env.spec.groups[0])])
    assert 3 < degrees.mean() < 9
    wrong = compose(["env=networked/wireless", "paradigm=networked", "topology=erdos_renyi", "topology.options.dgree=6"])
    with pytest.raises(ConfigError, match="no option 'dgree'; it takes degree, seed"):
        neighbors_of(wrong.topology, env.spec, env.spec.groups[0])
