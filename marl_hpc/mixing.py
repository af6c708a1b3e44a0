"""Weights by which agents of a graph mix what they hold with what their neighbors hold.

Each function returns a SciPy CSR matrix W [n, n] in float64, columns sorted: row i weighs what agent i reads, itself among it. Rows sum to
one, and for undirected graphs W is symmetric, so columns do, too, and the mean over agents is kept. Off-diagonal weights are multiples of
a power of two so small that they differ from the exact ones by less than float32 can tell, but large enough that float32 holds each
weight exactly, the diagonal included: rows sum to exactly one in float32 as well. What then moves the mean is the rounding of each sum:
by some 1e-7 to 1e-6 in a thousand rounds of standard normal rows (most on rings), in float64 by 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from marl_hpc.topology import Graph

DENSE, DENSE_DIRECTED = 400, 1500  # agents up to which eigenvalues are computed densely, of symmetric weights and of others
PRECISION = 1e-10  # of eigenvalues beyond that, relative to a bound on the largest


def metropolis_hastings(graph: Graph) -> Any:
    """w_ij = 1 / (1 + max(d_i, d_j)), d an agent's degree. Source: Xiao, Boyd and Kim 2007, eq. 5."""
    rows, columns, degrees = _undirected(graph, "metropolis_hastings")
    return _of_graph(graph, 1.0 / (1.0 + np.maximum(degrees[rows], degrees[columns])))


def max_degree(graph: Graph) -> Any:
    """w_ij = 1 / (1 + the largest degree). Source: Xiao and Boyd 2004, sec. 4.1."""
    rows, _, degrees = _undirected(graph, "max_degree")
    return _of_graph(graph, np.full(len(rows), 1.0 / (1.0 + degrees.max())))


def laplacian(graph: Graph, epsilon: float | None = None) -> Any:
    """W = I - epsilon · L, L the graph's Laplacian. Converges for 0 < epsilon < 2 / its largest eigenvalue, for certain up to 1 / the largest
    degree; default: 2 / (its largest + its smallest positive eigenvalue), the fastest. Source: Xiao and Boyd 2004, eq. 16."""
    rows, *_ = _undirected(graph, "laplacian")
    smallest, largest = _laplacian_ends(graph)
    limit = 2.0 / largest
    if epsilon is None:
        epsilon = 2.0 / (smallest + largest)
    elif not 0 < epsilon < limit:
        raise ValueError(f"epsilon={epsilon} must lie over 0 and under {limit:.6g}, or mixing diverges")
    return _of_graph(graph, np.full(len(rows), epsilon))


def uniform(graph: Graph) -> Any:
    """Each agent weighs all that it reads, and itself, alike. Keeps the mean only where all agents read, and are read by, as many."""
    return _of_graph(graph, np.repeat(1.0 / (1.0 + graph.degrees), graph.degrees))


def push_sum(graph: Graph) -> Any:
    """Column-stochastic: each agent divides what it holds alike among those who read it, and itself. For directed graphs, with
    `marl_hpc.comm.neighbors.push_sum`. Source: Kempe et al. 2003."""
    read = np.bincount(graph.adjacency.indices, minlength=graph.agents)  # by how many
    return _of_graph(graph, (1.0 / (1.0 + read))[graph.adjacency.indices], by_column=True)


def lazy(weights: Any) -> Any:
    """(I + W) / 2: no eigenvalue is negative, at about half the speed."""
    parts = weights.tocoo()
    off = parts.row != parts.col
    by_column = not np.allclose(np.asarray(weights.sum(1)), 1.0)
    return _completed(parts.row[off], parts.col[off], parts.data[off] / 2, weights.shape[0], by_column)


