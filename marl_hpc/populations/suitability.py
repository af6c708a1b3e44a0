"""Whether a meta-solver is made for a game and an oracle: before anything starts it solves a small table of the kind that the game's will be.

So options are checked by who takes them, and a user's own solver like ours. Pure NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from marl_hpc.config import ConfigError, Population
from marl_hpc.meta_solvers import META_SOLVERS
from marl_hpc.populations.schemes import configured

CHICKEN = np.array([[0.0, 7.0], [2.0, 6.0]])  # the row's; two strategies are recommended in its correlated equilibria
CYCLE = np.array(
    [[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 0.0]]
)  # rock, paper, scissors with unequal stakes: nobody is left out
MOST_FREE = 3  # players with a choice, so that tables stay small


class Kind(NamedTuple):
    """What tables of payoffs are like."""

    players: int
    zero_sum: bool
    symmetric: bool  # players share a population

    def __str__(self) -> str:
        if self.players > 2:
            return f"games of {self.players} players"
        return f"{'zero-sum' if self.zero_sum else 'general-sum'} games of {self.players} players{'' if self.symmetric else ' with a population each'}"


EASIEST = Kind(2, zero_sum=True, symmetric=True)


def check_solver(section: Population, env: str, players: int, *, symmetric: bool, zero_sum: Callable[[], bool]) -> None:
    """Raise ConfigError where the configured meta-solver, with its options, doesn't solve such tables, or asks for more best responses at
    once than the oracle gives. `zero_sum` is asked of two players only, and where general-sum games aren't solved."""
    configured(section)
    kind = Kind(players, False, symmetric)
    what = f"population.meta_solver={section.meta_solver} with env={env}"
    try:
        try:
            asked = most_targets(section, kind)
        except (ValueError, TypeError):
            if players != 2 or not zero_sum():
                raise
            kind = kind._replace(zero_sum=True)
            asked = most_targets(section, kind)
    except (ValueError, TypeError) as error:
        if not solves(section, EASIEST):
            options = f" and population.meta_options={dict(section.meta_options)}" if section.meta_options else ""
            raise ConfigError(f"{what}{options}: {error}") from error
        raise ConfigError(f"{what}: it doesn't solve {kind}; choose one of: {', '.join(fitting(section, kind))}") from error
    if asked > 1 and at_once(section) == 1:
        several = "it asks for several best responses of a player at once, one for each strategy that is played"
        if section.name == "psro":
            several += "; set population.responses to how many may learn side by side, such as 4, or"
        else:
            several += f", and each level of population={section.name} is one;"
        raise ConfigError(f"{what}: {several} choose one of: {', '.join(fitting(section, kind))}")


def at_once(section: Population) -> float:
    """How many best responses of a player can be added to what was solved."""
    if section.oracle == "exact":
        return math.inf
    return section.responses if section.name == "psro" else 1


def fitting(section: Population, kind: Kind) -> list[str]:
    """The meta-solvers of ours that would do instead."""
    return [
        name
        for name in sorted(META_SOLVERS)
        if solves(replace(section, meta_solver=name, meta_options=None), kind, at_once(section))
    ]


def solves(section: Population, kind: Kind, at_most: float = math.inf) -> bool:
    try:
        asked = most_targets(section, kind)
    except (ValueError, TypeError):
        return False
    return asked == 1 or at_most > 1


def most_targets(section: Population, kind: Kind) -> int:
    """How many best responses of a player the meta-solver asks for at once on a small table of this kind. Raises what it raises."""
    return max(map(len, configured(section)(small_table(kind)).opponents))


def small_table(kind: Kind) -> np.ndarray:
    """Payoffs [players, …] of such a game, in which no strategy is better than all others.

    >>> small_table(Kind(2, zero_sum=False, symmetric=True)).tolist()
    [[[0.0, 7.0], [2.0, 6.0]], [[0.0, 2.0], [7.0, 6.0]]]
    """
    if kind.players != 2:  # who is in the majority gets 1
        free = min(kind.players, MOST_FREE)
        choices = np.indices((2,) * free)
        wins = choices == (choices.sum(0) * 2 > free)
        rest = kind.players - free
        payoffs = np.concatenate([wins, np.zeros((rest, *(2,) * free))]).astype(float)
        return payoffs.reshape(kind.players, *(2,) * free, *(1,) * rest)
    table = np.stack([CYCLE, -CYCLE] if kind.zero_sum else [CHICKEN, CHICKEN.T])
    return table if kind.symmetric else table[..., ::-1]  # the same game, whose strategies bear other numbers for one player
