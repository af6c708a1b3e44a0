"""How a population's members rank, as a record for JSON: cross-play, Elo ratings and α-Rank, each with what it was computed by.

What can't be said says why under `left_out`: α-Rank where it isn't defined, wins where cells were filled without them, and what takes
too long for large populations. Pure NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from marl_hpc.populations.evaluation import CrossPlay, Rated, alpha_rank_ranking, cross_play, elo_ratings
from marl_hpc.populations.payoff_table import PayoffTable
from marl_hpc.populations.population import PolicyId

MOST_RATED = 1000  # policies; both take of the order of the third power, 1,000 a few seconds
MOST_STATES = 1000  # of α-Rank
PRIOR_DRAWS = 1.0
ALPHA, POPULATION_SIZE = 100.0, 50


def ranking(table: PayoffTable) -> dict[str, Any]:
    """`names` of all K policies of a table, and in their order

    - `games` [K, K], how often two met (once in each cell that was computed), and `win_rates` [K, K] of the row's policy, draws counting half, null where they never met;
    - `elo`: ratings [K] of maximum likelihood, see `elo_ratings`;
    - `alpha_rank`: masses [K], see `alpha_rank_ranking`.

    >>> table = PayoffTable((0, 0))
    >>> table.grow((2, 2))
    >>> beats = [[[0, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]]
    >>> table.fill([[0, 0], [0, 1], [1, 1]], [[0, 0], [-1, 1], [0, 0]], beats)
    >>> record = ranking(table)
    >>> record["names"], record["win_rates"], record["alpha_rank"]["masses"]
    (['0/0', '0/1'], [[None, 0.0], [1.0, None]], [0.0, 1.0])
    """
    sizes = dict(zip(table.populations, table.sizes, strict=True))
    names = [PolicyId(population, number) for population in sorted(sizes) for number in range(sizes[population])]
    record: dict[str, Any] = {"names": [str(name) for name in names]}
    try:
        played = cross_play(table)
    except ValueError as error:
        return record | {"elo": {"left_out": str(error)}, "alpha_rank": _alpha_rank(table, names)}
    return record | {
        "games": played.games.astype(int).tolist(),
        "win_rates": _win_rates(played),
        "elo": _elo(played, names),
        "alpha_rank": _alpha_rank(table, names),
    }


def _win_rates(played: CrossPlay) -> list[list[float | None]]:
    met = played.games > 0
    rates = np.round((played.wins + played.draws / 2) / np.where(met, played.games, 1), 6).astype(object)
    rates[~met] = None
    return rates.tolist()


def _elo(played: CrossPlay, names: list[PolicyId]) -> dict[str, Any]:
    about = {"model": "Bradley-Terry, maximum likelihood", "mean": 0.0, "prior_draws": PRIOR_DRAWS}
    if len(names) > MOST_RATED:
        return about | {"left_out": f"{len(names):,} policies; at most {MOST_RATED:,} are rated"}
    return about | {"ratings": _in_order(elo_ratings(played, prior_draws=PRIOR_DRAWS), names, digits=2)}


def _alpha_rank(table: PayoffTable, names: list[PolicyId]) -> dict[str, Any]:
    shared = len(set(table.populations)) < len(table.populations)
    states = table.sizes[0] if shared else math.prod(table.sizes)
    model = "a single population" if shared else "a population for each player"
    about = {"model": model, "alpha": ALPHA, "population_size": POPULATION_SIZE}
    if states > MOST_STATES:
        return about | {"left_out": f"{states:,} states, the product of the populations' sizes; at most {MOST_STATES:,} are ranked"}
    try:
        found = alpha_rank_ranking(table, alpha=ALPHA, population_size=POPULATION_SIZE)
    except ValueError as error:  # what alpha-rank isn't defined for, and cells that are missing
        return about | {"left_out": str(error)}
    return about | {"masses": _in_order(found, names, digits=6)}


def _in_order(found: list[Rated], names: list[PolicyId], digits: int) -> list[float]:
    scores = {one.name: round(one.score, digits) for one in found}
    return [scores[name] for name in names]
