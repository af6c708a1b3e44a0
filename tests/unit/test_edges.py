"""Environments that say who may talk to whom: pairs of agents reach the spec, networked learning learns over them, wrong pairs are named."""

import math

import numpy as np
import pytest
from pettingzoo.utils.wrappers import BaseParallelWrapper, OrderEnforcingWrapper
from rigs import inline
from rigs.games import Board, Relay

from marl_hpc import testing
from marl_hpc.building import make_env
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError, Topology
from marl_hpc.envs import batch_of, make
from marl_hpc.envs.edges import edges_of
from marl_hpc.envs.export import to_pettingzoo
from marl_hpc.neighborhoods import neighbors_of
from marl_hpc.types import EnvSpec

SQUARE = [("x_0", "x_1"), ("x_1", "y_0"), ("y_0", "y_1"), ("y_1", "x_0")]


def named(spec):
    """The edges of a spec as sets of names, in its order."""
    return [{spec.agents[i], spec.agents[j]} for i, j in spec.edges]


@pytest.mark.parametrize(
    "edges",
    [
        SQUARE,
        [["y_1", "x_0"], ["x_1", "x_0"], ["x_0", "x_1"], ["y_0", "y_1"], ["x_1", "y_0"]],  # any order, as often as they like
        [(0, 1), (1, 2), (2, 3), (3, 0)],
        np.array([[0, 1], [1, 2], [2, 3], [3, 0]]),
        [("x_0", 1), (np.int64(1), "y_0"), ("y_0", 3), (3, np.str_("x_0"))],
    ],
)
@pytest.mark.parametrize("groups", ["shared", "separate", {"x_0": "a", "y_1": "a", "x_1": "b", "y_0": "b"}])
def test_pairs_of_agents_become_places_in_the_spec(edges, groups):
    spec = batch_of("board", [Board(edges=edges)], groups).spec
    assert (spec.edges[:, 0] < spec.edges[:, 1]).all()
    assert spec.edges.tolist() == sorted(spec.edges.tolist())
    assert {frozenset(pair) for pair in named(spec)} == {frozenset(pair) for pair in SQUARE}
    assert len(spec.edges) == 4
    assert EnvSpec.from_json(spec.to_json()).edges.tolist() == spec.edges.tolist()


class InTurns(Relay):
    edges = [("a", "b"), ("d", "b"), ("c", "d")]


def test_turn_based_and_wrapped_environments_say_it_too():
    assert named(batch_of("relay", [InTurns()]).spec) == [{"a", "b"}, {"b", "d"}, {"c", "d"}]
    assert named(batch_of("relay", [OrderEnforcingWrapper(InTurns())]).spec) == [{"a", "b"}, {"b", "d"}, {"c", "d"}]
    assert len(batch_of("board", [BaseParallelWrapper(Board(edges=SQUARE))]).spec.edges) == 4


def test_without_edges_there_are_none():
    assert batch_of("board", [Board()]).spec.edges is None
    assert batch_of("relay", [Relay()]).spec.edges is None
    assert batch_of("board", [Board(edges=[])]).spec.edges.shape == (0, 2)


class Numbered:
    possible_agents = [3, 1, 0]
    edges = [(0, 3), (1, 3)]


def test_where_names_are_numbers_numbers_are_names():
    assert edges_of("mine", Numbered(), [3, 1, 0]).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([("x_0", "x_1"), ("x_0", "z_9")], ["('x_0', 'z_9')", "names 'z_9'", "possible_agents: x_0, x_1, y_0, y_1"]),
        ([(0, 4)], ["(0, 4)", "names 4", "0 to 3"]),
        ([(-1, 0)], ["(-1, 0)", "names -1"]),
        ([(0, 1.5)], ["names 1.5"]),
        ([([0], [1])], ["([0], [1])", "names [0]"]),
        ([("x_0", "x_0")], ["('x_0', 'x_0')", "with itself"]),
        ([(0, "x_0")], ["(0, 'x_0')", "with itself"]),
        ([("x_0", "x_1", "y_0")], ["('x_0', 'x_1', 'y_0')", "3 agents", "expected pairs"]),
        ([0, 1], ["edges=[0, 1]", "aren't pairs"]),
        (len, ["edges=<built-in function len>", "aren't pairs"]),
    ],
)
def test_what_is_no_pair_of_agents_is_named(edges, words):
    with pytest.raises(ConfigError) as refused:
        batch_of("my_env:make", [Board(edges=edges)])
    assert all(word in str(refused.value) for word in ["my_env:make", *words])


def test_exported_environments_take_their_edges_along():
    native = make("networked/wireless", height=2, width=3)
    env = to_pettingzoo(native)
    assert env.edges[0] == ("agent_0", "agent_1")
    assert batch_of("again", [env]).spec.edges.tolist() == native.spec.edges.tolist()
    assert to_pettingzoo(make("matrix/climbing")).edges is None


def test_contract_wants_the_same_edges_every_time():
    given = iter([SQUARE, SQUARE[:3]])
    with pytest.raises(testing.ContractError, match="other edges the second time"):
        testing.env_contract(lambda copies: batch_of("board", [Board(edges=edges) for edges in [next(given)] * copies]), 5)
    testing.env_contract(lambda copies: batch_of("board", [Board(edges=SQUARE) for _ in range(copies)]), 20)


RUN = (
    "env.name=rigs.games:board", "groups={x_0: all, x_1: all, y_0: all, y_1: all}", "paradigm=networked", "algorithm=a2c",
    "rollout.fragment=10", "budget.env_steps=40", "dtype=float64",
)  # fmt: skip


def override(edges):
    return "env.edges=[" + ", ".join(f"[{i}, {j}]" for i, j in edges) + "]"


def learned(run_dir, *overrides):
    lines = [line for line in inline.train(run_dir, *RUN, *overrides) if "throughput/env_steps_per_s" in line]
    assert [line["learner_steps"] for line in lines] == [1, 2]
    return [{name: x for name, x in line.items() if name.startswith("loss/")} for line in lines]


def test_two_updates_over_an_environments_edges_are_those_over_the_same_graph_by_name(tmp_path):
    own = learned(tmp_path / "own", "topology=environment", override(SQUARE))
    assert all(math.isfinite(x) for line in own for x in line.values())
    assert own == learned(tmp_path / "ring", "topology=ring")
    star = learned(tmp_path / "star", "topology=environment", override([(0, 1), (0, 2), (0, 3)]))
    assert star == learned(tmp_path / "named star", "topology=star")
    assert star != own  # critics are averaged with others


def test_critics_of_neighbors_learn_where_agents_come_and_go(tmp_path):
    lines = learned(tmp_path, "algorithm=scalable_ac", "topology.mix=none", "topology=environment", override(SQUARE))
    assert all(math.isfinite(x) for line in lines for x in line.values())


def test_a_graph_that_falls_apart_is_refused():
    config = compose([*RUN, override(SQUARE[:2])])
    spec = make_env(config, 1).spec
    with pytest.raises(ConfigError, match="topology=environment: the graph isn't connected"):
        neighbors_of(Topology(name="environment"), spec, spec.groups[0])
