"""Which rows cross ranks when agents on a graph mix what they hold with their neighbors': a plan, made once.

Each rank holds some rows of a matrix X [N agents, …] and wants its rows of W·X. Its buffer is [own rows | halo]: first own rows whose
neighbors are its own (the interior), then the others, ordered by who needs them, then other ranks' rows that these need, each once,
whatever the number of edges. Every rank derives the same order of everybody's rows from the same weights, so nothing is negotiated.

N agents in all, n of this rank, h rows of its halo. Index computing only: nothing is sent here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Traffic(NamedTuple):
    """What one rank sends and receives in one exchange."""

    ranks: int  # that it sends to
    rows_sent: int
    rows_received: int

    def bytes_sent(self, row_bytes: int) -> int:
        return self.rows_sent * row_bytes


class Layout(NamedTuple):
    """Where a buffer has agents' rows."""

    name: str  # of its own among the layouts that a plan is used with
    places: np.ndarray  # [N]; -1: not there
    rows: int  # in all


class Crossing(NamedTuple):
    """Rows that ranks need of each other."""

    needs: np.ndarray  # [N]: whether an agent reads rows of other ranks
    readers: np.ndarray  # [C]: this rank reads …
    read: np.ndarray  # [C]: … the row of that agent, ordered by both

    @classmethod
    def of(cls, weights: Any, owners: np.ndarray) -> Crossing:
        total = len(owners)
        reading = np.repeat(np.arange(total), np.diff(weights.indptr))
        crossing = owners[reading] != owners[weights.indices]
        needs = np.zeros(total, bool)
        needs[reading[crossing]] = True
        pairs = np.unique(owners[reading[crossing]].astype(np.int64) * total + weights.indices[crossing])
        return cls(needs, pairs // total, pairs % total)

    def order(self, owners: np.ndarray) -> np.ndarray:
        """All agents, rank by rank: first those that need nobody else's row, the others by who needs theirs."""
        total = len(owners)
        first, last = np.full(total, -1), np.full(total, -1)
        first[self.read[::-1]], last[self.read] = self.readers[::-1], self.readers
        return np.lexsort((np.arange(total), last, first, self.needs, owners))


class ExchangePlan:
    def __init__(self, weights: Any, owners: Any, rank: int, *, order: np.ndarray | None = None) -> None:
        """`weights`: SciPy CSR [N, N], row i says how agent i weighs the others' rows; `owners` [N]: the rank that holds each agent's
        row; `order` [N]: all agents, rank by rank, as their rows are to lie (see `in_turn`). Raises ValueError where these don't fit."""
        weights, owners = checked(weights, owners, rank)
        self.rank, self.owners = rank, owners
        total = weights.shape[0]
        crossing = Crossing.of(weights, owners)
        needs, readers, read = crossing
        order = crossing.order(owners) if order is None else np.asarray(order)
        if not np.array_equal(np.sort(order), np.arange(total)) or (np.diff(owners[order]) < 0).any():
            raise ValueError("order must name each agent once, those of rank 0 first, then those of rank 1, …")
        place = np.empty(total, np.int64)  # in the buffer of its rank
        starts = np.searchsorted(owners[order], np.arange(owners.max() + 2))
        place[order] = np.arange(total) - starts[owners[order]]

        self.place, self.counts = place, np.diff(starts)  # of all agents, and how many each rank has
        self.digest = digest(weights, owners, place)  # the same on all ranks, or they don't mix the same
        self.agents = order[owners[order] == rank]
        self.interior = int(np.argmax(np.r_[needs[self.agents], True]))  # so many rows, the first ones, need nobody else's
        own = owners[read] == rank
        self.sends = {int(q): torch.from_numpy(np.sort(place[read[own & (readers == q)]])) for q in np.unique(readers[own])}
        wanted = read[readers == rank]
        self.halo = wanted[np.lexsort((place[wanted], owners[wanted]))]
        self.receives: dict[int, slice] = {}
        bounds = np.searchsorted(owners[self.halo], [np.unique(owners[self.halo]), np.unique(owners[self.halo]) + 1])
        for q, start, stop in zip(np.unique(owners[self.halo]), *bounds, strict=True):
            self.receives[int(q)] = slice(len(self.agents) + int(start), len(self.agents) + int(stop))
        self.weights = weights[
            self.agents
        ]  # [n, N]; summed in the order of agents whatever their ranks, so all layouts agree in bits
        self._matrices: dict[Any, Tensor] = {}
        self.mixings: dict[Any, list[Any]] = {}  # buffers that have been made for it, see `neighbors`
        self.chosen: dict[str, Any] = {}  # its transport, by the type of device

    @classmethod
    def in_turn(cls, weights: Sequence[Any], owners: Any, rank: int) -> list[ExchangePlan]:
        """Plans for several matrices that mix the same rows, which lie in one order for all of them: graphs that change from round to
        round, or mixing inside nodes and then between them.

        >>> from marl_hpc.topology import one_peer_exponential, uniform
        >>> plans = ExchangePlan.in_turn([uniform(graph) for graph in one_peer_exponential(8)], [0] * 4 + [1] * 4, rank=1)
        >>> [(plan.agents.tolist(), plan.halo.tolist()) for plan in plans]
        [([4, 5, 6, 7], [3]), ([4, 5, 6, 7], [2, 3]), ([4, 5, 6, 7], [0, 1, 2, 3])]
        """
        if hasattr(weights, "shape"):
            raise ValueError(f"weights are a list of matrices; got one {type(weights).__name__}: ExchangePlan(…) is for one")
        if not weights:
            raise ValueError("no weights are given; a plan needs one matrix or more")
        pairs = [checked(matrix, owners, rank) for matrix in weights]
        anybody = sum((abs(matrix) for matrix, _ in pairs[1:]), abs(pairs[0][0]))  # who reads whom by any of them
        anybody, owners = checked(anybody, owners, rank)
        order = Crossing.of(anybody, owners).order(owners)
        return [cls(matrix, owners, rank, order=order) for matrix, _ in pairs]

    @property
    def rows(self) -> int:
        """Of the buffer: own and halo."""
        return len(self.agents) + len(self.halo)

    @property
    def neighbors(self) -> list[int]:
        """Ranks that this one sends to or receives from."""
        return sorted(self.sends.keys() | self.receives.keys())

    @cached_property
    def traffic(self) -> Traffic:
        sent = sum(len(rows) for rows in self.sends.values())
        return Traffic(len(self.sends), sent, len(self.halo))

    @cached_property
    def places(self) -> np.ndarray:
        """[N]: where in this rank's buffer an agent's row is; -1: not there."""
        places = np.full(len(self.owners), -1)
        places[self.agents] = np.arange(len(self.agents))
        places[self.halo] = len(self.agents) + np.arange(len(self.halo))
        return places

    @property
    def everybody(self) -> Layout:
        """All agents' rows, rank by rank in the order of each rank's plan."""
        return Layout("everybody", np.cumsum(np.r_[0, self.counts])[self.owners] + self.place, len(self.owners))

    def matrix(self, rows: slice, dtype: torch.dtype, device: Any = "cpu", layout: Layout | None = None) -> Tensor:
        """Sparse CSR [rows, columns]: the weights of some of this rank's rows over those of its buffer, or of one with another layout."""
        layout = layout or Layout("own", self.places, self.rows)
        key = (rows.start, rows.stop, dtype, str(device), layout.name)
        if key not in self._matrices:
            part = self.weights[rows]
            columns = layout.places[part.indices]
            with warnings.catch_warnings(), torch.inference_mode(False):  # or no gradient could ever go through it
                warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
                self._matrices[key] = torch.sparse_csr_tensor(
                    torch.from_numpy(part.indptr.astype(np.int32)), torch.from_numpy(columns.astype(np.int32)),
                    torch.from_numpy(part.data).to(dtype), (part.shape[0], layout.rows), check_invariants=False,
                ).to(device)  # fmt: skip
        return self._matrices[key]


def digest(weights: Any, owners: np.ndarray, place: np.ndarray) -> int:
    """A number that tells plans apart."""
    found = blake2b(digest_size=8)
    for part, dtype in ((weights.indptr, "i8"), (weights.indices, "i4"), (weights.data, "f8"), (owners, "i4"), (place, "i4")):
        found.update(np.ascontiguousarray(part, dtype).data)
    return int.from_bytes(found.digest(), "little", signed=True)


def checked(weights: Any, owners: Any, rank: int) -> tuple[Any, np.ndarray]:
    """The weights with sorted columns, and owners as an array."""
    import scipy.sparse

    if not scipy.sparse.issparse(weights):
        raise ValueError(f"weights must be a SciPy sparse matrix, as marl_hpc.topology makes them; got {type(weights).__name__}")
    owners = np.asarray(owners)
    if weights.shape[0] != weights.shape[1] or owners.shape != (weights.shape[0],):
        raise ValueError(f"weights of shape {weights.shape} need one owner for each agent; got owners of shape {owners.shape}")
    if not np.issubdtype(owners.dtype, np.integer) or owners.min(initial=0) < 0:
        raise ValueError(f"owners are ranks, 0 or more; got {owners.dtype} from {owners.min(initial=0)}")
    if not (owners == rank).any():
        raise ValueError(
            f"rank {rank} owns none of {len(owners)} agents; give it some, or make a group of the ranks that have some, number owners as that "
            "does, and exchange by a transport of that group"
        )
    if not np.issubdtype(weights.dtype, np.floating) or not np.isfinite(weights.data).all():
        raise ValueError(f"weights must be finite real numbers of a floating-point type; got {weights.dtype}, or NaN or infinity")
    weights = weights.tocsr()
    if not weights.has_sorted_indices:
        weights = weights.sorted_indices()
    return weights, owners
