"""Correlated and coarse correlated equilibria of any number of players: of all of them the one that pays most, or the most random one.

Both are joint distributions x that satisfy linear constraints G x ≤ 0, one row for each gain that a player must not have. The most
welfare is a linear program; the most entropy is the convex program below. Pure SciPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_hpc.meta_solvers.normal_form import MetaStrategy, checked, correlated, scaled

SELECTIONS = ("entropy", "welfare")
ENTROPY_TOLERANCE = 1e-6  # nats
MOST_NEWTON_STEPS = 500


def correlated_equilibrium(payoffs: Any, *, selection: str = "entropy", tolerance: float = 1e-8) -> MetaStrategy:
    """A correlated equilibrium (Aumann 1974): who is told a strategy can't gain by playing another one.

    `selection`: "entropy", the unique one of maximum entropy (Ortiz et al. 2007), or "welfare", one of those with the largest sum of
    payoffs. No deviation gains more than `tolerance`, as a share of its player's payoff range, and the entropy is within 1e-6 nats of the
    largest. `opponents` have a target for each strategy that is told (Marris et al. 2021). A 20 × 20 game takes a second or two with
    entropy, whose time grows with the number of joint choices cubed, and 0.1 s with welfare; a 50 × 50 one 10 s with welfare. Raises
    ValueError for another selection or a tolerance outside 1e-10 … 0.1.
    """
    table = checked(payoffs)
    return correlated(_solve(table, told=True, selection=selection, tolerance=tolerance), told=True)


def coarse_correlated_equilibrium(payoffs: Any, *, selection: str = "entropy", tolerance: float = 1e-8) -> MetaStrategy:
    """A coarse correlated equilibrium (Moulin & Vial 1978): who hasn't been told yet can't gain by choosing a strategy for good.

    All is as in `correlated_equilibrium`, whose equilibria are among these; there are far fewer constraints, and a single target.
    """
    table = checked(payoffs)
    return correlated(_solve(table, told=False, selection=selection, tolerance=tolerance))


def _solve(payoffs: np.ndarray, *, told: bool, selection: str, tolerance: float) -> np.ndarray:
    if selection not in SELECTIONS:
        raise ValueError(f"selection={selection!r} is not a choice; {' or '.join(SELECTIONS)}")
    if not 1e-10 <= tolerance <= 0.1:
        raise ValueError(f"tolerance={tolerance} must lie between 1e-10 and 0.1, as a share of the payoffs' range")
    constraints = deviation_gains(payoffs, told=told)
    if selection == "entropy":
        return most_entropy(constraints.toarray(), tolerance).reshape(payoffs.shape[1:])
    return most_welfare(constraints, payoffs.sum(0).ravel(), tolerance).reshape(payoffs.shape[1:])


def deviation_gains(payoffs: np.ndarray, *, told: bool) -> Any:
    """G [deviations, joint choices], sparse: what a player would gain by a deviation, as a share of the range of its payoffs.

    A deviation is a strategy played instead of another one that the player was `told`, else whatever was drawn.
    """
    from scipy.sparse import coo_array, vstack

    states = np.arange(payoffs[0].size).reshape(payoffs.shape[1:])
    blocks = []
    for i, own in enumerate(scaled(payoffs)):
        size = own.shape[i]
        values, columns = (np.moveaxis(array, i, 0).reshape(size, -1) for array in (own, states))
        gains = values[None] - values[:, None]  # [drawn, instead, what the others play]
        drawn, instead, _ = np.indices(gains.shape)
        rows = drawn * size + instead if told else instead
        where = np.broadcast_to(columns[:, None], gains.shape)[gains != 0]
        shape = (size * size if told else size, states.size)
        blocks.append(coo_array((gains[gains != 0], (rows[gains != 0], where)), shape=shape).tocsr())
    every: Any = vstack(blocks, format="csr")
    return every[np.flatnonzero(np.diff(every.indptr))]  # without the gains that are always 0


def most_welfare(constraints: Any, welfare: np.ndarray, tolerance: float) -> np.ndarray:
    """The probabilities x [choices] of the largest welfare @ x with constraints @ x ≤ 0, of which HiGHS misses none by more than
    `tolerance`. Raises RuntimeError when it gives up."""
    from scipy.optimize import linprog

    rows, choices = constraints.shape
    found = linprog(
        c=-scaled(welfare[None])[0],
        A_ub=constraints if rows else None,
        b_ub=np.zeros(rows) if rows else None,
        A_eq=np.ones((1, choices)),
        b_eq=[1.0],
        bounds=(0, None),
        # interior point: zero-sum games are so degenerate that the simplex method takes minutes where this takes seconds
        method="highs-ipm",
        options={"primal_feasibility_tolerance": tolerance},
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no equilibrium among {choices} joint choices: {found.message}")
    x = np.where(found.x > 1e-12, found.x, 0.0)
    return x / x.sum()


def most_entropy(constraints: np.ndarray, tolerance: float) -> np.ndarray:
    """The probabilities x [choices] of maximum entropy with constraints @ x ≤ tolerance, which some probabilities meet with ≤ 0.

    They are x ∝ exp(-λ @ constraints), where λ ≥ 0 minimizes the convex dual log Σ exp(-λ @ constraints) + tolerance Σ λ. With a
    barrier -μ Σ log λ the minimum has constraints @ x = tolerance - μ / λ, so that x is inside for every μ. Newton's method follows μ
    down, with a tolerance of at least μ: where no x lies strictly inside, λ would be huge otherwise. It ends when dual and entropy
    differ by 1e-6. Raises RuntimeError when it doesn't get there.
    """
    rows, choices = constraints.shape
    if not rows:
        return np.full(choices, 1 / choices)
    multipliers, barrier = np.ones(rows), 1.0
    aim = 0.99 * tolerance  # leaves room for rounding

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        logits = -(multipliers @ constraints)
        peak = logits.max(initial=-np.inf)
        weights = np.exp(logits - peak)
        total = weights.sum()
        value = peak + np.log(total) + slack * multipliers.sum() - barrier * np.log(multipliers).sum()
        return float(value), weights / total

    slack = max(aim, barrier)
    value, x = dual(multipliers)
    for _ in range(MOST_NEWTON_STEPS):
        room = slack - constraints @ x
        gradient = room - barrier / multipliers
        try:
            step = -_solve_newton(constraints, x, multipliers**2 / barrier, gradient)
        except np.linalg.LinAlgError:  # rounding
            break
        decrement = float(-gradient @ step)
        if decrement < 0.1 * barrier:
            if slack == aim and multipliers @ room <= ENTROPY_TOLERANCE and (constraints @ x).max() <= tolerance:
                return x
            barrier *= 0.2
            slack = max(aim, barrier)
            value, x = dual(multipliers)
            continue
        inward = step < 0
        size = min(1.0, 0.99 * float((-multipliers[inward] / step[inward]).min(initial=np.inf)))
        start, before = multipliers, value
        for _ in range(50):
            multipliers = start + size * step
            value, x = dual(multipliers)
            if value <= before - 0.1 * size * decrement + 1e-15 * abs(before):
                break
            size *= 0.5
    raise RuntimeError(
        f"the equilibrium of maximum entropy wasn't found to a tolerance of {tolerance} for {rows} deviations and {choices} joint "
        "choices; try a larger tolerance or selection='welfare'"
    )


def _solve_newton(constraints: np.ndarray, x: np.ndarray, slack: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """(G (diag x - x xᵀ) Gᵀ + diag(1 / slack))⁻¹ gradient, by whichever of G's sides is shorter (Woodbury's identity)."""
    from scipy.linalg import cho_factor, cho_solve

    root = np.sqrt(x)
    factor = constraints * root - np.outer(constraints @ x, root)  # factor @ factor.T is the first term
    if factor.shape[0] <= factor.shape[1]:
        hessian = factor @ factor.T
        hessian[np.diag_indices_from(hessian)] += 1 / slack
        return cho_solve(cho_factor(hessian), gradient)
    scaled_factor = factor * slack[:, None]
    inner = factor.T @ scaled_factor
    inner[np.diag_indices_from(inner)] += 1
    return slack * gradient - scaled_factor @ cho_solve(cho_factor(inner), scaled_factor.T @ gradient)