def inside_and_between(graph: Graph, places: Any, weights: Callable[[Graph], Any] | None = None) -> list[Any]:
    """[W over the edges within a place, W over those across]: to mix in turn, inside nodes more often than between them, say.

    `places` [n]: the node, or rack, of each agent; `weights`: of a graph, default `metropolis_hastings`. Each keeps the mean if weights do;
    used in turn they reach everybody if the whole graph does. See `marl_hpc.comm.neighbors.hierarchical`.

    >>> from marl_hpc.topology import ring
    >>> inside, between = inside_and_between(ring(4), [0, 0, 1, 1])
    >>> inside.toarray()[0].tolist(), between.toarray()[0].tolist()
    ([0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5])
    """
    from scipy.sparse import coo_matrix

    places = np.asarray(places)
    if places.shape != (graph.agents,):
        raise ValueError(f"places must name one of each of {graph.agents} agents; got shape {places.shape}")
    i, j = graph.edges.T
    near = places[i] == places[j]
    found = []
    for kept in (near, ~near):
        adjacency = coo_matrix((np.ones(kept.sum()), (i[kept], j[kept])), shape=graph.adjacency.shape).tocsr()
        adjacency.sort_indices()
        found.append((weights or metropolis_hastings)(replace(graph, adjacency=adjacency)))
    return found


