"""A population's game as a table of payoffs, what a meta-solver says about it, and how far that is from each kind of equilibrium.

Payoffs are [players, |S_1|, …, |S_n|]: payoffs[i, s_1, …, s_n] is what player i expects when each player j plays its strategy s_j.
A *joint* distribution [|S_1|, …, |S_n|] gives each such choice a probability; a *mixture* [|S_i|] is one player's. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SUM_TOLERANCE = 1e-6  # by how much given probabilities may miss 1
TOLD = 1e-6  # below this a probability is what an optimizer left over


class MetaStrategy(NamedTuple):
    """What every meta-solver returns, whether players mix independently or are correlated.

    `opponents` say what new strategies are trained against: opponents[i] is [targets, *the other players' sizes], one distribution of
    the others' strategies for each best response that player i should add. Most solvers have one target, `joint` without player i;
    those in which a player knows which strategy it was told to play have one for each strategy with a probability.
    """

    joint: np.ndarray  # [|S_1|, …, |S_n|]
    mixtures: tuple[np.ndarray, ...]  # one per player, [|S_i|]: the marginals of `joint`
    opponents: tuple[np.ndarray, ...]


def independent(mixtures: Sequence[np.ndarray]) -> MetaStrategy:
    """Players who mix each by itself: the joint distribution is the product.

    >>> independent([np.array([1.0, 0.0]), np.array([0.25, 0.75])]).opponents[0].tolist()
    [[0.25, 0.75]]
    """
    mixtures = tuple(mixtures)
    others = (product([m for j, m in enumerate(mixtures) if j != i])[None] for i in range(len(mixtures)))
    return MetaStrategy(product(mixtures), mixtures, tuple(others))


def correlated(joint: np.ndarray, *, told: bool = False) -> MetaStrategy:
    """Players whose choices are drawn together. With `told` each learns its own and has a target for each that it is told at all (with
    a probability above 1e-6), what the others do then; otherwise one target, the others' marginal."""
    mixtures, opponents = [], []
    for i in range(joint.ndim):
        own = np.moveaxis(joint, i, 0)
        mixture = own.reshape(len(own), -1).sum(1)
        mixtures.append(mixture)
        drawn = mixture > TOLD
        conditional = own[drawn] / mixture[drawn].reshape(-1, *[1] * (joint.ndim - 1))
        opponents.append(conditional if told else own.sum(0)[None])
    return MetaStrategy(joint, tuple(mixtures), tuple(opponents))


def product(mixtures: Sequence[np.ndarray]) -> np.ndarray:
    """The joint distribution of independent mixtures; of none, the number 1."""
    joint = np.ones(())
    for mixture in mixtures:
        joint = np.multiply.outer(joint, mixture)
    return joint


def expected_payoffs(payoffs: Any, joint: Any) -> np.ndarray:
    """What each player expects, [players]. Raises ValueError for payoffs or probabilities that aren't.

    >>> expected_payoffs([[[3, 0], [5, 1]], [[3, 5], [0, 1]]], [[0.5, 0.0], [0.0, 0.5]]).tolist()
    [2.0, 2.0]
    """
    table = checked(payoffs)
    return (table * checked_joint(table, joint)).reshape(len(table), -1).sum(1)


def nash_gap(payoffs: Any, mixtures: Sequence[Any]) -> float:
    """The sum over players of what the best pure strategy would gain, in payoff units: 0 in a Nash equilibrium. NashConv of the table.

    >>> nash_gap([[[3, 0], [5, 1]], [[3, 5], [0, 1]]], [[1, 0], [1, 0]])
    4.0
    """
    table = checked(payoffs)
    given = checked_mixtures(table, mixtures)
    return float(sum(values.max() - values @ mixture for values, mixture in zip(deviations(table, given), given, strict=True)))


def cce_gap(payoffs: Any, joint: Any) -> float:
    """The sum over players of what the best pure strategy, chosen before anything is drawn, would gain: 0 in a coarse correlated
    equilibrium, and where every such strategy would lose. In payoff units."""
    table = checked(payoffs)
    chances = checked_joint(table, joint)
    gap = 0.0
    for own, told in by_player(table, chances):
        gap += max(0.0, float((own @ told.sum(0)).max() - (own * told).sum()))
    return gap


def ce_gap(payoffs: Any, joint: Any) -> float:
    """The sum over players of what it would gain by playing, for each strategy that it is told, the best one instead: 0 in a
    correlated equilibrium (Aumann 1974), and never less than `cce_gap`. In payoff units."""
    table = checked(payoffs)
    chances = checked_joint(table, joint)
    gap = 0.0
    for own, told in by_player(table, chances):
        instead = told @ own.T  # [told, played instead]
        gap += float((instead.max(1) - instead.diagonal()).sum())
    return gap


def deviations(payoffs: np.ndarray, mixtures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each player [|S_i|]: what each of its strategies expects while the others mix. The hot path: nothing is checked."""
    if len(mixtures) == 2:
        return [payoffs[0] @ mixtures[1], mixtures[0] @ payoffs[1]]
    values = []
    for i, own in enumerate(payoffs):
        for mixture in reversed(mixtures[i + 1 :]):
            own = own @ mixture
        for mixture in mixtures[:i]:
            own = (mixture @ own.reshape(len(mixture), -1)).reshape(own.shape[1:])
        values.append(own)
    return values


def by_player(payoffs: np.ndarray, joint: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each player its payoffs and `joint`, both [|S_i|, choices of the others]."""
    return [
        (np.moveaxis(own, i, 0).reshape(own.shape[i], -1), np.moveaxis(joint, i, 0).reshape(own.shape[i], -1))
        for i, own in enumerate(payoffs)
    ]


def scaled(payoffs: np.ndarray) -> np.ndarray:
    """Each player's payoffs brought to 0 … 1, those of a player who is never affected to 0. Equilibria stay what they are."""
    flat = payoffs.reshape(len(payoffs), -1)
    low, span = flat.min(1), np.ptp(flat, 1)
    span = np.where(span > 0, span, 1.0)
    shape = (-1, *[1] * (payoffs.ndim - 1))
    return (payoffs - low.reshape(shape)) / span.reshape(shape)


def checked(payoffs: Any) -> np.ndarray:
    """Payoffs as float64 [players, |S_1|, …, |S_n|]. Raises ValueError for another shape or for what isn't finite."""
    try:
        table = np.asarray(payoffs, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"payoffs are no array of numbers ({error}); expected [players, |S_1|, …, |S_n|]") from error
    if table.ndim < 2 or len(table) != table.ndim - 1 or table.size == 0:
        raise ValueError(
            f"payoffs have shape {table.shape}; expected [players, |S_1|, …, |S_n|], one axis of strategies for each player "
            "and at least one strategy on each"
        )
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {table.size} payoffs aren't finite, the first at {tuple(wrong[0].tolist())}: fill in every cell "
            "before solving"
        )
    return table


def checked_mixtures(payoffs: np.ndarray, mixtures: Sequence[Any]) -> list[np.ndarray]:
    """Mixtures as float64, one per player. Raises ValueError for other numbers of them, other lengths, or no probabilities."""
    given = [np.asarray(mixture, float) for mixture in mixtures]
    shapes, expected = [mixture.shape for mixture in given], [(size,) for size in payoffs.shape[1:]]
    if shapes != expected:
        raise ValueError(f"mixtures have shapes {shapes}; expected one for each player, {expected}")
    for i, mixture in enumerate(given):
        _check_probabilities(f"the mixture of player {i}", mixture)
    return given


def checked_joint(payoffs: np.ndarray, joint: Any) -> np.ndarray:
    """A joint distribution as float64. Raises ValueError for another shape than the payoffs', or no probabilities."""
    given = np.asarray(joint, float)
    if given.shape != payoffs.shape[1:]:
        raise ValueError(f"the joint distribution has shape {given.shape}; expected {payoffs.shape[1:]}, as the payoffs have it")
    _check_probabilities("the joint distribution", given)
    return given


def _check_probabilities(what: str, values: np.ndarray) -> None:
    if not (values >= 0).all() or abs(values.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(f"{what} sums to {values.sum():.6g}, its smallest entry is {values.min():.6g}; expected probabilities")
