"""Graphs and mixing weights, against closed forms and dense linear algebra."""

import networkx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_hpc import topology
from marl_hpc.config import ConfigError
from marl_hpc.testing import ContractError, topology_contract
from marl_hpc.topology import Graph, from_edges, second_largest_eigenvalue_modulus

GRAPHS = {
    "ring": lambda: topology.ring(7),
    "grid": lambda: topology.grid(3, 5),
    "torus": lambda: topology.torus(4, 5),
    "star": lambda: topology.star(9),
    "complete": lambda: topology.complete(6),
    "exponential": lambda: topology.exponential(12),
    "one_peer_exponential": lambda: topology.one_peer_exponential(8),
    "erdos_renyi": lambda: topology.erdos_renyi(60, 9, seed=3),
    "random_geometric": lambda: topology.random_geometric(80, 20, seed=1),
}
UNDIRECTED = [name for name in GRAPHS if "exponential" not in name]


@pytest.mark.parametrize("name", GRAPHS)
def test_topologies_keep_their_contract(name):
    assert name in topology.TOPOLOGIES
    topology_contract(GRAPHS[name])


def test_neighbors_are_those_of_the_definition():
    assert topology.ring(5).degrees.tolist() == [2] * 5
    assert topology.ring(2).edges.tolist() == [[0, 1], [1, 0]]
    assert topology.grid(2, 3).edges[:2].tolist() == [[0, 1], [0, 3]]
    assert topology.grid(3, 3).degrees.tolist() == [2, 3, 2, 3, 4, 3, 2, 3, 2]
    assert (topology.torus(3, 4).degrees == 4).all()
    assert topology.star(4).degrees.tolist() == [3, 1, 1, 1]
    assert len(topology.complete(5).edges) == 20
    assert topology.exponential(8).edges[:3].tolist() == [[0, 4], [0, 6], [0, 7]]
    assert [graph.edges[0].tolist() for graph in topology.one_peer_exponential(8)] == [[0, 7], [0, 6], [0, 4]]


def test_random_graphs_have_the_degree_asked_for_and_the_same_edges_for_a_seed():
    assert abs(topology.erdos_renyi(2000, 12, seed=1).degrees.mean() - 12) < 0.3
    geometric = topology.random_geometric(2000, 20, seed=1)
    assert 18 < geometric.degrees.mean() < 20  # fewer at the border
    assert not np.array_equal(geometric.edges, topology.random_geometric(2000, 20, seed=2).edges)
    random = np.random.default_rng(1).random((2000, 2))  # the radius is of so many agents on average
    near = ((random[:, None] - random[None]) ** 2).sum(-1) <= 20 / (np.pi * 2000)
    assert np.array_equal(geometric.adjacency.toarray().astype(bool), near & ~np.eye(2000, dtype=bool))


def test_every_pair_of_a_random_graph_is_as_likely_as_every_other():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        try:
            counts += topology.erdos_renyi(6, 3.0, seed).adjacency.toarray()
        except ValueError:
            continue  # disconnected ones are refused, and no pair more than another
    pairs = counts[np.triu_indices(6, 1)]
    assert np.ptp(pairs) < 6 * np.sqrt(pairs.mean())


def test_large_graphs_are_made_without_dense_matrices():
    assert topology.torus(400, 250).agents == 100_000
    assert len(topology.erdos_renyi(100_000, 16).edges) > 1_500_000
    weights = topology.metropolis_hastings(topology.random_geometric(100_000, 24))
    assert weights.nnz < 3_000_000


def test_disconnected_graphs_are_an_error_that_names_their_components():
    with pytest.raises(ValueError, match=r"isn't connected: it has 2 components \(3 agents: 0, 1, 2; 2 agents: 3, 4\)"):
        from_edges([[0, 1], [1, 2], [3, 4]]).check_connected()
    with pytest.raises(ValueError, match=r"isn't strongly connected: it has 3 components"):
        from_edges([[0, 1], [1, 2]], directed=True).check_connected()
    with pytest.raises(ValueError, match="152 components"):
        topology.random_geometric(2000, 4)
    with pytest.raises(ContractError, match="2 components"):
        topology_contract(lambda: from_edges([[0, 1], [2, 3]]))


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([[0, 1, 2]], r"shape \(1, 3\)"),
        ([[0.5, 1.0]], "float64"),
        ([[0, 1], [1, 9]], r"edge \(1, 9\) names an agent that isn't there; agents are 0 to 3"),
        ([[0, 1], [-1, 2]], r"edge \(-1, 2\)"),
        ([[0, 1], [2, 2]], r"edge \(2, 2\) joins an agent to itself"),
    ],
)
def test_wrong_edges_are_refused(edges, said):
    with pytest.raises(ValueError, match=said):
        from_edges(edges, 4)


