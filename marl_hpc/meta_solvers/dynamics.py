"""Mixtures that players learn by playing the table against one another, for any number of players; and the uniform one.

All start from uniform mixtures, move all players at once on expected payoffs, and end after a fixed number of iterations: no randomness.
Where players are scaled to payoffs of 0 … 1 first, step sizes need no unit and results don't change with it. Gaps in the docstrings are
those of the default options on random zero-sum games of up to 50 × 50 with payoffs of 0 … 1. Pure NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_hpc.meta_solvers.normal_form import MetaStrategy, checked, correlated, deviations, independent, scaled

TIE = 1e-12  # strategies this close to the best are as good
BLOCK = 512  # iterations of joint play that are averaged in one product


def uniform(payoffs: Any) -> MetaStrategy:
    """All strategies alike: with best responses as new strategies this is fictitious self-play in the population (Heinrich et al. 2015).

    >>> uniform([[[0.0, 1.0, 2.0]], [[0.0, 0.0, 0.0]]]).mixtures[1].round(3).tolist()
    [0.333, 0.333, 0.333]
    """
    return independent(_start(checked(payoffs)))


def fictitious_play(payoffs: Any, *, iterations: int = 10_000) -> MetaStrategy:
    """Each player plays a best response to the average of what every other has played so far (Brown 1951).

    Strategies tied for best share the play. The averages approach an equilibrium in two-player zero-sum and in potential games, slowly:
    nash_gap below 0.03; elsewhere they may circle. Raises ValueError for iterations below 1.
    """
    table = scaled(checked(payoffs))
    _check_counts("fictitious_play", iterations=iterations)
    averages = _start(table)
    for t in range(iterations):
        for average, values in zip(averages, deviations(table, averages), strict=True):
            best = values >= values.max() - TIE
            average += (best / best.sum() - average) / (t + 1)
    return independent([average / average.sum() for average in averages])


def regret_matching(payoffs: Any, *, iterations: int = 10_000, plus: bool = True) -> MetaStrategy:
    """Each player mixes its strategies in proportion to how much it regrets not to have played them (Hart & Mas-Colell 2000, by
    unconditional regrets).

    What is returned is the average of the joint play, not the last mixtures: its cce_gap vanishes in every game, at the rate of
    iterations ** -0.5, and in two-player zero-sum games the nash_gap of its mixtures does: below 0.01 without `plus`. With `plus`
    negative regrets are forgotten and play counts in proportion to its iteration (RM+, Tammelin et al. 2015): below 0.003. Raises
    ValueError for iterations below 1.
    """
    table = scaled(checked(payoffs))
    _check_counts("regret_matching", iterations=iterations)
    regrets = [np.zeros(size) for size in table.shape[1:]]
    joint, mixtures = np.zeros(table.shape[1:]), _start(table)
    for block in range(0, iterations, BLOCK):
        played = []
        for _ in range(block, min(block + BLOCK, iterations)):
            played.append(mixtures)
            mixtures = []
            for regret, values, mixture in zip(regrets, deviations(table, played[-1]), played[-1], strict=True):
                regret += values - values @ mixture
                if plus:
                    np.maximum(regret, 0, out=regret)
                positive = np.maximum(regret, 0)
                total = positive.sum()
                mixtures.append(positive / total if total > 0 else np.full(len(regret), 1 / len(regret)))
        weights = np.arange(block, block + len(played)) + 1.0 if plus else np.ones(len(played))
        joint += _weighted_products(weights, played)
    return correlated(joint / joint.sum())


def projected_replicator_dynamics(
    payoffs: Any, *, iterations: int = 10_000, step: float = 0.02, exploration: float = 1e-5
) -> MetaStrategy:
    """Replicator dynamics that keep every strategy alive (Lanctot et al. 2017, section 3.1): the average over iterations.

    A step adds `step` times the strategy's probability times its advantage, and projects (in Euclidean distance) to mixtures that
    give each of S strategies at least exploration / S. In two-player zero-sum games nash_gap is below 0.03. More exploration isn't
    free: where several strategies are held up, the projection takes as much from one that is only a little better than average as it
    gains, and averages may stay 0.2 away from an equilibrium with exploration=0.01. Raises ValueError for iterations below 1, a step
    that isn't positive, or exploration outside 0 … 1.
    """
    table = scaled(checked(payoffs))
    _check_counts("projected_replicator_dynamics", iterations=iterations)
    if not step > 0 or not 0 <= exploration <= 1:
        raise ValueError(
            f"projected_replicator_dynamics got step={step}, exploration={exploration}; step must be positive, exploration 0 … 1"
        )
    mixtures = _start(table)
    totals = [np.zeros(size) for size in table.shape[1:]]
    for _ in range(iterations):
        moved = []
        for total, mixture, values in zip(totals, mixtures, deviations(table, mixtures), strict=True):
            total += mixture
            drift = mixture * (values - values @ mixture)
            moved.append(project(mixture + step * drift, exploration / len(mixture)))
        mixtures = moved
    return independent([total / total.sum() for total in totals])


def project(point: np.ndarray, floor: float) -> np.ndarray:
    """The nearest probabilities, in Euclidean distance, none of which is below `floor` (Held et al. 1974; by sorting).

    >>> project(np.array([0.9, 0.3, -0.2]), 0.1).round(3).tolist()
    [0.75, 0.15, 0.1]
    """
    above = point - floor
    free = max(0.0, 1 - floor * len(point))  # what is left to share out
    ordered = np.sort(above)[::-1]
    excess = (np.cumsum(ordered) - free) / np.arange(1, len(point) + 1)
    return floor + np.maximum(above - excess[np.flatnonzero(ordered >= excess)[-1]], 0)


def _weighted_products(weights: np.ndarray, played: list[list[np.ndarray]]) -> np.ndarray:
    """The weighted sum over time of the product of mixtures: a joint array."""
    by_player = [np.stack(history) for history in zip(*played, strict=True)]  # [T, |S_i|] each
    first = weights[:, None] * by_player[0]
    for history in by_player[1:-1]:
        first = first.reshape(len(first), -1, 1) * history[:, None]
        first = first.reshape(len(first), -1)
    if len(by_player) == 1:
        return first.sum(0)
    return (first.T @ by_player[-1]).reshape([history.shape[1] for history in by_player])


def _start(payoffs: np.ndarray) -> list[np.ndarray]:
    return [np.full(size, 1 / size) for size in payoffs.shape[1:]]


def _check_counts(caller: str, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{caller} got {name}={count}; expected 1 or more")
