"""What the policies of populations return against one another: the table that meta-solvers read, filled by whoever has time.

Batches of a cell's episodes (see `cells`) are leased to owners until a deadline, count once, and in their order: tables don't depend
on who simulated what and when. Players who share a population have one cell for all permutations, the average over their seats. Time is
the caller's, in seconds. Pure NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from marl_hpc.populations.cells import Cell, Lease, Sampling, canonical, seatings, sharing
from marl_hpc.populations.population import checked_populations


class Entry(NamedTuple):
    """What is known about a cell, by position."""

    done: bool
    exact: bool  # computed, not simulated
    episodes: int
    mean: np.ndarray  # [players]
    variance: np.ndarray  # [players] of one episode's return; NaN below two episodes, 0 where it is exact
    half_width: np.ndarray  # [players] of the mean's interval


@dataclass
class _Open:
    """A cell that isn't done."""

    merged: int = 0  # batches that are counted
    waiting: dict[int, np.ndarray] = field(default_factory=dict)  # returns [E, players] of batches that came before their turn
    leases: dict[int, tuple[str, float]] = field(default_factory=dict)  # batch to (owner, deadline)


class PayoffTable:
    """Counts, means and variances of every cell of growing populations; `populations` as in `PolicyPopulation`.

    >>> table = PayoffTable((0, 1), Sampling(half_width=0.1, min_episodes=2, batch=2))
    >>> table.grow((1, 1))
    >>> lease, = table.lease("worker/0", now_s=0.0)
    >>> table.report(lease.cell, lease.batch, [[1.0, -1.0], [1.0, -1.0]])
    True
    >>> table.payoffs().tolist()
    [[[1.0]], [[-1.0]]]
    """

    def __init__(self, populations: Sequence[int], sampling: Sampling | None = None, *, seed: int = 0) -> None:
        self.populations = checked_populations(populations)
        self.sampling = sampling
        self.seed = seed
        ways = math.prod(math.factorial(len(players)) for players in sharing(self.populations))
        self._shared = ways > 1
        if sampling is not None and sampling.batch % ways:
            raise ValueError(
                f"batch={sampling.batch} episodes can't be shared evenly among {ways} seatings of the players that share "
                f"a population; give a multiple of {ways}"
            )
        players = len(self.populations)
        none = (0,) * players
        self._done = np.zeros(none, bool)
        self._exact = np.zeros(none, bool)
        self._episodes = np.zeros(none, np.int64)
        self._mean = np.zeros((players, *none))
        self._squares = np.zeros((players, *none))  # sums of squared differences from the mean
        # in how many episodes, or exactly with which probability, the first position returns more than the second
        self._beats = np.zeros((players, players, *none))
        self._wanted = np.zeros(none, np.int64)  # batches that a cell has at least; 0: nobody asked for it
        self._open: dict[Cell, _Open] = {}

    @cached_property
    def _seatings(self) -> list[Cell]:
        return seatings(self.populations)  # many, where many share a population: only for those who simulate

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many policies each player chooses from."""
        return self._done.shape

    def grow(self, sizes: Sequence[int], needed: np.ndarray | None = None) -> None:
        """Make room for populations of these sizes, one for each player, and ask for the cells where `needed` [*sizes] (and for those
        that were asked for before); by default for all. Raises ValueError where populations would shrink, or where players of one
        population have different sizes."""
        new = tuple(int(size) for size in sizes)
        by_population = dict(zip(self.populations, new, strict=False))
        if len(new) != len(self.populations) or new != tuple(by_population[population] for population in self.populations):
            raise ValueError(
                f"sizes={new}: expected one for each player of populations {self.populations}, the same where they share one"
            )
        if any(size < old for size, old in zip(new, self.sizes, strict=True)):
            raise ValueError(f"sizes={new}: populations of {self.sizes} never shrink")
        old = self.sizes
        inside = tuple(slice(size) for size in old)
        for name in ("_done", "_exact", "_episodes", "_mean", "_squares", "_beats", "_wanted") if new != old else ():
            array = getattr(self, name)
            grown = np.zeros((*array.shape[: array.ndim - len(old)], *new), array.dtype)
            grown[..., *inside] = array
            setattr(self, name, grown)
        asked = self._wanted == 0 if needed is None else needed & (self._wanted == 0)
        for cell in map(tuple, np.argwhere(asked).tolist()):
            if cell == canonical(self.populations, cell):
                self._wanted[cell] = self._first_batches
                self._open[cell] = _Open()

    def missing(self) -> np.ndarray:
        """[M, players]: the cells that were asked for and aren't done."""
        return np.array(list(self._open), np.int64).reshape(len(self._open), len(self.populations))

    def lease(self, owner: str, *, now_s: float, count: int = 1) -> list[Lease]:
        """Up to `count` batches for this owner to simulate; none where nothing is left to be leased.

        An owner that asks again before it has reported gets the same batches, until their deadlines, and only then others. Batches that
        may turn out not to be needed come last. Raises ValueError where the table isn't simulated.
        """
        sampling = self._checked_sampling()
        leases = []
        for cell, entry in self._open.items():
            for batch, (holder, deadline_s) in list(entry.leases.items()):
                if holder == owner and deadline_s > now_s and len(leases) < count:
                    leases.append(Lease(cell, batch, sampling.batch, deadline_s))
        deadline_s = now_s + sampling.lease_s
        while len(leases) < count:
            free = ((self._next_batch(cell, now_s), cell) for cell in self._open)
            chosen = min(((*place, cell) for place, cell in free if place is not None), default=None)
            if chosen is None:
                break
            _, batch, cell = chosen
            self._open[cell].leases[batch] = (owner, deadline_s)
            leases.append(Lease(cell, batch, sampling.batch, deadline_s))
        return leases

    def renew(self, owner: str, *, now_s: float) -> None:
        """This owner is still at what it holds: nobody else gets that for another `lease_s`."""
        for entry in self._open.values():
            for batch, (holder, _) in entry.leases.items():
                if holder == owner:
                    entry.leases[batch] = (owner, now_s + self._checked_sampling().lease_s)

    def owners(self, *, now_s: float) -> list[str]:
        """Who holds leases."""
        held = (lease for entry in self._open.values() for lease in entry.leases.values())
        return sorted({owner for owner, deadline_s in held if deadline_s > now_s})

    def report(self, cell: Sequence[int], batch: int, returns: Any) -> bool:
        """Take the returns [E, players], by player, of a batch's episodes; whether they are new.

        A batch counts once, whoever reports it and how late: repeating it changes nothing. Nor does a batch of a cell that was done before
        it. Raises ValueError for cells and batches that don't exist and for returns of another shape or that aren't finite.
        """
        sampling = self._checked_sampling()
        place = self._checked_cell(cell)
        values = np.asarray(returns, float)
        expected = (sampling.batch, len(self.populations))
        if values.shape != expected or not np.isfinite(values).all():
            raise ValueError(f"cell {place} got returns of shape {values.shape}; expected {expected}, all of them finite")
        if not 0 <= batch < self._batches:
            raise ValueError(f"cell {place} has batches 0 … {self._batches - 1}; got {batch}")
        entry = self._open.get(place)
        if entry is None or batch < entry.merged or batch in entry.waiting:
            return False
        entry.leases.pop(batch, None)
        entry.waiting[batch] = values
        while place in self._open and entry.merged in entry.waiting:
            self._merge(place, entry.merged, entry.waiting.pop(entry.merged))
            entry.merged += 1
            if entry.merged == self._batches or (entry.merged >= self._wanted[place] and self._tight(place)):
                self._finish(place)
        return True

    def refine(self, cells: Iterable[Sequence[int]]) -> int:
        """Open those of these simulated cells again that may have more episodes, for twice as many as they have; how many that are."""
        opened = 0
        for place in map(self._checked_cell, cells):
            merged = int(self._episodes[place]) // self._checked_sampling().batch
            if self._done[place] and not self._exact[place] and merged < self._batches:
                self._done[place], self._wanted[place] = False, min(2 * merged, self._batches)
                self._open[place] = _Open(merged)
                opened += 1
        return opened

    def fill(self, cells: Any, means: Any, beats: Any | None = None) -> None:
        """Take what is known exactly: `cells` [M, players], their means [M, players] by position, and the probabilities `beats` [M,
        players, players] that one position returns more than another, which only ratings need. Cells that are done stay as they are."""
        places, values = np.asarray(cells, np.int64), np.asarray(means, float)
        players = len(self.populations)
        chances = np.full((len(places), players, players), np.nan) if beats is None else np.asarray(beats, float)
        if places.shape[1:] != (players,) or values.shape != places.shape or chances.shape != (*places.shape, players):
            raise ValueError(
                f"got cells {places.shape}, means {values.shape}, beats {chances.shape}; expected [M, {players}] twice and "
                f"[M, {players}, {players}]"
            )
        if not np.isfinite(values).all():
            raise ValueError("exact means have to be finite")
        for cell, value, chance in zip(places.tolist(), values, chances, strict=True):
            place = self._checked_cell(cell)
            if place in self._open:
                self._exact[place], self._episodes[place] = True, 0
                self._mean[:, *place], self._squares[:, *place], self._beats[:, :, *place] = value, 0, chance
                self._finish(place)

    def entry(self, cell: Sequence[int]) -> Entry:
        """What is known about a cell, by position. Raises ValueError for one that doesn't exist."""
        place = self._checked_cell(cell)
        episodes, squares = int(self._episodes[place]), self._squares[:, *place]
        exact = bool(self._exact[place])
        unknown = 0.0 if exact else math.nan
        variance = squares / (episodes - 1) if episodes > 1 else np.full(len(squares), unknown)
        width = self._half_width(place) if episodes > 1 else np.full(len(squares), unknown)
        return Entry(bool(self._done[place]), exact, episodes, self._mean[:, *place].copy(), variance, width)

    def payoffs(self) -> np.ndarray:
        """[players, *sizes], as meta-solvers take it. Raises ValueError while cells are missing."""
        if self._open or not self._done.size:
            raise ValueError(
                f"{len(self._open)} cells of a table of sizes {self.sizes} aren't done, such as {next(iter(self._open), 'the first')}; "
                "simulate or fill them"
            )
        return self.known_payoffs()

    def known_payoffs(self) -> np.ndarray:
        """[players, *sizes]: as `payoffs`, NaN where a cell isn't done."""
        return self._by_player(np.where(self._done, self._mean, np.nan))

    def errors(self) -> np.ndarray:
        """[players, *sizes]: squared standard errors of the payoffs, 0 where they are exact, infinite below two episodes."""
        episodes = np.where(self._episodes > 1, self._episodes, 2)
        errors = self._squares / (episodes - 1) / episodes
        return self._by_player(np.where(self._exact | (self._episodes > 1), errors, np.inf))

    def _by_player(self, values: np.ndarray) -> np.ndarray:
        """Of every profile from what is kept of cells by position; both [players, *sizes]."""
        cells = np.indices(self.sizes)
        if not self._shared:
            return values
        positions = np.empty_like(cells)  # of each player in the sorted cell
        for players in sharing(self.populations):
            order = np.argsort(cells[players], 0, kind="stable")
            positions[players] = np.array(players)[np.argsort(order, 0)]
            cells[players] = np.sort(cells[players], 0)
        return np.stack([values[positions[i], *cells] for i in range(len(cells))])

    def comparisons(self) -> dict[Cell, tuple[int, np.ndarray]]:
        """For each cell about which something is known (episodes, in how many of them the row's position returned more than the
        column's [players, players]); an exact cell is 1 episode, in which these are probabilities."""
        known = np.argwhere((self._episodes > 0) | self._exact)
        return {
            tuple(cell): (1 if self._exact[*cell] else int(self._episodes[*cell]), self._beats[:, :, *cell])
            for cell in known.tolist()
        }

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was counted or waits to be, for `load_state`; leases aren't kept."""
        waiting = [(cell, batch, values) for cell, entry in self._open.items() for batch, values in entry.waiting.items()]
        episodes = 0 if self.sampling is None else self.sampling.batch
        players = len(self.populations)
        return {
            "made_for": np.array([self.seed, episodes, *self.populations]),
            "done": self._done.copy(),
            "exact": self._exact.copy(),
            "episodes": self._episodes.copy(),
            "mean": self._mean.copy(),
            "squares": self._squares.copy(),
            "beats": self._beats.copy(),
            "wanted": self._wanted.copy(),
            "waiting_for": np.array([(*cell, batch) for cell, batch, _ in waiting], np.int64).reshape(len(waiting), players + 1),
            "waiting": np.array([values for *_, values in waiting]).reshape(len(waiting), episodes, players),
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """As `load_state`, to read: whatever seed and batch the state is of."""
        self.load_state(
            {
                **state,
                "made_for": np.array([self.seed, 0, *self.populations]),
                "waiting_for": np.zeros((0, 1)),
                "waiting": np.zeros(0),
            }
        )

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what a state holds instead of what is here. Raises ValueError where it is of another seed, batch or populations."""
        arrays = {name: np.array(array) for name, array in state.items()}
        made_for = [self.seed, 0 if self.sampling is None else self.sampling.batch, *self.populations]
        if arrays["made_for"].tolist() != made_for:
            raise ValueError(
                f"the state is of (seed, batch, *populations) = {arrays['made_for'].tolist()}, this table of {made_for}; they must agree"
            )
        self._done, self._exact, self._episodes = arrays["done"], arrays["exact"], arrays["episodes"]
        self._mean, self._squares, self._beats = arrays["mean"], arrays["squares"], arrays["beats"]
        self._wanted = arrays["wanted"]
        self._open = {}
        for cell in map(tuple, np.argwhere(~self._done & (self._wanted > 0)).tolist()):
            if cell == canonical(self.populations, cell):
                self._open[cell] = _Open(0 if self.sampling is None else int(self._episodes[cell]) // self.sampling.batch)
        for (*cell, batch), values in zip(arrays["waiting_for"].tolist(), arrays["waiting"], strict=True):
            self._open[tuple(cell)].waiting[batch] = values

    @property
    def _batches(self) -> int:
        """How many a cell has at most."""
        return math.ceil(self._checked_sampling().max_episodes / self._checked_sampling().batch)

    @property
    def _first_batches(self) -> int:
        return 1 if self.sampling is None else math.ceil(self.sampling.min_episodes / self.sampling.batch)

    def _next_batch(self, cell: Cell, now_s: float) -> tuple[int, int] | None:
        """(how many batches it is ahead of what is surely needed, the first batch that nobody has), None where there is none."""
        entry = self._open[cell]
        bounded = math.isfinite(self._checked_sampling().half_width)
        for batch in range(entry.merged, self._batches if bounded else int(self._wanted[cell])):
            held = batch in entry.leases and entry.leases[batch][1] > now_s
            if not held and batch not in entry.waiting:
                needed = max(entry.merged, int(self._wanted[cell]) - 1)
                return max(0, batch - needed), batch
        return None

    def _merge(self, cell: Cell, batch: int, returns: np.ndarray) -> None:
        """Add a batch to a cell's moments (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        first = batch * len(returns)
        seats = np.array(self._seatings)[np.arange(first, first + len(returns)) % len(self._seatings)]
        values = np.take_along_axis(returns, seats, 1)  # by position
        self._beats[:, :, *cell] += (values[:, :, None] > values[:, None, :]).sum(0)
        for players in sharing(self.populations):
            for number in {cell[i] for i in players}:
                same = [i for i in players if cell[i] == number]  # who can't be told apart expects the same
                values[:, same] = values[:, same].mean(1, keepdims=True)
        before, count = int(self._episodes[cell]), len(values)
        mean = values.mean(0)
        step = mean - self._mean[:, *cell]
        self._squares[:, *cell] += ((values - mean) ** 2).sum(0) + step**2 * (before * count / (before + count))
        self._mean[:, *cell] += step * (count / (before + count))
        self._episodes[cell] = before + count

    def _tight(self, cell: Cell) -> bool:
        return bool((self._half_width(cell) <= self._checked_sampling().half_width).all())

    def _half_width(self, cell: Cell) -> np.ndarray:
        # where seats rotate, the differences between them are counted as if they were noise: too wide, never too narrow
        episodes = int(self._episodes[cell])
        quantile = NormalDist().inv_cdf((1 + self._checked_sampling().confidence) / 2)
        return quantile * np.sqrt(self._squares[:, *cell] / (episodes - 1) / episodes)

    def _finish(self, cell: Cell) -> None:
        self._done[cell] = True
        del self._open[cell]

    def _checked_cell(self, cell: Sequence[int]) -> Cell:
        place = tuple(int(number) for number in cell)
        if len(place) != len(self.sizes) or not all(0 <= n < size for n, size in zip(place, self.sizes, strict=True)):
            raise ValueError(f"there is no cell {place} in a table of sizes {self.sizes}")
        if place != canonical(self.populations, place):
            raise ValueError(
                f"cell {place} is kept as {canonical(self.populations, place)}: players who share a population are sorted"
            )
        return place

    def _checked_sampling(self) -> Sampling:
        if self.sampling is None:
            raise ValueError("this table isn't simulated but filled; give it a Sampling")
        return self.sampling