def test_graphs_of_networkx_and_adjacency_matrices_are_the_same():
    digraph = networkx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("b", "b")])
    assert topology.from_networkx(digraph).directed
    assert topology.from_networkx(digraph).edges.tolist() == [[0, 2], [1, 0], [2, 1]]
    club = networkx.karate_club_graph()
    found = topology.from_networkx(club)
    assert not found.directed
    assert np.array_equal(found.adjacency.toarray(), networkx.to_numpy_array(club, weight=None))
    assert np.array_equal(
        topology.from_networkx(networkx.MultiGraph([(0, 1), (0, 1), (1, 2)])).edges, [[0, 1], [1, 0], [1, 2], [2, 1]]
    )
    matrix = np.array([[0, 1, 0], [1, 0, 2], [0, 2, 0]])
    assert not topology.from_adjacency(matrix).directed
    assert topology.from_adjacency(matrix).edges.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert topology.from_adjacency(sp.csr_matrix(np.triu(matrix))).directed


# by name


def test_topologies_are_made_by_name_for_the_agents_there_are():
    (made,) = topology.make("torus", 12)
    assert np.array_equal(made.edges, topology.torus(3, 4).edges)
    assert len(topology.make("one_peer_exponential", 16)) == 4
    (own,) = topology.make("marl_hpc.topology:ring", 5)
    assert own.agents == 5
    (drawn,) = topology.make("erdos_renyi", 50, degree=10, seed=4)
    assert np.array_equal(drawn.edges, topology.erdos_renyi(50, 10, 4).edges)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("rign", {}, "unknown topology 'rign'; did you mean 'ring'?"),
        ("ring", {"degree": 3}, "topology 'ring' has no option 'degree'; it takes none"),
        ("erdos_renyi", {"probability": 0.2}, "topology 'erdos_renyi' has no option 'probability'; it takes degree, seed"),
        ("random_geometric", {"degre": 5}, "has no option 'degre'; did you mean 'degree'? it takes degree, seed"),
        ("ring", {"n": 8}, "topology 'ring' has no option 'n'; it takes none"),  # there are as many agents as the environment has
        ("grid", {"rows": 2}, "topology 'grid' can't be made with {'rows': 2}: grid() missing"),
        ("erdos_renyi", {"degree": "much"}, "can't be made with {'n': 8, 'degree': 'much'}: unsupported"),
        ("nowhere:ring", {}, "can't be imported"),
        ("torus", {"rows": 2, "columns": 3}, "has 6 agents, but the environment has 8"),
    ],
)
def test_unknown_names_and_options_are_refused(name, options, said):
    with pytest.raises(ConfigError) as raised:
        topology.make(name, 8, **options)
    assert said in str(raised.value)


@pytest.mark.parametrize("agents", [2, 7])
def test_a_prime_number_of_agents_is_no_torus(agents):
    with pytest.raises(ValueError, match=f"both 2 or more .*; got 1 × {agents}: take a ring, or another number of agents"):
        topology.make("torus", agents)
    with pytest.raises(ValueError, match="a grid is rows × columns, both 1 or more; got -1 × -7"):
        topology.grid(-1, -7)
    assert topology.torus(2, 3).degrees.tolist() == [3] * 6


# weights


@pytest.mark.parametrize("name", UNDIRECTED)
@pytest.mark.parametrize("weigh", ["metropolis_hastings", "max_degree", "laplacian"])
def test_weights_are_symmetric_sum_to_exactly_one_in_float32_and_agree_with_the_definition(name, weigh):
    graph = GRAPHS[name]()
    weights = getattr(topology, weigh)(graph)
    assert weights.format == "csr"
    assert weights.dtype == np.float64
    assert weights.has_sorted_indices
    assert (weights != weights.T).nnz == 0
    rounded = weights.astype(np.float32).astype(np.float64)
    assert (rounded != weights).nnz == 0
    assert (np.asarray(rounded.sum(1)) == 1).all()
    adjacency, degrees = graph.adjacency.toarray().astype(float), graph.degrees
    if weigh == "metropolis_hastings":
        exact = adjacency / (1 + np.maximum.outer(degrees, degrees))
    elif weigh == "max_degree":
        exact = adjacency / (1 + degrees.max())
    else:
        values = np.linalg.eigvalsh(np.diag(degrees) - adjacency)
        exact = adjacency * 2 / (values[1] + values[-1])
    exact += np.diag(1 - exact.sum(1))
    np.testing.assert_allclose(weights.toarray(), exact, atol=3e-8 * (1 + degrees.max()))  # the diagonal collects what others lost
    assert second_largest_eigenvalue_modulus(weights) < 1


