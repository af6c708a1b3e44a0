"""Whom an agent that learns meets, and what a population amounts to: each scheme as a function of what is known of the populations.

A scheme is a plain function `scheme(known, section) -> Strategy`; `SCHEMES` maps names to functions. Members are in the order in which
they were frozen, number 0 is what a population began with. Pure NumPy; may import meta-solvers and config.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from marl_hpc import meta_solvers
from marl_hpc.config import ConfigError, Population
from marl_hpc.meta_solvers.normal_form import independent

LEARNS = -1  # in place of a member's number: who plays as it learns


class Known(NamedTuple):
    """What a scheme may look at."""

    sizes: tuple[int, ...]  # of each player's population
    payoffs: np.ndarray | None  # [players, *sizes], where the scheme needs them
    # where the scheme needs them: wins[i][j] [size_j] are player i's newest policy's rates of wins, draws counting half, against those of j
    wins: Sequence[Sequence[np.ndarray]] | None


class Meeting(NamedTuple):
    """A distribution over whom an episode is played by."""

    profiles: np.ndarray  # [M, players] numbers of members; LEARNS for who learns
    weights: np.ndarray  # [M] probabilities


class Strategy(NamedTuple):
    meetings: tuple[Meeting, ...]  # for each player, where it alone learns
    live: float  # the share of episodes in which all play as they learn instead
    mixtures: tuple[np.ndarray, ...]  # for each player [size]: what its population amounts to


Scheme = Callable[[Known, Population], Strategy]


def self_play(known: Known, section: Population) -> Strategy:
    """All play as they learn. It amounts to what was frozen last."""
    return Strategy(meetings_of([newest(size) for size in known.sizes]), 1.0, tuple(newest(size) for size in known.sizes))


def fictitious_play(known: Known, section: Population) -> Strategy:
    """A best response to the average of the past (Heinrich et al. 2015); it amounts to that average. What populations began with counts
    until something has been learned."""
    mixtures = [recent(size, max(1, size - 1)) for size in known.sizes]
    return Strategy(meetings_of(mixtures), 0.0, tuple(mixtures))


def delta_uniform(known: Known, section: Population) -> Strategy:
    """Opponents uniformly among the newest share `delta` of the past (Bansal et al. 2018, section 3.3), in a share `live` of episodes the
    present. It amounts to what was frozen last."""
    mixtures = [recent(size, max(1, math.ceil(size * section.delta - 1e-9))) for size in known.sizes]
    return Strategy(meetings_of(mixtures), section.live, tuple(newest(size) for size in known.sizes))


def league(known: Known, section: Population) -> Strategy:
    """Prioritized fictitious self-play (Vinyals et al. 2019, eq. in Methods): each opponent in proportion to (1 - rate of wins)^power of
    the newest policy against it; in a share `live` of episodes the present. It amounts to what was frozen last."""
    assert known.wins is not None, "the league's table is simulated before"
    meetings = []
    for player in range(len(known.sizes)):
        mixtures = []
        for other, size in enumerate(known.sizes):
            rates = np.zeros(size) if other == player else known.wins[player][other]
            weights = (1 - rates) ** section.power
            mixtures.append(weights / weights.sum() if weights.sum() > 0 else np.full(size, 1 / size))
        meetings.append(meeting(player, mixtures))
    return Strategy(tuple(meetings), section.live, tuple(newest(size) for size in known.sizes))


def psro(known: Known, section: Population) -> Strategy:
    """Best responses to what the meta-solver says (Lanctot et al. 2017); it amounts to the meta-strategy.

    Raises ValueError for a meta-solver that wants several best responses of a player at once.
    """
    assert known.payoffs is not None, "the table is complete before"
    found = configured(section)(known.payoffs)
    meetings = []
    for player, targets in enumerate(found.opponents):
        if len(targets) != 1:
            raise ValueError(
                f"population.meta_solver={section.meta_solver} wants {len(targets)} best responses of player {player} at once, and one is "
                "learned at a time: choose a solver with one, such as nash or coarse_correlated_equilibrium, or population.oracle=exact"
            )
        target = np.asarray(targets[0])
        places = np.argwhere(target > 1e-9)
        weights = target[tuple(places.T)]
        meetings.append(Meeting(np.insert(places, player, LEARNS, axis=1), weights / weights.sum()))
    return Strategy(tuple(meetings), 0.0, found.mixtures)


SCHEMES: dict[str, Scheme] = {
    "self_play": self_play, "fictitious_play": fictitious_play, "delta_uniform": delta_uniform, "league": league, "psro": psro,
    "nfsp": self_play,
}  # fmt: skip


def configured(section: Population) -> meta_solvers.MetaSolver:
    """The meta-solver with its options. Raises ConfigError for one, or for an option of it, that doesn't exist."""
    solver = meta_solvers.resolve(section.meta_solver)
    known = list(inspect.signature(solver).parameters)[1:]
    options = dict(section.meta_options or {})
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"population.meta_options has {', '.join(unknown)}, and meta_solver={section.meta_solver} takes {', '.join(known) or 'no options'}"
        )
    return partial(solver, **options) if options else solver


def newest(size: int) -> np.ndarray:
    return np.eye(size)[-1]


def recent(size: int, count: int) -> np.ndarray:
    """Uniform over the newest `count`.

    >>> recent(4, 2).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    return (np.arange(size) >= size - count) / count


def meetings_of(mixtures: Sequence[np.ndarray]) -> tuple[Meeting, ...]:
    """Each player against independent draws of the others."""
    return tuple(meeting(player, mixtures) for player in range(len(mixtures)))


def meeting(player: int, mixtures: Sequence[np.ndarray]) -> Meeting:
    """
    >>> meeting(1, [np.array([0.0, 1.0]), np.array([1.0])])
    Meeting(profiles=array([[ 1, -1]]), weights=array([1.]))
    """
    target = independent(mixtures).opponents[player][0]
    places = np.argwhere(target > 0)
    return Meeting(np.insert(places, player, LEARNS, axis=1), target[tuple(places.T)])
