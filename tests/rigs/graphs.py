"""Mixing weights for tests of exchanges, made without the package's own topologies."""

import numpy as np
import scipy.sparse as sp


def random_weights(agents, degree=4, seed=0, directed=False):
    """Metropolis weights of a random connected graph; of a digraph, column-stochastic ones with each agent's out-neighbors alike."""
    random = np.random.default_rng(seed)
    ring = (np.arange(agents), (np.arange(agents) + 1) % agents)
    extra = random.integers(0, agents, (2, agents * (degree - 2) // 2))
    rows, columns = np.r_[ring[0], extra[0]], np.r_[ring[1], extra[1]]
    keep = rows != columns
    reads = np.zeros((agents, agents), bool)
    reads[rows[keep], columns[keep]] = True
    if directed:
        weights = (reads | np.eye(agents, dtype=bool)).astype(float)
        return sp.csr_matrix(weights / weights.sum(0))
    reads |= reads.T
    degrees = reads.sum(1)
    weights = np.where(reads, 1 / (1 + np.maximum.outer(degrees, degrees)), 0.0)
    return sp.csr_matrix(weights + np.diag(1 - weights.sum(1)))
