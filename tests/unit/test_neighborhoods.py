"""From a configuration's topology to weights and who has which agents; what can't be, or would be ignored, is refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from marl_hpc import paradigms, topology
from marl_hpc.building import make_env
from marl_hpc.comm.store import Store
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError, Topology
from marl_hpc.neighborhoods import Neighborhoods, check_graph
from marl_hpc.progress import Progress
from marl_hpc.types import ActionSpace, EnvSpec, GroupSpec


def spec_of(agents):
    names = tuple(f"agent_{i}" for i in range(agents))
    group = GroupSpec(name="all", agents=names, observation_shape=(4,), action_space=ActionSpace(kind="discrete", n=3))
    return EnvSpec(name="e", version="1", groups=(group,), state_shape=(1,), state_from="environment")


def around(agents, ranks=1, **section):
    spec = spec_of(agents)
    return Neighborhoods(Topology(**section), spec, spec.groups[0], ranks)


def uneven(n):
    """Directed: all read the one before them, agent 0 is read by everybody."""
    agents = np.arange(n)
    pairs = np.concatenate([np.stack([agents, (agents - 1) % n], 1), np.stack([agents[1:], np.zeros(n - 1, int)], 1)])
    return topology.from_edges(pairs, n, directed=True)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"name": "star", "weights": "uniform"},
            [
                "topology.weights=uniform for topology=star: agents would agree on a mean that counts some more than others",
                "sum to 0.625 to 3.62 instead of 1 (agents read 1 to 7 others)", "take topology.weights=metropolis_hastings",
            ],
        ),
        (
            {"name": "grid", "options": {"rows": 2, "columns": 4}, "weights": "uniform"},
            ["topology=grid", "(agents read 2 to 3 others)", "metropolis_hastings"],
        ),
        (
            {"name": f"{__name__}:uneven", "weights": "uniform"},
            ["such as topology=exponential", "in the library (marl_hpc.comm.neighbors.push_sum) and not in runs"],
        ),
        ({"name": "torus", "options": {"rows": 1, "columns": 8}}, ["topology=torus: a torus is rows × columns", "got 1 × 8"]),
    ],
)  # fmt: skip
def test_weights_that_agree_on_a_biased_mean_are_refused_before_ranks_start(section, words, monkeypatch):
    monkeypatch.setitem(topology.TOPOLOGIES, f"{__name__}:uneven", uneven)
    spec = spec_of(8)
    with pytest.raises(ConfigError) as raised:
        check_graph(Topology(**section), spec, spec.groups[0], 2)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("name", ["ring", "torus", "complete", "exponential", "one_peer_exponential"])
@pytest.mark.parametrize("agents", [8, 12])
def test_uniform_weights_are_taken_where_agents_have_equally_many_neighbors(name, agents):
    for weights in around(agents, name=name, weights="uniform").weights:
        np.testing.assert_allclose(weights.sum(0), 1, atol=1e-7)


def test_where_nothing_is_averaged_directed_graphs_need_no_weights():
    """Of them learners hear those within some hops, by algorithms whose critics see neighbors."""
    neighborhoods = around(8, 2, name="exponential", mix="none")
    assert sorted(np.concatenate([neighborhoods.agents(rank) for rank in (0, 1)])) == list(range(8))
    assert set(neighborhoods.messages(0, None, 60.0).table.flatten().tolist()) <= {*range(8), -1}


def test_a_graph_is_described_on_the_console_once_and_again_only_when_it_has_changed(tmp_path, capsys):
    store = Store()
    progress = Progress(store, "layout", tmp_path)
    for transport in ("shared memory", "shared memory", "point-to-point"):  # another generation, then one without shared memory
        store.set("graph/all", {"text": f"all: transport: {transport}"})
        progress.show()
    progress.close()
    assert capsys.readouterr().err.splitlines()[2:] == ["all: transport: shared memory", "all: transport: point-to-point"]


def test_graphs_are_described_by_what_crosses_ranks_and_by_their_transport_once_it_is_chosen():
    neighborhoods = around(12, 3, name="ring")
    assert neighborhoods.describe() == (
        "12 agents on ring (24 directed edges); 3 ranks with 4 agents each (keep): 25.0 % of edges cross ranks, 6 rows do (50.0 % of all); "
        "kernel: torch"
    )
    assert (neighborhoods.record()["edges_cut"], neighborhoods.record()["halo_rows"]) == (6, 6)
    neighborhoods.transport = "shared memory"
    assert "; transport: shared memory, kernel: torch" in neighborhoods.describe()


RUN = ["paradigm=networked", "topology=ring"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("topology.rounds=2", ["topology.rounds=2 is about topology.mix=critic or all; got topology.mix=none: leave it out"]),
        ("topology.weights=laplacian", ["topology.weights=laplacian is about topology.mix=critic or all; got topology.mix=none"]),
        (
            "topology.kernel=compiled",
            ["topology.kernel=compiled", "or topology.reward_discount; got", "and topology.reward_discount=0"],
        ),
        (
            "topology.transport=point_to_point",
            ["topology.transport=point_to_point", "and topology.reward_discount=0: leave it out"],
        ),
    ],
)
def test_options_of_averaging_are_refused_where_nothing_is_averaged(override, words):
    compose([*RUN, override])
    with pytest.raises(ConfigError) as raised:
        compose([*RUN, "topology.mix=none", override])
    assert [word for word in words if word not in str(raised.value)] == []


def test_rewards_of_neighbors_are_summed_by_the_kernel_and_transport_asked_for_where_nothing_is_averaged():
    compose(
        [*RUN, "topology.mix=none", "topology.reward_discount=0.5", "topology.kernel=compiled", "topology.transport=all_to_all"]
    )
    with pytest.raises(ConfigError, match=r"topology\.rounds=2"):
        compose([*RUN, "topology.mix=none", "topology.reward_discount=0.5", "topology.rounds=2"])


@pytest.mark.parametrize("name", ["exponential", "one_peer_exponential"])
def test_weights_that_a_topology_brings_along_are_nobodys_choice(name):
    assert compose(["paradigm=networked", f"topology={name}", "topology.mix=none"]).topology.weights == "uniform"
    with pytest.raises(ConfigError, match=r"topology\.weights=max_degree"):
        compose(["paradigm=networked", f"topology={name}", "topology.mix=none", "topology.weights=max_degree"])


def two_kinds():
    """A line of four agents, the first two and the last two of one group each."""
    space = ActionSpace(kind="discrete", n=3)
    groups = tuple(
        GroupSpec(name=name, agents=agents, observation_shape=(size,), action_space=space)
        for name, agents, size in (("x", ("x0", "x1"), 4), ("y", ("y0", "y1"), 5))
    )
    edges = ((0, 1), (1, 2), (2, 3))
    return EnvSpec(name="e", version="1", groups=groups, state_shape=(1,), state_from="environment", edges=edges)


def test_edges_between_groups_are_told_of_and_what_falls_apart_without_them_is_refused_by_name():
    spec = two_kinds()
    said = Neighborhoods(Topology(), spec, spec.groups[0], 1).describe()
    assert said.startswith("2 agents on environment (2 directed edges; to agents of other groups, not used: 1)")
    apart = replace(spec, edges=((0, 2), (1, 2), (2, 3)))
    with pytest.raises(ConfigError, match=r"2 of its edges lead to agents of other groups.*2 of 'x' fall into 2 parts \(x0; x1\)"):
        Neighborhoods(Topology(), apart, spec.groups[0], 1)


def test_a_graph_that_nobody_uses_is_refused():
    used = ["env=networked/cacc", "paradigm=networked", "topology.mix=none"]
    spec = make_env(compose(used), 1).spec
    paradigms.plan(compose([*used, "topology=star", "topology.reward_discount=0.5"]), spec)
    with pytest.raises(ConfigError, match=r"topology=star with topology.mix=none, .* leave topology out"):
        paradigms.plan(compose([*used, "topology=star"]), spec)
    with pytest.raises(ConfigError, match=r"algorithm.agent_id=false with paradigm=networked"):
        paradigms.plan(compose([*used, "algorithm.agent_id=false"]), spec)
    with pytest.raises(ConfigError, match=r"algorithm=networked_ac tells neighbors nothing but critics' parameters"):
        paradigms.plan(compose(["env=networked/mdp", *used[1:2], "algorithm=networked_ac", "algorithm.messages=dial"]), spec)
    with pytest.raises(ConfigError, match=r"algorithms that do: ppo, a2c, scalable_ac, networked_ac$"):
        paradigms.plan(compose([*used[:2], "algorithm=qmix"]), spec)
