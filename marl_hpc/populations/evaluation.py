"""How strong the policies of a population are, from the table of what they returned against one another. Pure NumPy.

Ratings and rankings are of policies within their populations; only NashConv of an exported mixture says how far from equilibrium it is.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marl_hpc.games import Game, mixture_policy, to_openspiel
from marl_hpc.meta_solvers.alpha_rank import alpha_rank
from marl_hpc.populations.payoff_table import PayoffTable
from marl_hpc.populations.population import PolicyId

ELO_SCALE = 400 / math.log(10)  # points for a factor e of odds
MOST_NEWTON_STEPS = 100


class CrossPlay(NamedTuple):
    """Comparisons of policies, whoever sat where; all [policies, policies], in the order of `names`."""

    names: tuple[PolicyId, ...]
    games: np.ndarray  # how often both took part in an episode; 1 for each cell that was computed
    wins: np.ndarray  # in how many of them the row's policy returned more
    draws: np.ndarray  # in how many both returned the same


class Rated(NamedTuple):
    name: PolicyId
    score: float


def cross_play(table: PayoffTable) -> CrossPlay:
    """Wins and draws between all policies of a table, where two take part in an episode. A policy against itself isn't counted.

    Raises ValueError where exact cells were filled without their probabilities to return more.
    """
    names = _names(table)
    place = {name: i for i, name in enumerate(names)}
    games, wins = np.zeros((2, len(names), len(names)))
    for cell, (weight, beats) in table.comparisons().items():
        played = [place[PolicyId(population, number)] for population, number in zip(table.populations, cell, strict=True)]
        for i, j in itertools.permutations(range(len(cell)), 2):
            if played[i] != played[j]:
                games[played[i], played[j]] += weight
                wins[played[i], played[j]] += beats[i, j]
    if not np.isfinite(wins).all():
        raise ValueError("some exact cells were filled without `beats`, their probabilities to return more; exact_cells gives them")
    return CrossPlay(names, games, wins, games - wins - wins.T)


def elo_ratings(played: CrossPlay, *, mean: float = 0.0, prior_draws: float = 1.0) -> list[Rated]:
    """Elo ratings of maximum likelihood, in points, best first: a policy that is 400 points above another wins ten times as often.

    The model is Bradley & Terry's (1952), P(i beats j) = 1 / (1 + 10^((r_j - r_i) / 400)), a draw being half a win; unlike updates one
    game after another, it doesn't depend on their order. `prior_draws` adds so many draws of each policy with one of rating `mean`:
    without them a policy that won or lost all its games has no finite rating. With `prior_draws=0` ratings average `mean`. Raises
    ValueError where there is no unique maximum then: where one group of policies never won or drew against the others.
    """
    if not prior_draws >= 0:
        raise ValueError(f"prior_draws={prior_draws} must be 0 or more")
    scores = played.wins + played.draws / 2
    if prior_draws == 0 and not _connected(scores):
        raise ValueError(
            "these games have no ratings of maximum likelihood: some policies never won or drew against the others; give prior_draws=1"
        )
    ratings = np.zeros(len(scores))
    for _ in range(MOST_NEWTON_STEPS):
        chances = _logistic(ratings[:, None] - ratings)
        own = _logistic(ratings)
        slope = (scores - played.games * chances).sum(1) + prior_draws * (0.5 - own)
        weights = played.games * chances * chances.T
        curvature = np.diag(weights.sum(1) + prior_draws * own * (1 - own)) - weights
        step = np.linalg.lstsq(curvature, slope, rcond=None)[0]
        step *= min(1.0, 2 / max(np.abs(step).max(), 1e-300))  # never far beyond what the curvature is good for
        ratings += step
        if np.abs(step).max() < 1e-9:
            break
    else:
        raise RuntimeError(f"ratings of {len(scores)} policies didn't settle in {MOST_NEWTON_STEPS} Newton steps")
    if prior_draws == 0:
        ratings -= ratings.mean()
    return _best_first(played.names, mean + ELO_SCALE * ratings)


def alpha_rank_ranking(table: PayoffTable, *, alpha: float = 100.0, population_size: int = 50) -> list[Rated]:
    """How often evolution visits each policy (Omidshafiei et al. 2019), best first; probabilities sum to 1 in each population.

    Two players who share a population are the single-population model. See `meta_solvers.alpha_rank` for the options. Raises ValueError
    while cells are missing, and for more than two players of whom some share a population.
    """
    symmetric = len(set(table.populations)) < len(table.populations)
    if symmetric and len(table.populations) != 2:
        raise ValueError(
            f"alpha-rank with a shared population is of two players, this table is of populations {table.populations}; give each "
            "player its own"
        )
    found = alpha_rank(table.payoffs(), alpha=alpha, population_size=population_size, symmetric=symmetric)
    by_population = dict(zip(table.populations, found.mixtures, strict=True))
    scores = np.concatenate([by_population[population] for population in sorted(by_population)])
    return _best_first(_names(table), scores)


def export_mixture(game: Game, policies: Sequence[Any], mixtures: Sequence[Any]) -> str:
    """JSON of what mixtures [K_i] of each player's policies [K_i, I_i, A] play: {information state: [[action, probability], …]}.

    It is the behavior policy weighted by reach, not the average of action probabilities; `pyspiel.TabularPolicy(json.loads(…))` takes
    it as it is. Raises ValueError for another number of players, and as `mixture_policy` and `to_openspiel` do.
    """
    if not len(policies) == len(mixtures) == game.players:
        raise ValueError(f"{game.name} has {game.players} players; got policies of {len(policies)}, mixtures of {len(mixtures)}")
    played = [mixture_policy(game, i, own, weights) for i, (own, weights) in enumerate(zip(policies, mixtures, strict=True))]
    table: Mapping[str, Any] = to_openspiel(game, played)
    return json.dumps(table)


def _names(table: PayoffTable) -> tuple[PolicyId, ...]:
    sizes = dict(zip(table.populations, table.sizes, strict=True))
    return tuple(PolicyId(population, number) for population in sorted(sizes) for number in range(sizes[population]))


def _best_first(names: Sequence[PolicyId], scores: np.ndarray) -> list[Rated]:
    rated = (Rated(name, float(score)) for name, score in zip(names, scores, strict=True))
    return sorted(rated, key=lambda one: (-one.score, one.name))


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def _connected(scores: np.ndarray) -> bool:
    """Whether everybody reaches everybody by having scored against (Ford 1957): then ratings are unique and finite."""
    reach = (scores > 0) | np.eye(len(scores), dtype=bool)
    for _ in range(len(scores).bit_length()):
        reach = reach.astype(float) @ reach > 0
    return bool(reach.all())
