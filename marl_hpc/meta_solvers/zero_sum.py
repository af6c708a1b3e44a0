"""Nash equilibria of two-player zero-sum games by one linear program, and opponents rectified by them. Pure SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_hpc.meta_solvers.normal_form import TOLD, MetaStrategy, checked, independent, scaled

ZERO_SUM_TOLERANCE = 1e-8  # by how much the sum of both payoffs may vary, as a share of their range


def nash(payoffs: Any) -> MetaStrategy:
    """A Nash equilibrium of a two-player zero-sum game, by linear programming (HiGHS); nash_gap below 1e-6 of the payoffs' range.

    The payoffs may sum to any constant. Where there are several equilibria it is one that the simplex method ends in, which depends on
    the order of strategies. Raises ValueError for more than two players and for general-sum payoffs.

    >>> nash([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]], [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]]).mixtures[0].round(6).tolist()
    [0.333333, 0.333333, 0.333333]
    """
    row, column, _ = minimax(zero_sum("nash", payoffs))
    return independent([row, column])


def rectified_nash(payoffs: Any) -> MetaStrategy:
    """The Nash equilibrium of `nash`, where each strategy in it trains only against those that it beats or ties (Balduzzi et al. 2019,
    algorithm 4: "play to your strengths").

    `opponents` have one target for each of a player's strategies with a probability: the other's mixture, restricted to strategies
    against which this one gets at least the value of the game, and renormalized. In the paper's symmetric games that value is 0.
    Raises ValueError as `nash` does.
    """
    table = zero_sum("rectified_nash", payoffs)
    row, column, value = minimax(table)
    slack = 1e-9 * (np.ptp(table) or 1.0)  # ties survive rounding
    targets = []
    for own, other, ahead in ((row, column, table - value), (column, row, value - table.T)):
        kept = other * (ahead >= -slack)[own > TOLD]
        targets.append(kept / kept.sum(1, keepdims=True))
    return independent([row, column])._replace(opponents=tuple(targets))


def minimax(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(the row player's mixture, the column player's, the value) of a matrix of the row player's payoffs, with supports cleaned of
    rounding. Raises RuntimeError when HiGHS gives up."""
    from scipy.optimize import linprog

    matrix = np.asarray(matrix, float)
    rows, columns = matrix.shape
    normal = scaled(matrix[None])[0]
    # the row player's mixture x and its value v: maximize v with x @ normal >= v; the duals are the column player's mixture
    found = linprog(
        c=np.append(np.zeros(rows), -1.0),
        A_ub=np.column_stack([-normal.T, np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=np.append(np.ones(rows), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * rows + [(None, None)],
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no equilibrium of a {rows} × {columns} game: {found.message}")
    mixtures = [np.where(raw > 1e-12, raw, 0.0) for raw in (found.x[:rows], -found.ineqlin.marginals)]
    row, column = (mixture / mixture.sum() for mixture in mixtures)
    return row, column, float(row @ matrix @ column)


def zero_sum(caller: str, payoffs: Any) -> np.ndarray:
    """The first player's payoffs. Raises ValueError, saying what would work, where the game isn't two-player zero-sum."""
    table = checked(payoffs)
    if len(table) != 2:
        raise ValueError(
            f"{caller} solves two-player zero-sum games, this one has {len(table)} players; use coarse_correlated_equilibrium, "
            "alpha_rank, regret_matching or projected_replicator_dynamics"
        )
    total = table[0] + table[1]
    if np.ptp(total) > ZERO_SUM_TOLERANCE * max(np.ptp(table[0]), np.ptp(table[1])):
        raise ValueError(
            f"{caller} solves zero-sum games, these payoffs sum to {total.min():.6g} … {total.max():.6g}; use "
            "coarse_correlated_equilibrium, alpha_rank, regret_matching or projected_replicator_dynamics"
        )
    return table[0]