def second_largest_eigenvalue_modulus(weights: Any) -> float:
    """How much of the disagreement one round leaves, in the long run: the largest |eigenvalue| but for the mean's own 1."""
    n = weights.shape[0]
    symmetric = abs(weights - weights.T).max() < 1e-12
    if n <= (DENSE if symmetric else DENSE_DIRECTED):
        moduli = np.sort(np.abs(np.linalg.eigvals(weights.toarray())))
        return float(moduli[-2]) if n > 1 else 0.0
    if symmetric:
        return max(map(abs, _ends(weights)))
    import scipy.sparse.linalg

    linalg: Any = scipy.sparse.linalg  # whose types aren't known

    # the mean's eigenvalue is moved to 0, so that what is left at the ends is what is asked for
    ones = np.full(n, 1.0 / np.sqrt(n))
    try:
        left = np.real(linalg.eigs(weights.T.astype(float), k=1, which="LM", v0=ones)[1][:, 0])
    except linalg.ArpackNoConvergence as error:
        raise _crowded(n) from error
    left /= left @ ones
    operator = linalg.LinearOperator((n, n), matvec=lambda x: weights @ x - ones * (left @ x.ravel()), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    try:
        found = linalg.eigs(operator, k=1, which="LM", v0=start, return_eigenvectors=False, maxiter=1000, ncv=60, tol=1e-10)
    except linalg.ArpackNoConvergence as error:
        raise _crowded(n) from error
    return float(np.abs(found).max())


def _crowded(n: int) -> RuntimeError:
    return RuntimeError(
        f"the second-largest eigenvalue modulus of these directed weights of {n:,} agents isn't found: too many are about as large, as on a "
        f"directed ring, where mixing takes about n² rounds; up to {DENSE_DIRECTED:,} agents all eigenvalues are computed"
    )


def spectral_gap(weights: Any) -> float:
    """1 - the second-largest eigenvalue modulus."""
    return 1.0 - second_largest_eigenvalue_modulus(weights)


def _undirected(graph: Graph, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i [E], j [E], degrees [n])."""
    if graph.directed:
        raise ValueError(
            f"{name} weights are for undirected graphs; for a directed one take push_sum, or uniform where degrees are alike"
        )
    return np.repeat(np.arange(graph.agents), graph.degrees), graph.adjacency.indices, graph.degrees


def _of_graph(graph: Graph, off_diagonal: np.ndarray, by_column: bool = False) -> Any:
    """W of its weights off the diagonal [E], in the order of edges."""
    rows = np.repeat(np.arange(graph.agents), graph.degrees)
    return _completed(rows, graph.adjacency.indices, off_diagonal, graph.agents, by_column)


def _completed(rows: np.ndarray, columns: np.ndarray, off_diagonal: np.ndarray, n: int, by_column: bool) -> Any:
    """W of its weights off the diagonal, at (rows, columns): rounded to a grid that float32 holds, the diagonal last."""
    from scipy.sparse import coo_matrix

    along = columns if by_column else rows
    sums = np.bincount(along, off_diagonal, minlength=n)
    largest = max(float(off_diagonal.max(initial=0.0)), float(np.abs(1.0 - sums).max()))
    step = 2.0 ** (np.ceil(np.log2(largest)) - 24)
    off_diagonal = np.round(off_diagonal / step) * step
    diagonal = 1.0 - np.bincount(along, off_diagonal, minlength=n)  # exact: sums of multiples of the step
    everybody = np.arange(n)
    weights = coo_matrix((np.r_[off_diagonal, diagonal], (np.r_[rows, everybody], np.r_[columns, everybody])), shape=(n, n)).tocsr()
    weights.sort_indices()
    return weights


def _laplacian_ends(graph: Graph) -> tuple[float, float]:
    """The smallest positive and the largest eigenvalue of a graph's Laplacian, of rings and lines by the closed form: those take longest."""
    import scipy.sparse
    from scipy.sparse.csgraph import connected_components

    n, degrees = graph.agents, graph.degrees
    if not degrees.any():
        return 1.0, 1.0  # any step does: nobody has a neighbor
    components, component = connected_components(graph.adjacency, directed=False)
    if components == 1 and n > 2 and degrees.max() == 2:
        if degrees.min() == 2:
            return 2 - 2 * math.cos(2 * math.pi / n), 2 - 2 * math.cos(2 * math.pi * (n // 2) / n)
        return 2 - 2 * math.cos(math.pi / n), 2 + 2 * math.cos(math.pi / n)
    matrix = (scipy.sparse.diags(degrees.astype(float)) - graph.adjacency.astype(float)).tocsr()
    if n <= DENSE:
        found = np.linalg.eigvalsh(matrix.toarray())
        return float(found[components]), float(found[-1])
    return _ends(matrix, component)


def _ends(matrix: Any, component: Any = 0) -> tuple[float, float]:
    """The smallest and the largest eigenvalue, but for those of the components' means, of a symmetric matrix whose rows all have one sum.

    `component` [n]: of each agent.

    Lanczos' recursion, never started over: on meshes, whose ends are crowded, a basis of fixed size needs far more steps. Without a basis
    to keep orthogonal it finds eigenvalues several times, but none at the ends that isn't there. Source: Golub and Van Loan, sec. 10.3.
    """
    from scipy.linalg import eigh_tridiagonal

    n = matrix.shape[0]
    bound = float(abs(matrix).sum(1).max())
    component = np.broadcast_to(component, n)
    members = np.bincount(component)
    x, before, beta = np.random.default_rng(0).standard_normal(n), np.zeros(n), 0.0
    x -= (np.bincount(component, x) / members)[component]
    x /= np.linalg.norm(x)
    diagonal, beside, look = [], [], 50
    while len(diagonal) < 20 * n:
        y = matrix @ x - beta * before
        diagonal.append(float(x @ y))
        y -= diagonal[-1] * x
        y -= (np.bincount(component, y) / members)[component]  # or rounding would bring the means back
        beta = float(np.linalg.norm(y))
        last = len(diagonal) - 1
        if beta <= PRECISION * bound or last + 1 >= look:
            pairs = [eigh_tridiagonal(diagonal, beside, select="i", select_range=(k, k)) for k in (0, last)]
            # by so much an eigenvalue is off at most
            if beta * max(abs(float(vector[-1, 0])) for _, vector in pairs) <= PRECISION * bound:
                return float(pairs[0][0][0]), float(pairs[1][0][0])
            look += look // 4
        beside.append(beta)
        x, before = y / beta, x
    raise RuntimeError(f"the eigenvalues of a matrix of {n} agents aren't found in {20 * n} steps")