@pytest.mark.parametrize("name", ["ring", "torus", "complete", "exponential", "one_peer_exponential"])
def test_uniform_weights_of_regular_graphs_sum_to_exactly_one_in_float32_by_row_and_by_column(name):
    made = GRAPHS[name]()
    for graph in made if isinstance(made, list) else [made]:
        weights = topology.uniform(graph)
        rounded = weights.astype(np.float32).astype(np.float64)
        assert (rounded != weights).nnz == 0
        assert (np.asarray(rounded.sum(1)) == 1).all()
        assert (np.asarray(rounded.sum(0)) == 1).all()
        exact = (graph.adjacency.toarray() + np.eye(graph.agents)) / (1 + graph.degrees)[:, None]
        np.testing.assert_allclose(weights.toarray(), exact, atol=3e-8 * (1 + graph.degrees.max()))


def test_push_sum_weights_are_column_stochastic_and_lazy_ones_have_no_negative_eigenvalue():
    digraph = from_edges([[0, 1], [1, 2], [2, 0], [0, 2], [3, 0], [1, 3]], directed=True)
    weights = topology.push_sum(digraph)
    assert (np.asarray(weights.astype(np.float32).astype(float).sum(0)) == 1).all()
    assert weights.toarray()[:, 0] == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=1e-7)  # two read agent 0
    lazy = topology.lazy(topology.max_degree(topology.ring(6)))
    assert np.linalg.eigvalsh(lazy.toarray()).min() > 0
    assert (np.asarray(lazy.astype(np.float32).astype(float).sum(1)) == 1).all()


@pytest.mark.parametrize("weigh", [topology.metropolis_hastings, topology.max_degree, topology.laplacian])
def test_weights_of_undirected_graphs_refuse_directed_ones(weigh):
    with pytest.raises(ValueError, match="push_sum"):
        weigh(topology.exponential(8))


def test_steps_at_which_laplacian_mixing_diverges_are_refused():
    largest = np.linalg.eigvalsh(2 * np.eye(8) - topology.ring(8).adjacency.toarray())[-1]
    assert topology.laplacian(topology.ring(8), 1.9 / largest)[0, 1] == pytest.approx(1.9 / largest, rel=1e-6)
    for epsilon in (0.6, 0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"epsilon={epsilon} must lie over 0 and under 0.5"):
            topology.laplacian(topology.ring(8), epsilon)


@pytest.mark.parametrize(
    ("weights", "modulus"),
    [
        (lambda: topology.metropolis_hastings(topology.ring(64)), 1 / 3 + 2 / 3 * np.cos(2 * np.pi / 64)),
        (lambda: topology.metropolis_hastings(topology.ring(1000)), 1 / 3 + 2 / 3 * np.cos(2 * np.pi / 1000)),
        (lambda: topology.metropolis_hastings(topology.torus(16, 16)), 0.969552),
        (lambda: topology.metropolis_hastings(topology.torus(32, 32)), 0.992314),
        (lambda: topology.uniform(topology.exponential(256)), 7 / 9),
        (lambda: topology.uniform(topology.exponential(1024)), 9 / 11),
        (lambda: topology.metropolis_hastings(topology.complete(5)), 0.0),
    ],
)
def test_second_largest_eigenvalue_modulus_is_the_closed_form(weights, modulus):
    assert second_largest_eigenvalue_modulus(weights()) == pytest.approx(modulus, abs=1e-6)


@pytest.mark.parametrize(
    ("graph", "smallest", "largest"),
    [
        (lambda: topology.ring(1001), 2 - 2 * np.cos(2 * np.pi / 1001), 2 + 2 * np.cos(np.pi / 1001)),
        (lambda: topology.torus(20, 45), 2 - 2 * np.cos(2 * np.pi / 45), 6 + 2 * np.cos(np.pi / 45)),
        (lambda: topology.torus(250, 400), 2 - 2 * np.cos(2 * np.pi / 400), 8.0),
        (lambda: topology.complete(500), 500.0, 500.0),
        (lambda: topology.star(500), 1.0, 500.0),
    ],
)
def test_the_fastest_laplacian_step_is_the_closed_form(graph, smallest, largest):
    graph = graph()
    weights = topology.laplacian(graph)
    i, j = graph.edges[0]
    assert weights[i, j] == pytest.approx(2 / (smallest + largest), abs=3e-8)  # what float32 can't tell
    modulus = (largest - smallest) / (largest + smallest)
    assert second_largest_eigenvalue_modulus(weights) == pytest.approx(modulus, abs=3e-8 * (1 + graph.degrees.max()))


@pytest.mark.parametrize("graph", [topology.ring(401), topology.ring(100_000), topology.grid(1, 9), topology.grid(1, 100_000)])
def test_the_fastest_laplacian_step_of_rings_and_lines_is_their_closed_form(graph):
    n, around = graph.agents, graph.degrees.min() == 2
    angles = 2 * np.pi * np.arange(n) / n if around else np.pi * np.arange(n) / n
    eigenvalues = np.sort(2 - 2 * np.cos(angles))
    assert topology.laplacian(graph)[0, 1] == pytest.approx(2 / (eigenvalues[1] + eigenvalues[-1]), abs=3e-8)


