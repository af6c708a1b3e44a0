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
    payoffs. No deviation gains more than `tolerance` (entropy; 1e-7 with welfare, HiGHS's own) of its player's payoff range, and the
    entropy is within 1e-6 nats of the largest. `opponents` have a target for each strategy that may be told (Marris et al. 2021). Time
    grows with the smaller of joint choices and constraints, cubed: entropy takes seconds at 20 × 20. Raises ValueError for another
    selection or a tolerance that isn't positive.
    """
    table = checked(payoffs)
    return correlated(_solve(table, told=True, selection=selection, tolerance=tolerance), told=True)


def coarse_correlated_equilibrium(payoffs: Any, *, selection: str = "entropy", tolerance: float = 1e-8) -> MetaStrategy:
    """A coarse correlated equilibrium (Moulin & Vial 1978): who hasn't been told yet can't gain by choosing a strategy for good.

    All is as in `correlated_equilibrium`, whose equilibria are among these; there are far fewer constraints, and a single target.
    """
    table = checked(payoffs)
    return correlated(_solve(table, told=False, selection=selection, tolerance=tolerance))


def most_entropy(constraints: np.ndarray, tolerance: float) -> np.ndarray:
    """The probabilities x [choices] of maximum entropy with constraints @ x ≤ tolerance, which some probabilities meet with ≤ 0.

    They are x ∝ exp(-λ @ constraints), where λ ≥ 0 minimizes the convex dual log Σ exp(-λ @ constraints) + tolerance Σ λ. With a
    barrier -μ Σ log λ the minimum has constraints @ x = tolerance - μ / λ: x is inside for every μ, and len(λ) μ nats from the
    largest entropy. Newton's method follows μ down, with a tolerance of at least μ: where no x lies strictly inside, λ would be huge
    otherwise. Raises RuntimeError when it doesn't get there.
    """
    rows, choices = constraints.shape
    if not rows:
        return np.full(choices, 1 / choices)
    multipliers, barrier = np.ones(rows), 1.0

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        logits = -(multipliers @ constraints)
        peak = logits.max(initial=-np.inf)
        weights = np.exp(logits - peak)
        total = weights.sum()
        value = peak + np.log(total) + slack * multipliers.sum() - barrier * np.log(multipliers).sum()
        return float(value), weights / total

    slack = max(tolerance, barrier)
    value, x = dual(multipliers)
    for _ in range(MOST_NEWTON_STEPS):
        gradient = slack - barrier / multipliers - constraints @ x
        step = -_solve_newton(constraints, x, multipliers**2 / barrier, gradient)
        decrement = float(-gradient @ step)
        if decrement < 0.1 * barrier:
            if rows * barrier <= ENTROPY_TOLERANCE and (constraints @ x).max(initial=0.0) <= 1.01 * tolerance:
                return x
            barrier *= 0.2
            slack = max(tolerance, barrier)
            value, x = dual(multipliers)
            continue
        inward = step < 0
        size = min(1.0, 0.99 * float((-multipliers[inward] / step[inward]).min(initial=np.inf)))
        while True:
            moved = multipliers + size * step
            new_value, new_x = dual(moved)
            if new_value <= value - 0.1 * size * decrement + 1e-15 * abs(value):
                break
            size *= 0.5
        multipliers, value, x = moved, new_value, new_x
    raise RuntimeError(f"the equilibrium of maximum entropy wasn't found to {tolerance} in {MOST_NEWTON_STEPS} Newton steps")


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


def _solve(payoffs: np.ndarray, *, told: bool, selection: str, tolerance: float) -> np.ndarray:
    if selection not in SELECTIONS:
        raise ValueError(f"selection={selection!r} is not a choice; {' or '.join(SELECTIONS)}")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive; 1e-8 is the default")
    constraints = deviation_gains(payoffs, told=told)
    if selection == "entropy":
        return most_entropy(constraints.toarray(), tolerance).reshape(payoffs.shape[1:])
    return most_welfare(constraints, payoffs.sum(0).ravel()).reshape(payoffs.shape[1:])


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
    every = vstack(blocks, format="csr")
    return every[np.flatnonzero(np.diff(every.indptr))]  # without the gains that are always 0


def most_welfare(constraints: Any, welfare: np.ndarray) -> np.ndarray:
    """The probabilities x [choices] of the largest welfare @ x with constraints @ x ≤ 0. Raises RuntimeError when HiGHS gives up."""
    from scipy.optimize import linprog

    rows, choices = constraints.shape
    bound = {"A_ub": constraints, "b_ub": np.zeros(rows)} if rows else {}
    found = linprog(-scaled(welfare[None])[0], **bound, A_eq=np.ones((1, choices)), b_eq=[1.0], bounds=(0, None), method="highs")
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no equilibrium among {choices} joint choices: {found.message}")
    x = np.where(found.x > 1e-12, found.x, 0.0)
    return x / x.sum()


def most_entropy(constraints: np.ndarray, tolerance: float) -> np.ndarray:
    """The probabilities x [choices] of maximum entropy with constraints @ x ≤ tolerance, which some probabilities meet with ≤ 0.

    They are x ∝ exp(-λ @ constraints), where λ ≥ 0 minimizes the convex dual log Σ exp(-λ @ constraints) + tolerance Σ λ. With a
    barrier -μ Σ log λ the minimum has constraints @ x = tolerance - μ / λ: x is inside for every μ, and len(λ) μ nats from the
    largest entropy. Newton's method follows μ down, with a tolerance of at least μ: where no x lies strictly inside, λ would be huge
    otherwise. Raises RuntimeError when it doesn't get there.
    """
    rows, choices = constraints.shape
    if not rows:
        return np.full(choices, 1 / choices)
    multipliers, barrier = np.ones(rows), 1.0

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        logits = -(multipliers @ constraints)
        peak = logits.max(initial=-np.inf)
        weights = np.exp(logits - peak)
        total = weights.sum()
        value = peak + np.log(total) + slack * multipliers.sum() - barrier * np.log(multipliers).sum()
        return float(value), weights / total

    slack = max(tolerance, barrier)
    value, x = dual(multipliers)
    for _ in range(MOST_NEWTON_STEPS):
        gradient = slack - barrier / multipliers - constraints @ x
        step = -_solve_newton(constraints, x, multipliers**2 / barrier, gradient)
        decrement = float(-gradient @ step)
        if decrement < 0.1 * barrier:
            if rows * barrier <= ENTROPY_TOLERANCE and (constraints @ x).max(initial=0.0) <= 1.01 * tolerance:
                return x
            barrier *= 0.2
            slack = max(tolerance, barrier)
            value, x = dual(multipliers)
            continue
        inward = step < 0
        size = min(1.0, 0.99 * float((-multipliers[inward] / step[inward]).min(initial=np.inf)))
        while True:
            moved = multipliers + size * step
            new_value, new_x = dual(moved)
            if new_value <= value - 0.1 * size * decrement + 1e-15 * abs(value):
                break
            size *= 0.5
        multipliers, value, x = moved, new_value, new_x
    raise RuntimeError(f"the equilibrium of maximum entropy wasn't found to {tolerance} in {MOST_NEWTON_STEPS} Newton steps")


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
