"""What a meta-solver promises, as a test for users to import: `meta_solver_contract(my_solver, gap=0.01)`.

Solves small random games and raises ContractError at the first promise that is broken. Imports meta-solvers only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from marl_hpc.meta_solvers.normal_form import MetaStrategy, nash_gap
from marl_hpc.testing.environments import ContractError

SHAPES = ((2, 2), (3, 3), (4, 7), (10, 10), (1, 3), (2, 3, 2))
PRECISION = 1e-6  # of probabilities


def meta_solver_contract(solver: Callable[..., MetaStrategy], *, gap: float | None, affine: bool = True, seed: int = 0) -> None:
    """Check everything that a meta-solver `solver(payoffs) -> MetaStrategy` promises, on random games of two and three players.

    Joint distribution, mixtures and opponents are probabilities of the right shapes, the mixtures are the marginals of the joint one;
    equal payoffs give equal results and are left as they are; strategies and players in another order give the same mixtures in that
    order; with `affine`, payoffs of another unit and other zeros give the same; payoffs of a wrong shape or that aren't finite raise
    ValueError. In two-player zero-sum games with payoffs of 0 … 1 the mixtures' nash_gap is at most `gap`, unless that is None. A game
    may be refused by ValueError, but not every one of them. Raises ContractError saying what broke.
    """
    for what, payoffs in {
        "payoffs without an axis of their own for each player": np.zeros((2, 3)),
        "payoffs with an axis too many": np.zeros((2, 3, 3, 3)),
        "payoffs without strategies": np.zeros((2, 0, 3)),
        "ragged payoffs": [[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]]],
        "payoffs with NaN": np.array([[[0.0, np.nan], [0.0, 1.0]], [[0.0, np.nan], [0.0, -1.0]]]),
        "payoffs with infinity": np.array([[[0.0, np.inf], [0.0, 1.0]], [[0.0, -np.inf], [0.0, -1.0]]]),
    }.items():
        _refuses(solver, payoffs, what)
    solved = 0
    random = np.random.default_rng(seed)
    for shape in SHAPES:
        for zero_sum in (True, False) if len(shape) == 2 else (False,):
            # multiples of 2^-20, so that another unit changes no digit and nothing is left to rounding
            payoffs = random.integers(0, 2**20, (len(shape), *shape)) / 2**20
            if zero_sum:
                payoffs[1] = 1 - payoffs[0]
            name = f"a random {'zero-sum' if zero_sum else 'general-sum'} game of {' × '.join(map(str, shape))}"
            before = payoffs.copy()
            try:
                found = solver(payoffs)
            except ValueError:
                continue
            solved += 1
            _require(np.array_equal(payoffs, before), f"{name}: the solver wrote into the payoffs that it was given")
            _check_probabilities(found, shape, name)
            _same(found, solver(payoffs), f"{name}: solved a second time it")
            if affine:
                changed = 4 * payoffs + np.arange(len(shape)).reshape(-1, *[1] * len(shape))
                _same(found, solver(changed), f"{name}: with payoffs times 4 and another zero for each player it")
            _check_order(solver, payoffs, found, random, name)
            if zero_sum and gap is not None:
                missed = nash_gap(payoffs, found.mixtures)
                _require(missed <= gap, f"{name}: nash_gap is {missed:.3g}; the solver promises {gap:.3g}")
    _require(solved > 0, "the solver refuses every game of this contract")


def _check_probabilities(found: MetaStrategy, shape: tuple[int, ...], name: str) -> None:
    _require(isinstance(found, MetaStrategy), f"{name}: got {type(found).__name__}; expected a MetaStrategy")
    players = range(len(shape))
    _probabilities(found.joint, shape, f"{name}: joint")
    for what, parts in (("mixtures", found.mixtures), ("opponents", found.opponents)):
        _require(len(parts) == len(shape), f"{name}: {len(parts)} {what} for {len(shape)} players")
    for i in players:
        mixture, opponents = found.mixtures[i], found.opponents[i]
        _probabilities(mixture, (shape[i],), f"{name}: mixtures[{i}]")
        marginal = found.joint.sum(tuple(j for j in players if j != i))
        _require(np.allclose(mixture, marginal, rtol=0, atol=PRECISION), f"{name}: mixtures[{i}] isn't the marginal of joint")
        others = tuple(size for j, size in enumerate(shape) if j != i)
        _require(
            opponents.shape[1:] == others and len(opponents) > 0,
            f"{name}: opponents[{i}] has shape {opponents.shape}; expected one or more targets of {others}",
        )
        for target in opponents:
            _probabilities(target, others, f"{name}: a target of opponents[{i}]")


def _check_order(solver: Any, payoffs: np.ndarray, found: MetaStrategy, random: np.random.Generator, name: str) -> None:
    orders = [random.permutation(size) for size in payoffs.shape[1:]]
    shuffled = solver(payoffs[(slice(None), *np.ix_(*orders))])
    for i, order in enumerate(orders):
        same = np.allclose(shuffled.mixtures[i], found.mixtures[i][order], rtol=0, atol=PRECISION)
        _require(same, f"{name}: with strategies in another order mixtures[{i}] isn't the same in that order")
    players = np.roll(np.arange(len(payoffs)), 1)
    turned = solver(payoffs[players].transpose(0, *(players + 1)))
    for i, player in enumerate(players):
        same = np.allclose(turned.mixtures[i], found.mixtures[player], rtol=0, atol=PRECISION)
        _require(same, f"{name}: with players in another order player {player} got another mixture")


def _same(one: MetaStrategy, other: MetaStrategy, what: str) -> None:
    for name, first, second in zip(("joint", "mixtures", "opponents"), one, other, strict=True):
        for x, y in zip(first, second, strict=True):
            _require(x.shape == y.shape and np.allclose(x, y, rtol=0, atol=PRECISION), f"{what} gave another {name}")


def _refuses(solver: Any, payoffs: Any, what: str) -> None:
    try:
        found = solver(payoffs)
    except ValueError:
        return
    except Exception as error:
        raise ContractError(f"{what} raised {error!r}; expected a ValueError that says what is wrong") from error
    raise ContractError(f"{what} gave {found}; expected a ValueError that says what is wrong")


def _probabilities(values: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    _require(values.shape == shape, f"{what} has shape {values.shape}; expected {shape}")
    _require(bool(np.isfinite(values).all() and (values >= 0).all()), f"{what} has entries that aren't probabilities")
    _require(abs(values.sum() - 1) <= PRECISION, f"{what} sums to {values.sum():.9g}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)