@pytest.mark.parametrize("rows", [4, 30])  # eigenvalues by the dense way and by the sparse one
def test_laplacian_mixing_inside_and_between_places_settles(rows):
    graph = topology.torus(rows, 30)
    inside, between = topology.inside_and_between(graph, np.arange(graph.agents) // (graph.agents // 2), topology.laplacian)
    for weights, means in ((inside, 2), (between, graph.agents - 60)):
        found = np.sort(np.abs(np.linalg.eigvalsh(weights.toarray())))[::-1]
        assert found[:means] == pytest.approx(1.0)
        assert found[means] < 0.999  # each place's own disagreement dies out, none swings forever
    nothing_between = topology.inside_and_between(graph, np.zeros(graph.agents), topology.laplacian)[1]
    assert (nothing_between.diagonal() == 1).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_sparse_and_dense_ways_find_the_same_modulus(seed):
    weights = topology.metropolis_hastings(topology.random_geometric(450, 30, seed=seed % 50))
    dense = np.sort(np.abs(np.linalg.eigvalsh(weights.toarray())))[-2]
    assert second_largest_eigenvalue_modulus(weights) == pytest.approx(dense, abs=1e-8)


@pytest.mark.parametrize("n", [2, 16, 128])
def test_one_peer_exponential_rounds_find_the_exact_mean(n):
    x = np.random.default_rng(0).standard_normal((n, 3))
    mixed = x
    for graph in topology.one_peer_exponential(n):
        mixed = topology.uniform(graph) @ mixed
    np.testing.assert_allclose(mixed, np.broadcast_to(x.mean(0), mixed.shape), atol=1e-14)


def test_contract_says_what_is_wrong_with_a_topology():
    draws = iter(range(10))
    one_way = sp.csr_matrix(np.array([[0, 1], [0, 0]]))
    for wrong, said in (
        (lambda: topology.erdos_renyi(50, 12, next(draws)), "other edges"),
        (lambda: Graph(one_way), "one way only"),
        (lambda: Graph(sp.identity(3, format="csr")), "its own neighbor"),
        (lambda: np.ones((3, 3)), "returns a marl_hpc.topology.Graph"),
        (lambda: [topology.ring(4), topology.ring(5)], "5 agents, but round 0 has 4"),
    ):
        with pytest.raises(ContractError, match=said):
            topology_contract(wrong)


def nothing_of_use(kind):
    return {"array": np.ones((3, 3)), "none": [], "pair": (topology.ring(3), topology.complete(3))}[kind]


@pytest.mark.parametrize(("kind", "said"), [("array", "gave ndarray"), ("none", r"gave list \[\]")])
def test_functions_that_give_no_graph_are_refused(kind, said, monkeypatch):
    monkeypatch.setitem(topology.TOPOLOGIES, "mine", lambda: nothing_of_use(kind))
    with pytest.raises(ConfigError, match=said):
        topology.make("mine", 3)


def test_a_tuple_of_graphs_is_used_in_turn_and_a_module_is_no_function(monkeypatch):
    monkeypatch.setitem(topology.TOPOLOGIES, "mine", lambda: nothing_of_use("pair"))
    assert [graph.degrees.sum() for graph in topology.make("mine", 3)] == [6, 6]
    with pytest.raises(ConfigError, match="is no function but a module"):
        topology.make("os:path", 3)


def test_loops_and_empty_graphs_are_refused_at_any_size_and_a_matrix_stays_as_it_is():
    for n in (2, 3):
        with pytest.raises(ValueError, match=r"edge \(0, 0\) joins an agent to itself"):
            topology.from_edges([(0, 0)], n)
        with pytest.raises(ValueError, match="joins an agent to itself"):
            topology.from_adjacency(np.ones((n, n)))
    with pytest.raises(ValueError, match="1 agent or more"):
        topology.from_edges([])
    matrix = sp.csr_matrix((np.array([1.0, 0.0, 1.0]), ([0, 0, 1], [1, 2, 0])), shape=(3, 3))
    topology.from_adjacency(matrix)
    assert matrix.nnz == 3
    with pytest.raises(ValueError, match=r"degree=-1 .* must be over 0"):
        topology.random_geometric(100, -1)


def test_the_modulus_of_a_directed_ring_is_the_closed_form():
    def around(n):
        return topology.uniform(topology.from_edges([(i, (i + 1) % n) for i in range(n)], n, directed=True))

    assert second_largest_eigenvalue_modulus(around(450)) == pytest.approx(np.cos(np.pi / 450), abs=1e-9)
