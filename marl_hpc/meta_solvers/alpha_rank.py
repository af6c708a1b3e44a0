"""α-Rank: how often evolution visits each choice of pure strategies, in the limit of rare mutations. Pure NumPy.

Rates range over hundreds of orders of magnitude when α is large. They are kept as logarithms, and the stationary distribution is found
by an elimination that never subtracts (Grassmann, Taksar & Heyman 1985), so that even rare visits come out right.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from marl_hpc.meta_solvers.normal_form import MetaStrategy, checked, correlated, independent

SAFE = -250.0  # logarithms of rates above this, and their products, are far from underflow


def alpha_rank(payoffs: Any, *, alpha: float = 100.0, population_size: int = 50, symmetric: bool = False) -> MetaStrategy:
    """The stationary distribution of α-Rank (Omidshafiei et al. 2019), for any number of players and any payoffs.

    One population per player: from a choice of strategies, one population goes over to another of its strategies, all
    such changes tried alike, with the fixation probability

        ρ(x) = (1 - exp(-x)) / (1 - exp(-m x)), where x = alpha × (payoff after - payoff before), m = population_size; ρ(0) = 1 / m.

    `joint` is the stationary distribution and players are correlated by it. `alpha`, the intensity of selection, is per payoff unit:
    large values rank strictly, and any finite one is safe.

    With `symmetric` there is a single population that plays both roles of a symmetric two-player game: the states are strategies, and
    x = alpha × (M[new, old] - M[old, new]); both players get its stationary distribution, independently. Takes of the order of states
    ** 3: 0.1 s for 300, much longer for more than 2,000. Raises ValueError for alpha or population_size that can't be, and with
    `symmetric` for payoffs that aren't.

    >>> game = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> alpha_rank([game, -game]).joint.round(6).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    table = checked(payoffs)
    if not (0 < alpha < math.inf and population_size > 1):
        raise ValueError(
            f"alpha_rank got alpha={alpha}, population_size={population_size}; expected a finite alpha above 0, 2 or more"
        )
    if symmetric:
        if len(table) != 2 or table.shape[1] != table.shape[2] or not np.allclose(table[0], table[1].T, rtol=0, atol=1e-9):
            raise ValueError(
                f"alpha_rank with symmetric=True needs two players with payoffs[1] = payoffs[0].T, which these of shape {table.shape} "
                "aren't; leave symmetric out for one population per player"
            )
        mixture = stationary(_symmetric_rates(table[0], alpha, population_size))
        return independent([mixture, mixture.copy()])
    return correlated(stationary(_rates(table, alpha, population_size)).reshape(table.shape[1:]))


def log_fixation(x: np.ndarray, population_size: int) -> np.ndarray:
    """log ρ(x), see `alpha_rank`; never over- or underflows."""
    size = np.abs(x)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where x is 0
        ratio = np.log(-np.expm1(-size)) - np.log(-np.expm1(-population_size * size))
    return np.where(size > 0, ratio, -math.log(population_size)) - (population_size - 1) * np.maximum(-x, 0)


def stationary(log_rates: np.ndarray) -> np.ndarray:
    """The stationary distribution [states] of an irreducible Markov chain, from the logarithms of its rates [from, to].

    Diagonals don't matter. Every state must have a positive rate to one before it, except the first.
    """
    off_diagonal = log_rates[~np.eye(len(log_rates), dtype=bool)]
    if np.all((off_diagonal == -np.inf) | (off_diagonal > SAFE)):
        rates = np.exp(log_rates)
        for k in range(len(rates) - 1, 0, -1):
            rates[:k, k] /= rates[k, :k].sum()
            rates[:k, :k] += np.multiply.outer(rates[:k, k], rates[k, :k])
        chances = np.ones(len(rates))
        for k in range(1, len(rates)):
            chances[k] = chances[:k] @ rates[:k, k]
            chances[: k + 1] /= chances[: k + 1].max()
        return chances / chances.sum()
    rates = log_rates.copy()
    for k in range(len(rates) - 1, 0, -1):
        rates[:k, k] -= np.logaddexp.reduce(rates[k, :k])
        rates[:k, :k] = np.logaddexp(rates[:k, :k], rates[:k, k, None] + rates[k, :k])
    logs = np.zeros(len(rates))
    for k in range(1, len(rates)):
        logs[k] = np.logaddexp.reduce(logs[:k] + rates[:k, k])
    return np.exp(logs - np.logaddexp.reduce(logs))


def _rates(payoffs: np.ndarray, alpha: float, population_size: int) -> np.ndarray:
    """Logarithms of the rates between all choices of strategies, flattened: one population changes at a time."""
    shape = payoffs.shape[1:]
    states = np.arange(math.prod(shape)).reshape(shape)
    rates = np.full((states.size, states.size), -np.inf)
    changes = sum(size - 1 for size in shape)
    for i, own in enumerate(payoffs):
        places = np.moveaxis(states, i, 0).reshape(shape[i], -1)
        values = np.moveaxis(own, i, 0).reshape(shape[i], -1)
        gains = values[None] - values[:, None]  # [before, after, what the others play]
        logs = log_fixation(alpha * gains, population_size) - math.log(max(changes, 1))
        before, after = np.nonzero(~np.eye(shape[i], dtype=bool))
        rates[places[before], places[after]] = logs[before, after]
    return rates


def _symmetric_rates(payoffs: np.ndarray, alpha: float, population_size: int) -> np.ndarray:
    """Logarithms of the rates between strategies of a single population. payoffs[s, r]: of s against r."""
    return log_fixation(alpha * (payoffs.T - payoffs), population_size) - math.log(max(len(payoffs) - 1, 1))
